"""A config.json of an older release says what it said then."""

import json

import numpy as np
import pytest

from configs import pretrain
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values, upgrade


def format_1(recipe: str) -> dict:
    """A config as the first format had it: without the keys that came later."""
    config = plain_values.to_json(pretrain.get_config(f"recipe={recipe}"))
    for key in ("epochs", "checkpoint_step", "deterministic"):
        del config[key]
    del config["model"]["temperature_scale"]
    del config["evaluation"]["choose_images"]
    config["evaluation"]["rerank_score"] = "itm+itc"
    for key in ("temperature_rate", "ema_ramp"):
        del config["optim"][key]
    for objective in config["objectives"].values():
        for key in ("hardness", "ramp"):
            objective.pop(key, None)
    return config


# The recipes that there were.
@pytest.mark.parametrize("recipe", ["maskvlm", "mamo", "mlim", "m3ae", "albef", "clip"])
def test_an_older_config_has_every_key_of_this_release(recipe):
    now = plain_values.to_json(pretrain.get_config(f"recipe={recipe}"))
    before = upgrade.upgrade(format_1(recipe))
    assert plain_values.flatten(before).keys() == plain_values.flatten(now).keys()
    assert before["model"]["temperature_scale"] == "linear"
    assert before["evaluation"]["rerank_score"] == "itm+cosine"  # what that name meant
    assert before["optim"]["ema_ramp"] is False
    for objective in before["objectives"].values():
        assert objective.get("hardness", 1.0) == 1.0 and objective.get("ramp", [0.0, 0.0]) == [0.0, 0.0]


def test_a_sum_over_the_width_keeps_its_weight_in_the_whole():
    before = upgrade.upgrade(format_1("mamo"))
    np.testing.assert_allclose(before["objectives"]["masked_feature"]["weight"], 128**0.5)


def test_parts_of_a_task_are_found_where_tasks_are_now():
    config = {**plain_values.to_json(pretrain.get_config()), "format": 4}
    named = {"label": {"name": "maskvlm_jax.tasks.classification"}}
    config |= {"objectives": named, "evals": dict(named), "data": config["data"] | {"fields": dict(named)}}
    found = upgrade.upgrade(config)
    for block in (found["objectives"], found["evals"], found["data"]["fields"]):
        assert block["label"]["name"] == "maskvlm_jax.training.tasks.classification"


def test_heads_of_the_contrastive_space_stay_what_they_were():
    config = {**plain_values.to_json(pretrain.get_config()), "format": 5}
    config["model"]["pooling"] = {"image": "both", "text": "mean", "layers": 2}
    expected = {"image": "both", "text": "mean", "layers": 2, "dropout": 0.0, "centred": False}
    assert upgrade.upgrade(config)["model"]["pooling"] == expected


def test_what_is_written_is_read_as_it_was(tmp_path):
    config = plain_values.to_json(pretrain.get_config())
    upgrade.write(tmp_path / "config.json", config)
    assert upgrade.read(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text())["format"] == upgrade.FORMAT


def test_a_format_of_a_later_release_is_told():
    with pytest.raises(UserError, match="written by a later release"):
        upgrade.upgrade({"format": upgrade.FORMAT + 1})
