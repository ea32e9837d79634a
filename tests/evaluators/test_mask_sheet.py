"""The sheet of masks that are chosen on the device."""

import jax
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.evaluators import mask_sheet
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.objectives.maskers import base
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import toy


@pytest.fixture(scope="module")
def learner():
    config = toy_config("recipe=syncmask", **SIZES)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


def chosen(learner, batch):
    """By a program that is quick to compile."""
    graphdef, params = nnx.split(learner)
    function = jax.jit(lambda params, batch: mask_sheet.chosen(nnx.merge(graphdef, params), batch))
    return jax.device_get(function.lower(params, batch).compile({"xla_backend_optimization_level": 0})(params, batch))


def test_shares_are_those_of_many_draws_and_the_masks_of_one(learner):
    batch = batch_for(learner)
    found = chosen(learner, batch)
    for share, masked, host in (
        (found.image_share_BN, found.image_masked_BN, batch["image_masked"]),
        (found.text_share_BL, found.text_masked_BL, batch["text_masked"]),
    ):
        np.testing.assert_allclose(share.sum(axis=1), host.sum(axis=1), rtol=1e-5)
        np.testing.assert_array_equal(masked.sum(axis=1), host.sum(axis=1))
        assert ((share > 0) | ~masked).all() and share.max() <= 1


def test_a_modality_that_a_masker_leaves_alone_is_masked_as_the_host_did(learner):
    batch = batch_for(learner)
    own = learner.masker

    class PicturesAlone(base.Masker):
        def __call__(self, teacher, key):
            return base.Masks(~teacher.batch["image_masked"], None)

    learner.masker = nnx.static(PicturesAlone())
    try:
        found = chosen(learner, batch)
    finally:
        learner.masker = own
    np.testing.assert_array_equal(found.image_masked_BN, ~batch["image_masked"])
    np.testing.assert_array_equal(found.text_masked_BL, batch["text_masked"])
    np.testing.assert_array_equal(found.text_share_BL, batch["text_masked"])


def test_what_is_always_hidden_is_orange_and_what_never_is_stays_grey():
    pixels = np.full((4, 4, 3), 200, np.uint8)
    share = mask_sheet._over(pixels, np.array([1.0, 0.0, 0.5, 0.0]))
    tinted = mask_sheet._tinted(pixels, share)
    assert share.shape == (4, 4, 1) and share[0, 0] == 1 and share[3, 0] == 0.5 and share[0, 3] == 0
    np.testing.assert_array_equal(tinted[0, 0], [224, 140, 36])  # the picture shows through
    np.testing.assert_array_equal(tinted[0, 3], [100, 100, 100])
    assert mask_sheet._colour(0.0) == (255, 255, 255) and mask_sheet._colour(1.0) == (255, 150, 20)
