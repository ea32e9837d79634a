"""Frozen parameters stay as they are: no gradient, no moments; all else learns as if they were constants."""

import json
import shutil

import jax
import numpy as np
import pytest

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build
from tests.conftest import toy_config, toy_flags
from tests.reference import toy
from tests.training.steps import first_gradients, mesh_of, one_device, train

FREEZE = ("vlm/image_encoder", "text_encoder/blocks")


def is_still(path):
    return path.endswith("mask_token") is False and any(pattern in path for pattern in FREEZE)


@pytest.mark.parametrize("axes", [None, pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_frozen_parameters_are_the_initial_ones_and_have_no_moments(axes):
    config, mesh = toy_config(optim__freeze=FREEZE), mesh_of(*axes) if axes else one_device()
    with jax.set_mesh(mesh):
        first = build.build(config, mesh).init()
        before = toy.by_path(jax.device_get(first.params))
        moments = sum(x.size for x in jax.tree.leaves(first.opt_state) if x.ndim)
    state, lines = train(config, mesh, 3)
    after = toy.by_path(state.params)
    still = {path for path in before if is_still(path)}
    assert still and "vlm/image_encoder/mask_token" not in still
    for path, value in before.items():
        assert np.array_equal(value, after[path]) == (path in still), path
    assert moments == 2 * sum(value.size for path, value in before.items() if path not in still and value.ndim)
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gradient_of_all_else_is_that_of_before(accumulate):
    values = {"optim__accumulate": accumulate}
    (ours, loss, _), (whole, expected, _) = (
        first_gradients(toy_config(**values, **more)) for more in ({"optim__freeze": FREEZE}, {})
    )
    ours, whole = toy.by_path(ours), toy.by_path(whole)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for path, value in whole.items():
        if is_still(path):
            value = np.zeros_like(value)
        np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("image_encodr",), r"optim\.freeze has 'image_encodr', which matches no parameter's path"),
        (("(",), r"optim\.freeze has '\(', which is no regular expression"),
        (("",), None),
    ],
)
def test_expressions_that_cannot_be_meant_are_refused(freeze, message):
    config = toy_config("recipe=clip", optim__freeze=freeze)
    with pytest.raises(UserError, match=message or "holds every parameter: nothing is left to learn"):
        build.frozen_parameters(config)


@pytest.mark.slow
def test_a_run_tells_what_is_frozen_and_goes_on(cli, tmp_path):
    flags = [
        "--config=configs/pretrain.py",
        *toy_flags(optim__freeze="('text_encoder',)", evaluation__extra_splits="()"),
    ]
    digests = []
    for _ in range(2):
        process = cli(*flags, "--config.steps=4", f"--workdir={tmp_path / 'run'}")
        assert process.returncode == 0, process.stderr
        assert "parameters stay as they are (optim.freeze):\n  vlm/text_encoder/" in process.stdout
        result = tmp_path / "run" / "result.json"
        digests.append(json.loads(result.read_text())["protocol"]["parameters_sha256"])
        result.unlink()  # so that the same command goes on from its last checkpoints
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert digests[0] == digests[1]
