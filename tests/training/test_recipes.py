"""Every recipe trains, its state is saved and read back whole, and what it lacks is told."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import ablations, finetune_retrieval, pretrain, recipes
from maskvlm_jax.data import examples, training_stream
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.batch import HOST_KEYS
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import files, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import parameter_path
from maskvlm_jax.settings import plain_values
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.training import build, initial_state, loop, train_step
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.training.progress import Progress
from tests.conftest import toy_config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    source = open_source(pretrain.get_config().data.to_dict(), "train", 48)
    captions = (caption for i in range(50) for caption in source.captions(i))
    tokenizers.save(tokenizers.train_wordpiece(captions, 256), folder)
    return tokenizers.load(folder)


def batches(config, tokenizer):
    """The stream, as it is put on devices."""
    source = open_source(config.data.to_dict(), "train", config.model.image.image_size)
    make = examples.make_example(config, source, tokenizer)
    options = {"batch_size": config.batch_size, "seed": 0, "start": 0, "stop": 4}
    for batch in training_stream.train_stream(Limited(source), make, **options, workers=0, threads=1):
        yield {name: value for name, value in batch.items() if name not in HOST_KEYS}


# Runs of maskvlm are tests of their own.
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, marks=[] if recipe == "mamo" else pytest.mark.slow)
        for recipe in sorted(set(recipes.RECIPES) - {"maskvlm"})
    ],
)
def test_a_run_that_is_read_back_goes_on_bit_for_bit(recipe, tokenizer, tmp_path):
    config = toy_config(f"recipe={recipe}", masking__image_cell=1)
    configs.check(config)
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    stream = [sharding.put(batch, mesh) for batch in batches(config, tokenizer)]
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, saved = built.init(), Checkpoints(tmp_path)
        step = built.step.lower(state, stream[0]).compile({"xla_backend_optimization_level": 0})
        first = jax.device_get(state)
        for batch in stream[:2]:
            state, values = step(state, batch)
            assert all(np.isfinite(value) for value in jax.device_get(values).values()), values
        saved.save(state, Progress(seen=2))
        saved.wait()
        restored, _ = saved.restore_newest(train_step.abstract_state(built.init, built.shardings))
        saved.close()
        for batch in stream[2:]:
            state, _ = step(state, batch)
            restored, _ = step(restored, batch)
    for straight, resumed in zip(*(jax.tree.leaves(jax.device_get(x)) for x in (state, restored)), strict=True):
        np.testing.assert_array_equal(straight, resumed)
    unmoved = [
        path
        for path, (old, new) in train_step_paths(first.params, jax.device_get(state.params)).items()
        if np.array_equal(old, new)
    ]
    assert unmoved == []
    assert (state.queue is not None) == (recipe in ("albef", "syncmask"))
    assert bool(state.ema) == (recipe in ("albef", "mamo", "semmim", "syncmask"))
    assert bool(state.kept) == (recipe == "semmim")


def train_step_paths(old, new) -> dict:
    """Both values of every parameter by path."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
    return {parameter_path(path): (value, other) for (path, value), other in leaves}


@pytest.mark.parametrize(
    "structure", [f"recipe={recipe},size={size}" for recipe in recipes.RECIPES for size in ("tiny", "base")]
)
def test_every_recipe_is_consistent_pre_trained_and_fine_tuned(structure):
    configs_of = [pretrain.get_config(structure)]
    if configs_of[0].model.text.kind != "none":
        configs_of.append(finetune_retrieval.get_config(structure))
    for config in configs_of:
        configs.check(config)
        arguments = build.model_arguments(config)
        model = nnx.eval_shape(lambda arguments=arguments: Learner(**arguments, rngs=nnx.Rngs(0)))
        assert set(model.objectives) == {label for label, one in config.objectives.items() if one.weight}


def test_a_recipe_of_pictures_alone_is_not_tuned_for_retrieval():
    with pytest.raises(ValueError, match=r"fastmim-tiny-scenes reads no text: start another recipe"):
        finetune_retrieval.get_config("recipe=fastmim")


@pytest.mark.parametrize("table", ablations.TABLES)
def test_every_grid_has_rows_that_can_be_told_apart(table):
    config = ablations.get_config(f"table={table}")
    names = [name for name, _, _ in config.rows]
    assert len(set(names)) == len(names) > 1
    for _, recipe, flags in config.rows:
        there = plain_values.flatten(pretrain.get_config(f"recipe={recipe},{config.structure}").to_dict())
        blocks = {key.rpartition(".")[0] for key in there}
        assert {flag.split("=")[0] for flag in flags} <= there.keys() | blocks


