"""Every number of every config has a range, and what is outside of it is told in a line before anything is built."""

import itertools
import math

import pytest
from flax import nnx

from configs import ablations, common, evaluate, finetune_retrieval, prepare, pretrain, recipes
from maskvlm_jax.ablate import ablation
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.prepare import preparation as preparing
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values, ranges, run_length
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.training import build
from tests.conftest import toy_config


def every_config():
    for recipe, size in itertools.product(recipes.RECIPES, common.WHOLE_SIZES):
        yield pretrain.get_config(f"recipe={recipe},size={size}")
        if recipe != "fastmim":  # which reads no text
            yield finetune_retrieval.get_config(f"recipe={recipe},size={size}")
    yield pretrain.get_config("data=coco+vg")
    yield from (ablations.get_config(), prepare.get_config(), evaluate.get_config())


def test_every_number_of_every_config_has_a_range_and_is_in_it():
    without = set()
    for config in every_config():
        values = plain_values.flatten(config.to_dict())
        ranges.check(values)
        without |= {key for key, _, _ in ranges.numbers(values) if ranges.range_of(key) is None}
    assert without == set()


def number_keys(recipe: str) -> list[str]:
    return [key for key, _, _ in ranges.numbers(plain_values.flatten(toy_config(f"recipe={recipe}").to_dict()))]


def set_number(config, key: str, value: float) -> None:
    *path, last = key.split(".")
    block = config
    for part in path:
        block = block[part]
    with block.ignore_type():
        block[last] = (value,) * len(block[last]) if isinstance(block[last], tuple) else type(block[last])(value)


@pytest.mark.parametrize("value", [0, -1, -7])
@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_zero_and_less_is_refused_with_its_name_or_builds(recipe, value):
    accepted = []
    for key in number_keys(recipe):
        config = toy_config(f"recipe={recipe}", masking__image_cell=1)
        set_number(config, key, value)
        try:
            configs.check(config)
            run_length.resolve_steps(config, 1_000)
        except UserError as error:
            assert "\n" not in str(error)
            assert key.split(".")[-1] in str(error), f"{key}: {error}"
            continue
        if key.startswith(("model", "masking", "objectives")):
            accepted.append((key, config))
    for _, config in accepted:
        arguments = build.model_arguments(config)
        nnx.eval_shape(lambda arguments=arguments: Learner(**arguments, rngs=nnx.Rngs(0)))
    if value == -7:
        assert accepted == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optim.accumulate", 0, "optim.accumulate is 0; give at least 1"),
        ("mesh.fsdp", 0, "mesh.fsdp is 0; give at least 1"),
        ("mesh.data", 0, "mesh.data is 0; give at least 1, or -1"),
        ("optim.lr", 0.0, "optim.lr is 0; give more than 0"),
        ("optim.lr", math.nan, "optim.lr is nan; give more than 0"),
        ("optim.lr", math.inf, "optim.lr is inf; give more than 0"),
        ("model.image.patch", 0, "model.image.patch is 0; give at least 1"),
        ("model.image.heads", 0, "model.image.heads is 0; give at least 1"),
        ("masking.image_cell", 0, "masking.image_cell is 0; give at least 1"),
        ("evaluation.batch_size", 0, "evaluation.batch_size is 0; give at least 1"),
        ("model.temperature", 0.0, "model.temperature is 0; give 0.001 to 0.5"),
        ("model.temperature", 0.9, "model.temperature is 0.9; give 0.001 to 0.5"),
        ("masking.text_ratio", 1.0, "masking.text_ratio is 1; give more than 0 and less than 1"),
        ("objectives.matching.ramp", (0.5, 0.2), r"ramp is \(0.5, 0.2\); give two numbers, the smaller first"),
        ("objectives.matching.ramp", (0.5, 1.2), r"ramp is \(0.5, 1.2\); give 0 to 1"),
        ("objectives.matching.hardness", -0.5, "hardness is -0.5; give at least 0"),
    ],
)
def test_a_number_out_of_range_is_told_with_what_may_take_its_place(key, value, told):
    config = toy_config()
    *path, last = key.split(".")
    block = config
    for part in path:
        block = block[part]
    block[last] = value
    with pytest.raises(UserError, match=told):
        configs.check(config)


def test_grids_and_preparations_are_checked_by_the_same_table(tmp_path):
    grid = ablations.get_config()
    for name, value in (("parallel", 0), ("steps", 0), ("seeds", ()), ("seeds", (0, -1)), ("finetune_steps", -1)):
        config = grid.copy_and_resolve_references()
        with config.ignore_type():
            config[name] = value
        with pytest.raises(UserError, match=f"^{name} is"):
            ablation.run(config, tmp_path / "grid")
    assert not (tmp_path / "grid").exists()
    config = prepare.get_config()
    config.out, config.data.limit = str(tmp_path / "out"), -1
    with pytest.raises(UserError, match=r"data\.limit is -1; give at least 0"):
        preparing.run(config, tmp_path)


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(7, 0.0, 7), (0, 3.0, 30), (0, 0.5, 5), (7, 3.0, 7), (0, 0.001, 1)]
)
def test_steps_follow_from_epochs_where_there_are_none(steps, epochs, expected):
    config = toy_config(steps=steps, epochs=epochs, batch_size=100, eval_every=-1, optim__warmup_steps=-1)
    run_length.resolve_steps(config, 1_000)
    assert (config.steps, config.eval_every) == (expected, 1)
    assert config.optim.warmup_steps == expected // 10


def test_the_paper_s_run_on_coco_alone_is_fifty_epochs_of_coco():
    config = pretrain.get_config("size=base,data=coco")
    run_length.resolve_steps(config, 113_287)
    assert config.steps == round(50 * 113_287 / 512) == 11_063
    assert config.optim.warmup_steps == 1_106 and config.eval_every == 221


def test_neither_steps_nor_epochs_is_told():
    with pytest.raises(UserError, match="steps and epochs are both 0"):
        run_length.resolve_steps(toy_config(steps=0), 1_000)


@pytest.mark.parametrize(("given", "steps", "epochs"), [(set(), 0, 50.0), ({"steps"}, 0, 50.0), ({"epochs"}, 0, 50.0)])
def test_a_flag_for_steps_or_epochs_sets_the_other_s_default_aside(given, steps, epochs):
    config = pretrain.get_config("size=base,data=coco")
    run_length.set_aside(config, given)
    assert (config.steps, config.epochs) == (steps, epochs)
    config.steps = 40
    with pytest.raises(UserError, match="steps is 40 and epochs 50; give one of the two"):
        run_length.set_aside(config, {"steps", "epochs"})
    run_length.set_aside(config, {"steps"})
    assert (config.steps, config.epochs) == (40, 0.0)
    tiny = pretrain.get_config()
    tiny.epochs = 2.0
    run_length.set_aside(tiny, {"epochs"})
    assert (tiny.steps, tiny.epochs) == (0, 2.0)
