"""Compiles the step for TPU slices that need not be there, by libtpu's compiler, on a CPU."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from maskvlm_jax.plan.slices import GIB, Slice
from maskvlm_jax.plan.traced import traced_flops
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build


class TooLarge(Exception):
    """A program does not fit.

    Attributes:
        needed, available: bytes of a chip's memory.
        state: bytes of it that parameters, optimizer and moving average take.
    """

    def __init__(self, needed: float, available: float, state: float):
        super().__init__(f"needs {needed / GIB:.1f} GiB a chip, there are {available / GIB:.1f}")
        self.needed, self.available, self.state = needed, available, state


class Compiled(NamedTuple):
    """A compiled step, the FLOPs of the whole of it as traced, and the sizes of its mesh by axis."""

    executable: Any
    flops: float
    mesh: dict[str, int]


def compile_step(config: ConfigDict, where: Slice, options: dict[str, str] | None = None) -> Compiled:
    """Compiles the step of a config for a slice.

    Args:
        options: of the compiler.

    Raises:
        TooLarge: it does not fit.
        UserError: the mesh or batch does not go with the slice, or libtpu is not there.
    """
    mesh = sharding.make_mesh(**config.mesh, devices=devices_of(where))
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, batch = build.described(config, built, mesh)
        traced = built.step.trace(state, batch)
        try:
            compiled = traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            raise too_large(error, _bytes_a_device(state)) or error from None
    return Compiled(compiled, traced_flops(traced.jaxpr), dict(mesh.shape))


def devices_of(where: Slice) -> list[Any]:
    """The devices of a slice, described by libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'planning needs libtpu, which is not installed: pip install "jax[tpu]=={jax.__version__}"')
    # No TPU is looked for, none is locked, and nothing is asked of a metadata server.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    from jax.experimental import topologies

    # A chip of two cores is one device, as it is for a run.
    more = {"chip_config_name": "megacore"} if where.generation == "v4" else {}
    try:
        return list(
            topologies.get_topology_desc(
                platform="tpu", topology_name=where.topology, num_slices=where.count, **more
            ).devices
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"libtpu does not describe {where}: {str(error).splitlines()[0]}") from error


def _bytes_a_device(tree: Any) -> float:
    """Of arrays that are described with their placement."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def too_large(error: Exception, state: float) -> TooLarge | None:
    """What libtpu says of a program that does not fit."""
    sizes = re.search(r"\(([\d.]+)([MG])\) exceeds available HBM \(([\d.]+)G\)", str(error))
    sizes = sizes or re.search(r"[Uu]sed ([\d.]+)([MG]) of ([\d.]+)G hbm", str(error))
    if sizes is None:
        return None
    return TooLarge(float(sizes[1]) * (GIB if sizes[2] == "G" else 2**20), float(sizes[3]) * GIB, state)
