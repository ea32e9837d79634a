"""The analytic count of FLOPs against the products in the program that jax traces; nothing is compiled or run."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from configs import pretrain
from maskvlm_jax.data.examples import batch_shapes
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.plan import flops
from maskvlm_jax.plan.traced import traced_flops
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build
from tests.conftest import toy_config

BATCH_SIZE = 6


def alone(label: str) -> dict[str, float]:
    """Weight 0 for every objective but one."""
    labels = {"contrastive", "masked_image", "masked_text", "matching"}
    return {f"objectives__{other}__weight": 0.0 for other in labels - {label}}


CONFIGS = {
    "toy": {},
    "other_shapes": {
        "model__fusion__depth": 4,
        "objectives__masked_image__decoder__depth": 3,
        "model__text__depth": 2,
        "model__image__mlp_ratio": 2,
        "model__fusion__mlp_ratio": 3,
        "model__text__mlp_ratio": 5,
        "model__text__norm": "pre",
        "model__shared__unroll": True,
        "objectives__masked_text__tie": True,
    },
    "one_cross_block": {"model__fusion__depth": 1},
    "both_masked": {"objectives__masked_image__other": "masked", "objectives__masked_text__other": "masked"},
    "more_tokens": {"model__image__registers": 3, "model__image__distillation_token": True},
    "pooled": {"model__pooling__image": "both", "model__pooling__text": "attention", "model__pooling__layers": 2},
    "contrastive_alone": alone("contrastive"),
    "masked_image_alone": alone("masked_image"),
    "masked_text_alone": alone("masked_text"),
    "matching_alone": alone("matching"),
}


def shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    config.batch_size = BATCH_SIZE
    arrays = batch_shapes(config)
    return {name: jax.ShapeDtypeStruct(*array) for name, array in arrays.items()}


def traced_gflops(config, *, training: bool = False) -> float:
    """GFLOP a pair of the traced loss, or of its value and gradient."""
    arguments = build.model_arguments(config)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Learner(**arguments, rngs=nnx.Rngs(0))))

    def loss(params, batch, key):
        learner, more = nnx.merge(graphdef, params), {}
        if config.optim.ema_decay:
            more = {"teacher": nnx.merge(graphdef, jax.lax.stop_gradient(params)), "queue": learner.make_queue()}
            more["kept"] = learner.first_kept()
        return learner(batch, key, **more)[0]

    function = jax.value_and_grad(loss) if training else loss
    traced = jax.make_jaxpr(function)(params, shapes(config), jax.eval_shape(jax.random.key, 0)).jaxpr
    used, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))  # XLA leaves out what nothing reads
    return traced_flops(used) / BATCH_SIZE / 1e9


def patch_embedding_gflops(config) -> float:
    """Of one view."""
    image = config.model.image
    return flops.dense((image.image_size // image.patch) ** 2, 3 * image.patch**2, image.width) / 1e9


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_flops_are_those_of_the_traced_program(name):
    config = toy_config(**CONFIGS[name])
    assert sum(flops.flops_per_pair(config, BATCH_SIZE).values()) == pytest.approx(traced_gflops(config), rel=1e-9)


MOMENTUM = {
    "syncmask": {},
    "first_layer": {"model__fusion__depth": 3, "masking__masker__layer": 0},
    "last_of_four_layers": {"model__fusion__depth": 4, "masking__masker__layer": -1, "model__fusion__mlp_ratio": 3},
    "masks_alone": {"objectives__contrastive__weight": 0.0},
    "patches_alone": {"objectives__masked_text__weight": 0.0},
    "words_alone": {"objectives__masked_image__weight": 0.0},
    "not_matched": {"objectives__matching__weight": 0.0, "objectives__contrastive__queue": 10},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "syncmask" else pytest.mark.slow) for name in MOMENTUM]
)
def test_flops_of_the_teacher_and_of_its_queue_are_those_of_the_traced_program(name):
    config = toy_config("recipe=syncmask", **MOMENTUM[name])
    parts = flops.flops_per_pair(config, BATCH_SIZE)
    assert sum(parts.values()) == pytest.approx(traced_gflops(config), rel=1e-9)
    # A little too much, as without a teacher: similarities that negatives and soft targets are drawn from count thrice.
    similarity = flops.dense(1, config.model.embed, BATCH_SIZE + config.objectives.contrastive.queue) / 1e9
    spare = flops.train_flops_per_pair(config, BATCH_SIZE) - traced_gflops(config, training=True)
    assert 0 < spare - 2 * patch_embedding_gflops(config) < 10 * similarity


def test_momentum_contrast_without_a_masker_has_a_teacher_too():
    config = toy_config("recipe=syncmask")
    masked = flops.flops_per_pair(config, BATCH_SIZE)["teacher"]
    config.masking.masker = ConfigDict()
    parts = flops.flops_per_pair(config, BATCH_SIZE)
    assert sum(parts.values()) == pytest.approx(traced_gflops(config), rel=1e-9)
    assert 0 < parts["teacher"] < masked


def test_flops_of_another_masker_are_not_counted():
    config = toy_config("recipe=syncmask", masking__masker__name="masks/mine.py")
    with pytest.raises(UserError, match=r"FLOPs are not counted of the masker masks/mine\.py"):
        flops.flops_per_pair(config, BATCH_SIZE)


def test_forward_flops_of_the_paper_s_size():
    config = pretrain.get_config("size=base,data=coco")
    assert sum(flops.flops_per_pair(config, BATCH_SIZE).values()) == pytest.approx(traced_gflops(config), rel=1e-9)


@pytest.mark.parametrize(("name", "views"), [("other_shapes", 2), ("contrastive_alone", 1)])
def test_training_flops_leave_out_the_gradient_of_pixels_alone(name, views):
    config = toy_config(**CONFIGS[name])
    expected = traced_gflops(config, training=True) + views * patch_embedding_gflops(config)
    assert flops.train_flops_per_pair(config, BATCH_SIZE) == pytest.approx(expected, rel=1e-9)


def test_training_flops_of_a_named_size_are_three_times_the_forward_pass():
    config = pretrain.get_config("size=tiny,data=scenes")
    traced = traced_gflops(config, training=True)
    assert flops.train_flops_per_pair(config, BATCH_SIZE) == pytest.approx(traced, rel=0.02)


def test_a_part_for_every_objective_that_has_a_weight():
    parts = flops.flops_per_pair(toy_config(objectives__matching__weight=0.0), BATCH_SIZE)
    assert list(parts) == ["image_encoder", "text_encoder", "memory", "contrastive", "masked_image", "masked_text"]
    assert all(value > 0 for value in parts.values())


def test_the_batch_counts_in_the_similarity_alone():
    small, large = (flops.flops_per_pair(toy_config(), size) for size in (8, 16))
    assert {name for name in small if small[name] != large[name]} == {"contrastive"}


SEMMIM = {
    "semmim": {},
    "images_alone": {
        "objectives__masked_prototype__prediction": "image",
        "objectives__masked_prototype__target": "image",
    },
    "cosine": {"masking__masker__by": "cosine", "objectives__masked_prototype__target": "image"},
    "first_layer": {"masking__masker__layer": 0, "model__fusion__depth": 3},
    "pixels": {"objectives__masked_image__weight": 1.0, "objectives__agreement__weight": 0.0},
    "agreement_alone": {
        f"objectives__{name}__weight": 0.0 for name in ("masked_prototype", "masked_text", "contrastive", "matching")
    },
}


@pytest.mark.parametrize("crops", [False, True], ids=["masks", "crops"])
@pytest.mark.parametrize("name", SEMMIM)
def test_flops_of_prototypes_are_those_of_the_traced_program(name, crops):
    config = toy_config("recipe=semmim,data=" + ("flickr8k" if crops else "scenes"), **SEMMIM[name])
    parts = flops.flops_per_pair(config, BATCH_SIZE)
    assert sum(parts.values()) == pytest.approx(traced_gflops(config), rel=1e-9)
    assert parts["teacher"] > 0


@pytest.mark.parametrize(("data", "views"), [("scenes", 2), ("flickr8k", 3)])
def test_a_teacher_and_its_prototypes_have_no_backward_pass(data, views):
    config = toy_config(f"recipe=semmim,data={data}")
    expected = traced_gflops(config, training=True) + views * patch_embedding_gflops(config)
    assert flops.train_flops_per_pair(config, BATCH_SIZE) == pytest.approx(expected, rel=1e-9)


EXPERTS = {
    "eve": {},
    "not_balanced": {"objectives__load_balance__weight": 0.0},
    "one_block_of_narrow_experts": {"model__fusion__experts__layers": 1, "model__fusion__experts__mlp_ratio": 1},
    "none": {"model__fusion__experts__layers": 0, "objectives__load_balance__weight": 0.0},
}


@pytest.mark.parametrize("name", EXPERTS)
def test_flops_of_experts_are_those_of_the_chosen_ones(name):
    """Of the traced program where there are no others; more of them change what their router costs, and no more."""
    values = {"model__fusion__depth": 3, "masking__image_cell": 1} | EXPERTS[name]
    two, nine = (toy_config("recipe=eve", model__fusion__experts__count=count, **values) for count in (2, 9))
    experts, patches, words = two.model.fusion.experts, 16, two.model.text.max_length
    masked, tokens = 12, 9
    rows = [words + patches - masked, words + patches] * max(experts.layers - 1, 0)
    ends = [patches - masked, tokens] if experts.layers else []
    biases = sum(flops.dense(count, experts.count, two.model.fusion.width) for count in rows + ends) / 1e9
    counted = sum(flops.flops_per_pair(two, BATCH_SIZE).values())
    assert counted == pytest.approx(traced_gflops(two) - biases, rel=1e-9)
    asked = [words + patches - masked, words + patches] if two.objectives.load_balance.weight else ends
    more = sum(flops.dense(count, two.model.fusion.width, 7) for count in rows + asked * bool(experts.layers)) / 1e9
    assert sum(flops.flops_per_pair(nine, BATCH_SIZE).values()) == pytest.approx(counted + more, rel=1e-9)


def test_flops_of_sorted_rows_are_at_most_half_as_many_again():
    """Of the experts alone: what fills groups up is computed, whatever their number."""
    for experts in (8, 16):
        config = toy_config("recipe=eve", model__fusion__experts__count=experts, masking__image_cell=1)
        counted = sum(flops.flops_per_pair(config, BATCH_SIZE).values())
        assert counted < traced_gflops(config) < 1.5 * counted


CO = {
    "m3ae_med": {},
    "tapped_at_the_encoder": {"model__fusion__tap": 0},
    "tapped_behind_one_layer": {"model__fusion__tap": 1, "model__fusion__decoder__depth": 3},
    "tapped_behind_the_last": {"model__fusion__tap": 4, "model__image__registers": 2},
    "one_layer": {"model__fusion__depth": 1, "model__fusion__tap": 1},
    "masked_image_alone": {"objectives__masked_text__weight": 0.0, "objectives__matching__weight": 0.0},
    "masked_text_alone": {"objectives__masked_image__weight": 0.0, "objectives__matching__weight": 0.0},
    "matching_alone": {"objectives__masked_image__weight": 0.0, "objectives__masked_text__weight": 0.0},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("m3ae_med", "tapped_behind_one_layer") else pytest.mark.slow)
        for name in CO
    ],
)
def test_flops_of_streams_that_read_each_other_are_those_of_the_traced_program(name):
    config = toy_config("recipe=m3ae_med", **({"masking__image_cell": 1} | CO[name]))
    parts = flops.flops_per_pair(config, BATCH_SIZE)
    assert sum(parts.values()) == pytest.approx(traced_gflops(config), rel=1e-9)
    assert list(parts)[:3] == ["image_encoder", "text_encoder", "memory"]


PICTURES = {
    "fastmim": {},
    "deeper_and_narrower": {
        "objectives__masked_patches__decoder__depth": 3,
        "objectives__masked_patches__decoder__width": 64,
        "model__image__registers": 2,
        "model__image__depth": 2,
    },
    "pixels": {"objectives__masked_patches__target": "pixels"},
    "smaller_cells": {"objectives__masked_patches__cell": 4},
}


@pytest.mark.parametrize("name", PICTURES)
def test_flops_of_pictures_alone_are_those_of_the_traced_program(name):
    config = toy_config("recipe=fastmim", masking__image_cell=1, **PICTURES[name])
    counted = sum(flops.flops_per_pair(config, BATCH_SIZE).values())
    assert counted == pytest.approx(traced_gflops(config), rel=1e-9)
    training = traced_gflops(config, training=True) + patch_embedding_gflops(config)
    assert flops.train_flops_per_pair(config, BATCH_SIZE) == pytest.approx(training, rel=1e-9)


def test_an_unknown_objective_is_told():
    with pytest.raises(UserError, match="captioning"):
        flops.flops_per_pair(toy_config(objectives__matching__name="captioning"), BATCH_SIZE)


def test_traced_flops_by_hand():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))

    def run(x, w):
        once = jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]  # 5 products
        again = jax.checkpoint(lambda x: x @ w)(once)
        return jax.lax.cond(jnp.sum(again) > 0, lambda x: x @ w @ w, lambda x: x, again)  # the dearer branch: 2

    assert traced_flops(jax.make_jaxpr(run)(x, w).jaxpr) == (5 + 1 + 2) * 2 * 3 * 4 * 4
    batched = jax.make_jaxpr(lambda a, b: jnp.einsum("bij,bkj->bik", a, b))(jnp.ones((2, 3, 5)), jnp.ones((2, 7, 5)))
    assert traced_flops(batched.jaxpr) == 2 * 2 * 3 * 5 * 7
