"""What a config says of blocks reaches them, and kinds of blocks are found by name or by path."""

import pytest
from flax import nnx

from maskvlm_jax.models.block import BlockSpec, block_class
from maskvlm_jax.models.blocks import dense
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config


def abstract(config) -> Learner:
    """The model of a config, shapes alone."""
    rules.check(config)
    return nnx.eval_shape(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


def test_a_spec_takes_its_own_values_of_a_part_and_leaves_the_others():
    spec, rest = BlockSpec.split({"width": 8, "heads": 2, "norm": "post", "depth": 3, "patch": 4})
    assert spec == BlockSpec(width=8, heads=2, norm="post") and rest == {"depth": 3, "patch": 4}


def test_every_stack_has_the_activation_eps_and_norm_of_its_part():
    values = {"model__image": "quick_gelu", "model__text": "gelu_tanh", "model__fusion": "quick_gelu"}
    values = {f"{part}__activation": name for part, name in values.items()}
    values |= {"model__image__norm": "post", "model__text__eps": 1e-3, "model__fusion__norm": "pre"}
    model = abstract(toy_config(**values, objectives__masked_image__decoder__eps=1e-2))
    image, text, fusion = model.vlm.image_encoder, model.vlm.text_encoder, model.vlm.fusion.text_stream
    blocks = [part.blocks.block for part in (image, text, fusion, model.objectives["masked_image"].decoder)]
    assert [block.feed_forward.activation for block in blocks] == ["quick_gelu", "gelu_tanh", "quick_gelu", "gelu"]
    assert [block.norm1.eps for block in blocks] == [1e-6, 1e-3, 1e-5, 1e-2]
    assert [block.pre for block in blocks] == [False, True, True, True]
    assert image.norm is None and text.norm.eps == text.embedding_norm.eps == 1e-3 and fusion.norm.eps == 1e-5


def test_dense_blocks_are_found_by_name():
    assert block_class("dense") is dense.Block and block_class("dense", "CrossBlock") is dense.CrossBlock


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__image__kind": "sparse"}, r"model\.image\.kind: there is no block 'sparse'; choose among dense"),
        ({"model__fusion__block_kind": "sparse"}, r"model\.fusion\.block_kind: there is no cross block 'sparse'"),
        ({"model__text__kind": "nowhere/mine.py"}, r"model\.text\.kind: there is no file .*nowhere/mine\.py"),
        ({"model__image__norm": "between"}, r"model\.image\.norm is 'between'; choose among pre, post"),
        ({"model__text__activation": "relu"}, r"model\.text\.activation is 'relu'; choose among gelu, gelu_tanh"),
        ({"objectives__masked_image__decoder__eps": 0.0}, r"decoder\.eps is 0; give more than 0"),
    ],
)
def test_blocks_that_are_not_there_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        rules.check(toy_config(**values))


def test_a_file_without_cross_blocks_is_refused_for_a_fusion(tmp_path):
    path = tmp_path / "encoder_only.py"
    path.write_text("from maskvlm_jax.models.blocks.dense import Block\n")
    rules.check(toy_config(model__image__kind=str(path)))
    with pytest.raises(UserError, match=r"encoder_only\.py is no cross block: it has no CrossBlock"):
        rules.check(toy_config(model__fusion__block_kind=str(path)))