@pytest.mark.parametrize(
    ("recipe", "values", "message"),
    [
        ("mamo", {"optim__ema_decay": 0.0}, "optim.ema_decay=0.995"),
        ("mlim", {"objectives__masked_text__name": "nothing"}, "no objective 'nothing'"),
        ("m3ae", {"masking__whole_word": True}, "exact count"),
        ("m3ae", {"model__image__hidden": "token"}, "does not go with"),
        ("mlim", {"model__image__patch": 12, "model__image__image_size": 24, "masking__image_cell": 1}, "power of two"),
        ("mamo", {"model__embed": 0}, "objectives.contrastive needs a contrastive space"),
        ("maskvlm", {"model__image__hidden": "none"}, "objectives.masked_image reads masked pictures"),
        ("albef", {"objectives__masked_text__other": "masked"}, "objectives.masked_text reads masked pictures"),
        ("maskvlm", {"model__image__class_token": False}, "class_token"),
        ("maskvlm", {"model__fusion__streams": "text"}, "set model.fusion.streams to both"),
        ("albef", {"model__fusion__streams": "txt"}, "choose among both, text"),
        ("m3ae", {"model__fusion__decoder__depth": 0}, "fusion.decoder.depth is 0"),
        ("m3ae_med", {"model__fusion__decoder__norm": "none"}, "model.fusion.decoder.norm"),
        ("semmim", {"objectives__agreement__teacher_temperature": (0.04,)}, "give two numbers"),
        (
            "semmim",
            {"model__image__hidden": "drop", "objectives__masked_prototype__prediction": "image"},
            "set model.image.hidden to one of token, pixel",
        ),
        ("mlim", {"model__image__embedding": "cnn"}, "choose among patch, conv"),
        ("mlim", {"masking__light_ratio": 0.9}, "light_ratio 0.9 must not be above"),
        ("mlim", {"model__image__hidden": "pixel"}, "hidden=pixel is a colour and model.shared_mask a word"),
        (
            "fastmim",
            {"objectives__masked_patches__cell": 3},
            r"cell 3 does not divide .*patch 8; set .*cell=[24]$",
        ),
        ("fastmim", {"objectives__masked_patches__target": "colour"}, "choose among hog, pixels"),
        ("fastmim", {"objectives__masked_patches__decoder__depth": 0}, "decoder.depth is 0; give at least 1"),
        ("fastmim", {"objectives__masked_patches__decoder__heads": 3}, "heads 3 does not divide its width 128"),
        ("fastmim", {"model__embed": 8}, "model.text.kind=none leaves pictures alone"),
        ("fastmim", {"model__image__hidden": "none"}, "objectives.masked_patches reads masked pictures"),
    ],
)
def test_what_does_not_fit_together_is_refused(recipe, values, message, tmp_path):
    with pytest.raises(UserError, match=message):
        loop.run(toy_config(f"recipe={recipe}", **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_kind_is_not_started_from(tmp_path):
    trained = plain_values.to_json(pretrain.get_config("recipe=maskvlm"))
    files.write_json(tmp_path / "config.json", trained)
    for recipe, values, told in (
        ("albef", {}, "model.fusion.streams"),
        ("maskvlm", {"model__fusion__heads": 2}, "model.fusion.heads"),
    ):
        config = toy_config(f"recipe={recipe}", **values, checkpoint=str(tmp_path))
        with pytest.raises(UserError, match=told):
            loop.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, True),
        ({"weight": 0.1}, True),
        ({"hardness": 0.5, "ramp": (0.1, 0.2), "negatives": "random", "pool": "local"}, True),
        ({"name": "another"}, False),
        ({"decoder": {"depth": 2}}, False),
    ],
)
def test_a_head_is_taken_over_where_label_name_and_sizes_are_the_same(changes, shared):
    trained = {"name": "matching", "weight": 1.0, "hardness": 1.0, "ramp": [0.0, 0.0], "pool": "global"}
    assert initial_state._same_head(trained | changes, trained) is shared
    assert initial_state._same_head(trained, None) is False
    assert initial_state._same_head(trained, trained | {"weight": 0.0}) is False


def test_fine_tuning_without_a_model_is_refused(tmp_path):
    config = finetune_retrieval.get_config("recipe=mlim")
    with pytest.raises(UserError, match="set --config"):
        loop.run(config, tmp_path / "run")
    config.checkpoint = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="there is no workdir"):
        loop.run(config, tmp_path / "run")
