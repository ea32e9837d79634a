"""Every named config builds, and the base size is the paper's model."""

import itertools

import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import ablations, common, data_sets, evaluate, pretrain, recipes
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.training import build, optim, train_step


def shapes(config):
    """Abstract parameters of a config."""
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    arguments = build.model_arguments(config)
    return train_step.abstract_params(lambda: Learner(**arguments, rngs=nnx.Rngs(0)), mesh)[1]


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("size, data", itertools.product(common.WHOLE_SIZES, data_sets.DATA))
def test_every_size_on_every_set_builds_and_is_consistent(size, data):
    config = pretrain.get_config(f"size={size},data={data}")
    configs.check(config)
    optim.make_schedule(
        lr=config.optim.lr,
        warmup_steps=config.optim.warmup_steps,
        steps=config.steps,
        final_ratio=config.optim.final_ratio,
    )
    if data == data_sets.DATA[0]:  # the model does not depend on the set
        assert shapes(config)


@pytest.mark.parametrize("data", ("run", *data_sets.DATA))
def test_every_evaluation_config_builds(data):
    config = evaluate.get_config("" if data == "run" else f"data={data}")
    assert config.task == "evaluate"
    merged = plain_values.merge_evaluation(pretrain.get_config(), config)
    configs.check(merged)
    assert merged.data.source == data_sets.data_block("scenes" if data == "run" else data).source


def test_a_run_on_a_mixture_is_scored_on_a_set_that_is_named():
    trained = pretrain.get_config("data=coco+cc3m")
    merged = plain_values.merge_evaluation(trained.copy_and_resolve_references(), evaluate.get_config("data=flickr30k"))
    assert (merged.data.source, merged.data.captions, merged.data.mixture.to_dict()) == (
        "files",
        "dataset_flickr30k.json",
        {},
    )
    config = evaluate.get_config()
    merged = plain_values.merge_evaluation(trained.copy_and_resolve_references(), config)
    assert list(merged.data.mixture) == ["cc3m", "coco"] and merged.data.evaluation_set == "coco"
    config.data.root = "elsewhere"
    with pytest.raises(UserError, match=r"trained on a mixture, which has no data\.root; name the set"):
        plain_values.merge_evaluation(trained, config)


def test_base_is_the_paper_s_model():
    """Counts by hand: V x D words, L x D positions; 12 D^2 + 13 D a block, 16 D^2 + 19 D a cross block, D = 768."""
    params = shapes(pretrain.get_config("size=base,data=coco"))
    vlm, heads = params["vlm"], params["objectives"]
    d, block, cross = 768, 12 * 768**2 + 13 * 768, 16 * 768**2 + 19 * 768
    assert count(vlm["image_encoder"]) == (16 * 16 * 3 + 1) * d + 2 * d + 197 * d + 12 * block + 2 * d == 85_799_424
    assert count(vlm["text_encoder"]) == 50_265 * d + 30 * d + 2 * d + 12 * block == 123_682_560
    assert count(vlm["fusion"]["image_stream"]) == count(vlm["fusion"]["text_stream"]) == 3 * cross == 28_355_328
    assert count(heads["masked_image"]["decoder"]) == 3 * cross
    assert count(heads["masked_image"]["to_pixels"]) == (d + 1) * 768
    assert count(heads["masked_text"]["to_words"]) == (d + 1) * 50_265
    assert count(vlm["image_projection"]) == count(vlm["text_projection"]) == (d + 1) * 256
    assert count(heads["matching"]) == (d + 1) * 2
    assert count(params) == 334_187_612


def test_differing_keys_names_what_matters_and_nothing_else():
    old, new = pretrain.get_config(), pretrain.get_config()
    new.log_every, new.data.workers, new.evaluation.limit, new.mesh.fsdp = 3, 5, 7, 2
    assert workdirs.differing_keys(plain_values.to_json(old), plain_values.to_json(new)) == []
    new.optim.lr, new.data.augment.flip, new.seed = 0.5, True, 9
    assert workdirs.differing_keys(plain_values.to_json(old), plain_values.to_json(new)) == [
        "data.augment.flip",
        "optim.lr",
        "seed",
    ]


def test_parse_arg_takes_the_first_value_where_none_is_given():
    assert common.parse_arg("b=2", a=("1", "2"), b=("1", "2")) == {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match="no structure 'c'; choose among a, b"):
        common.parse_arg("c=2", a=("1",), b=("1",))


def test_configs_hold_plain_values_only():
    def plain(value):
        if isinstance(value, ConfigDict):
            return all(plain(v) for v in value.values())
        return isinstance(value, (int, float, str, bool, tuple))

    assert all(plain(pretrain.get_config(f"size={size}")) for size in common.WHOLE_SIZES)


def test_folders_of_a_mixture_s_sets_may_change_and_their_weights_may_not():
    old, new = (pretrain.get_config("data=coco+cc3m").to_dict() for _ in range(2))
    new["data"]["mixture"]["coco"] |= {"root": "/elsewhere", "weight": 2.0}
    assert workdirs.differing_keys(old, new) == ["data.mixture.coco.weight"]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("size", common.WHOLE_SIZES)
def test_from_scratch_encoders_train_at_the_rate_of_all_else(recipe, size):
    config = pretrain.get_config(f"recipe={recipe},size={size}")
    assert config.optim.encoder_lr == config.optim.lr


@pytest.mark.parametrize("size", ["tiny", "mini", "small"])
def test_sizes_that_train_from_scratch_weight_their_losses_and_ablations_do_as_they_do(size):
    weights = {label: objective.weight for label, objective in pretrain.get_config(f"size={size}").objectives.items()}
    assert weights == {"contrastive": 0.3, "masked_image": 3.0, "masked_text": 1.0, "matching": 1.0}
    rows = {name: flags for name, _, flags in ablations.get_config(f"table=losses,size={size}").rows}
    assert rows["ITC+ITM+MLM+MIM"] == ()
    assert all(flag.endswith(".weight=0.0") for flags in rows.values() for flag in flags)


@pytest.mark.parametrize(("data", "ramp"), [("scenes", (0.0, 0.0)), ("flickr8k", (0.3, 0.8))])
def test_negatives_are_uniform_at_first_on_photographs(data, ramp):
    assert pretrain.get_config(f"size=mini,data={data}").objectives.matching.ramp == ramp
