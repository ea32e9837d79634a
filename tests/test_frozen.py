"""Workdirs of older releases go on, are scored and are fine-tuned to the numbers that those releases had."""

import json
import tarfile

import pytest

from configs import pretrain
from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.settings import plain_values, upgrade
from tests.conftest import ROOT
from tests.frozen import runs

ARCHIVES = sorted((ROOT / "tests" / "frozen").glob("format_*/*.tar.xz"))
NAMES = [f"{path.parent.name}/{path.name.partition('.')[0]}" for path in ARCHIVES]
ALWAYS = ("maskvlm",)  # the others take as long each, and are run with -m slow


def recipe_of(archive) -> str:
    return archive.name.partition(".")[0]


@pytest.mark.parametrize("archive", ARCHIVES, ids=NAMES)
def test_an_old_config_says_what_the_recipe_says_today(archive):
    with tarfile.open(archive) as tar:
        written = json.load(tar.extractfile(f"{recipe_of(archive)}/config.json"))
    config = runs.config_of(pretrain, recipe_of(archive))
    run_tokenizer.resolve_mask_id(config)
    today = plain_values.to_json(config)
    assert plain_values.flatten(upgrade.upgrade(written)) == plain_values.flatten(today)


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(path, id=name, marks=[] if recipe_of(path) in ALWAYS else pytest.mark.slow)
        for path, name in zip(ARCHIVES, NAMES, strict=True)
    ],
)
def test_an_old_workdir_goes_on_is_scored_and_fine_tuned_to_the_same_numbers(archive):
    expected = json.loads(archive.with_name(f"{recipe_of(archive)}.json").read_text())
    found = json.loads(runs.apart("again", str(archive)).splitlines()[-1])
    # Programs of another JAX or another kind of processor round otherwise.
    same_bits = found.pop("made_on") == expected.pop("made_on")
    assert found.keys() == expected.keys()
    for kind, told in expected.items():
        ours = found[kind]
        assert ours["stream"] == told["stream"]
        both = ours.get("losses", {}).keys() & told.get("losses", {}).keys()  # a run's first step is not logged
        assert both or kind == "scored"
        assert {step: ours["losses"][step] for step in both} == pytest.approx(
            {step: told["losses"][step] for step in both}, rel=1e-4
        )
        assert ours["metrics"].keys() == told["metrics"].keys()
        if same_bits:
            assert ours["metrics"] == told["metrics"]
            assert ours["parameters_sha256"] == told["parameters_sha256"]
