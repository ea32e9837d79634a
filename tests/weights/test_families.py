"""Encoders of every family give what PyTorch gives; files that are not whole, or of another kind, are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder, normalised
from maskvlm_jax.parallel.parameters import map_by_path
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.train_step import split_model
from maskvlm_jax.weights import encoders
from tests.conftest import ROOT, toy_config
from tests.reference import toy

FOLDER = ROOT / "tests" / "reference" / "encoders"


IMAGE = ["vit", "vit_for_classification", "deit", "vit_mae", "dinov2", "dinov2_with_registers", "clip_vision"]
IMAGE += ["clip_vision_laion", "siglip_vision", "google_npz", "timm_vit", "timm_vit_registers"]


TEXT = ["bert", "bert_mlm", "roberta", "roberta_mlm", "distilbert"]


def path_of(name):
    path = FOLDER / name
    return str(path / "google_npz.npz") if name == "google_npz" else str(path)


def config_of(name, modality, *, pixels=16, length=9, **values):
    """A config whose encoder is that of a folder."""
    sizes = {"model__image__image_size": pixels, "model__text__max_length": length} | values
    config = toy_config(**sizes, **{f"init__{modality}": path_of(name)})
    encoders.complete(config, ())
    return config


def filled(module, encoder):
    """The module with the encoder's parameters; the paths of its own that these leave out."""
    graphdef, params = split_model(module)
    left = []

    def value(path, own):
        if path not in encoder.parameters:
            left.append(path)
            return own
        assert encoder.parameters[path].shape == own.shape, path
        return jnp.asarray(encoder.parameters[path])

    return nnx.merge(graphdef, map_by_path(value, params)), left


def split(block):
    shared = {"init_std": 0.0, "remat": "none", "unroll": True, "dtype": "float32"}
    return BlockSpec.split(block.to_dict() | shared)


@pytest.mark.parametrize("pixels", [16, 24])
@pytest.mark.parametrize("name", IMAGE)
def test_an_image_encoder_gives_what_it_gave(name, pixels):
    config, golden = config_of(name, "image", pixels=pixels), np.load(FOLDER / name / "golden.npz")
    spec, rest = split(config.model.image)
    encoder = encoders.read(config, "image")
    module, left = filled(toy.randomised(lambda: ImageEncoder(spec, **rest, rngs=nnx.Rngs(0))), encoder)
    assert left in ([], ["mask_token"])
    found = np.asarray(jax.jit(lambda x: module(normalised(x)))(golden[f"pixels_{pixels}"]))
    expected = golden[f"output_{pixels}"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", TEXT)
def test_a_text_encoder_gives_what_it_gave(name):
    config, golden = config_of(name, "text"), np.load(FOLDER / name / "golden.npz")
    spec, rest = split(config.model.text)
    module, left = filled(
        toy.randomised(lambda: TextEncoder(spec, **rest, rngs=nnx.Rngs(0))), encoders.read(config, "text")
    )
    assert left == []
    valid = golden["valid"]
    found = np.asarray(jax.jit(module)(golden["tokens"], valid))
    np.testing.assert_allclose(found[valid], golden["output"][valid], atol=1e-5 * np.abs(golden["output"]).max())


@pytest.mark.parametrize(
    ("name", "modality", "message"),
    [
        ("beit", "image", "cannot be held exactly: BEiT adds relative positions"),
        ("mpnet", "text", "cannot be held exactly: MPNet adds relative positions"),
        ("clip_text", "text", "cannot be held exactly: CLIP's text tower attends backwards only"),
        ("dinov2_swiglu", "image", r"has gated feed-forward layers \(SwiGLU\)"),
        ("bert", "image", "reads texts; it is no encoder for init.image"),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_can(name, modality, message):
    with pytest.raises(UserError, match=message):
        config_of(name, modality)


def test_a_flag_that_says_otherwise_is_refused_with_both_values():
    config = toy_config(init__image=path_of("vit"), model__image__depth=5)
    with pytest.raises(UserError, match=r"model\.image\.depth is 5 by a flag, .*vit has 2; leave the flag out"):
        encoders.complete(config, ["model.image.depth"])


def test_what_reads_an_encoder_is_as_wide_as_it():
    config = config_of("vit", "image")
    decoder = config.objectives.masked_image.decoder
    assert (config.model.image.width, config.model.fusion.width, decoder.width) == (16, 16, 16)
    assert (config.model.image.eps, config.model.image.patch, decoder.heads) == (1e-12, 4, 2)


def test_captions_longer_than_there_are_positions_are_refused():
    config = config_of("bert", "text", length=21)
    with pytest.raises(UserError, match=r"has positions for 20 tokens, model\.text\.max_length is 21"):
        encoders.read(config, "text")


def test_single_streams_and_checkpoints_do_not_go_with_encoders():
    config = toy_config("recipe=mlim", init__image=path_of("vit"))
    with pytest.raises(UserError, match="goes with recipes whose encoders have blocks"):
        encoders.complete(config, ())
    config = toy_config(init__image=path_of("vit"), checkpoint="runs/a")
    with pytest.raises(UserError, match=r"both init\.image and checkpoint are given"):
        encoders.complete(config, ())
