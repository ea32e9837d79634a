"""The text of compiled programs: loops, bytes, collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maskvlm_jax.plan.hlo import Collective, Program, replica_groups
from maskvlm_jax.runtime import sharding

TEXT = """HloModule jit_step

%fused (param_0: f32[4,8,8], param_1: s32[]) -> f32[8,8] {
  %param_0 = f32[4,8,8]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  ROOT %slice.1 = f32[1,8,8]{2,1,0} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,8,8}
}

%all-reduce-scatter.2 (param_0: f32[8,8]) -> f32[2,8] {
  %param_0.2 = f32[8,8]{1,0} parameter(0)
  %all-reduce.2 = f32[8,8]{1,0} all-reduce(%param_0.2), channel_id=2, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %slice.2 = f32[2,8]{1,0} slice(%all-reduce.2), slice={[0:2], [0:8]}
}

%body (p: (s32[], f32[4,8,8], f32[8,8])) -> (s32[], f32[4,8,8], f32[8,8]) {
  %p = (s32[], f32[4,8,8]{2,1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = f32[4,8,8]{2,1,0} get-tuple-element(%p), index=1
  %layer = f32[8,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %ar = f32[8,8]{1,0} all-reduce(%layer), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[4,8,8]{2,1,0}, f32[8,8]{1,0}) tuple(%i, %w, %ar)
}

%condition (p: (s32[], f32[4,8,8], f32[8,8])) -> pred[] {
  %p.1 = (s32[], f32[4,8,8]{2,1,0}, f32[8,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %four), direction=LT
}

ENTRY %main (w: f32[4,8,8], x: f32[8,8]) -> f32[2,8] {
  %w.1 = f32[4,8,8]{2,1,0} parameter(0)
  %x = f32[8,8]{1,0:S(1)} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], f32[4,8,8]{2,1,0}, f32[8,8]{1,0}) tuple(%zero, %w.1, %x)
  %loop = (s32[], f32[4,8,8]{2,1,0}, f32[8,8]{1,0}) while(%init), condition=%condition, body=%body
  %last = f32[8,8]{1,0} get-tuple-element(%loop), index=2
  ROOT %rs = f32[2,8]{1,0} fusion(%last), kind=kCustom, calls=%all-reduce-scatter.2, metadata={op_name="jit(step)/end"}
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_of_a_stack_the_slices():
    matrix = 8 * 8 * 4
    loop = 4 * ((matrix + 4 + matrix) + 2 * matrix)  # a slice, the index and the layer; then the all-reduce's two ends
    assert Program(TEXT).moved_bytes() == loop + matrix + matrix // 4  # and the last fusion


def test_collectives_have_their_times_their_groups_and_their_bytes():
    first, last = sorted(Program(TEXT).collectives(), key=lambda found: found.kind)
    assert (first.kind, first.size, first.times, first.groups.tolist()) == ("all-reduce", 256, 4, [[0, 1], [2, 3]])
    assert first.wire_bytes == 4 * 256  # 2 (n - 1) / n
    assert (last.kind, last.size, last.times) == ("reduce-scatter", 64, 1)
    assert last.wire_bytes == 3 * 64


def test_the_largest_arrays_are_named():
    assert Program(TEXT).largest(1) == [(256, "f32[8,8]  fusion")]


def test_buffers_of_a_collective_that_runs_beside_other_work_pass_through():
    text = """%work.1 (param_0: f32[4,8], param_1: f32[8,8], param_2: f32[8,8]) -> (f32[8,8], f32[8,8]) {
  %param_0 = f32[4,8]{1,0} parameter(0)
  %param_1 = f32[8,8]{1,0} parameter(1)
  %param_2 = f32[8,8]{1,0} parameter(2)
  %all-gather.1 = f32[8,8]{1,0} all-gather(%param_0), channel_id=7, replica_groups=[1,2]<=[2], dimensions={0}
  %twice = f32[8,8]{1,0} add(%param_2, %param_2)
  ROOT %both = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%twice, %param_1)
}

ENTRY %main (a: f32[4,8], b: f32[8,8], c: f32[8,8]) -> (f32[8,8], f32[8,8]) {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %c = f32[8,8]{1,0} parameter(2)
  %start = ((f32[8,8]{1,0}), f32[2,8]{1,0:S(1)}, u32[]) slice-start(%c), slice={[0:2], [0:8]}
  ROOT %f = (f32[8,8]{1,0}, f32[8,8]{1,0}) fusion(%a, %b, %c), kind=kOutput, output_to_operand_aliasing={{1}: (1, {})}, calls=%work.1
}
"""  # noqa: E501
    program = Program(text)
    # The gather's operand, the sum's operand and result, and the slice, which goes to other memory.
    assert program.moved_bytes() == 4 * 8 * 4 + 2 * 8 * 8 * 4 + 2 * 8 * 4
    assert [(part.kind, part.size) for part in program.collectives()] == [("all-gather", 256)]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_in_every_form(text, groups):
    assert replica_groups(text + ", more={1}").tolist() == groups


def test_a_gather_sends_all_but_its_own_part():
    assert Collective("all-gather", 800, 2, np.arange(8)[None]).wire_bytes == 2 * 700


def test_a_compiled_scan_over_eight_devices():
    mesh = sharding.make_mesh(data=8, fsdp=1, model=1)
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    w = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=NamedSharding(mesh, P()))

    def loss(w, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0])

    text = jax.jit(jax.grad(loss)).lower(w, x).compile({"xla_backend_optimization_level": 0}).as_text()
    found = [part for part in Program(text).collectives() if part.kind == "all-reduce"]
    # Each layer's gradient once, in the loop or all of them behind it.
    assert sum(part.size * part.times for part in found) == 6 * 32 * 32 * 4
    assert all(part.groups.shape == (1, 8) for part in found)
