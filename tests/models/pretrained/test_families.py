"""Encoders of every family give what PyTorch gives; files that are not whole, or of another kind, are refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder, normalised
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.training.train_step import split_model
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


@pytest.mark.parametrize("stacked", [False, True])
def test_an_image_tower_of_big_vision_is_what_it_is_in_transformers(tmp_path, stacked):
    theirs = load_file(FOLDER / "siglip_vision" / "model.safetensors")
    theirs = {name.removeprefix("vision_model."): value for name, value in theirs.items()}

    def dense(name, layer, inner=(16,), outer=(16,)):
        weight, bias = theirs[f"encoder.layers.{layer}.{name}.weight"], theirs[f"encoder.layers.{layer}.{name}.bias"]
        return {"kernel": weight.T.reshape(*inner, *outer), "bias": bias.reshape(outer)}

    def norm(name):
        return {"scale": theirs[f"{name}.weight"], "bias": theirs[f"{name}.bias"]}

    def block(layer):
        attention = {
            name: dense(f"self_attn.{name[0]}_proj", layer, outer=(2, 8)) for name in ("query", "key", "value")
        }
        attention["out"] = dense("self_attn.out_proj", layer, inner=(2, 8))
        mlp = {"Dense_0": dense("mlp.fc1", layer, outer=(32,)), "Dense_1": dense("mlp.fc2", layer, inner=(32,))}
        norms = {f"LayerNorm_{n}": norm(f"encoder.layers.{layer}.layer_norm{n + 1}") for n in (0, 1)}
        return norms | {"MultiHeadDotProductAttention_0": attention, "MlpBlock_0": mlp}

    layers = [block(layer) for layer in (0, 1)]
    tower = {f"encoderblock_{number}": one for number, one in enumerate(layers)}
    if stacked:
        tower = {"encoderblock": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    patches = theirs["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
    image = {
        "embedding": {"kernel": patches, "bias": theirs["embeddings.patch_embedding.bias"]},
        "pos_embedding": theirs["embeddings.position_embedding.weight"][None],
        "Transformer": tower | {"encoder_norm": norm("post_layernorm")},
        "MAPHead_0": {"probe": np.ones((1, 1, 16), np.float32)},
    }
    params = {"img": image, "txt": {"head": {"bias": np.zeros(3, np.float32)}}, "t": np.ones(1), "b": np.ones(1)}
    flat = flatten_dict({"params": params}, sep="/")
    np.savez(tmp_path / "siglip.npz", **flat)
    config = toy_config(model__image__image_size=16, init__image=str(tmp_path / "siglip.npz"))
    encoders.complete(config, ())
    expected_config = config_of("siglip_vision", "image")
    assert config.model.image.to_dict() == expected_config.model.image.to_dict()
    toy.assert_trees_close(
        encoders.read(config, "image").parameters, encoders.read(expected_config, "image").parameters, 0
    )


def test_a_class_token_of_big_vision_has_no_position(tmp_path):
    arrays = dict(np.load(path_of("google_npz")))
    renamed = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "LayerNorm_2": "LayerNorm_1"}
    renamed |= {"MlpBlock_3": "MlpBlock_0", "Transformer/posembed_input/pos_embedding": "pos_embedding"}
    moved = {}
    for name, value in arrays.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        moved[name] = value
    moved["pos_embedding"] = moved["pos_embedding"][:, 1:]
    np.savez(tmp_path / "vit.npz", **moved)
    config = toy_config(model__image__image_size=16, init__image=str(tmp_path / "vit.npz"))
    encoders.complete(config, ())
    found, before = (encoders.read(one, "image").parameters for one in (config, config_of("google_npz", "image")))
    assert config.model.image.activation == "gelu_tanh" and not found["position"][0, 0].any()
    np.testing.assert_array_equal(found["position"][0, 1:], before["position"][0, 1:])
    np.testing.assert_array_equal(found["class_token"], before["class_token"])


@pytest.mark.parametrize(("name", "modality"), [("vit", "image"), ("bert", "text")])
def test_a_file_of_flax_is_read_as_that_of_pytorch(tmp_path, name, modality):
    tree = {}
    for path, value in load_file(FOLDER / name / "model.safetensors").items():
        *before, last = path.split(".")
        if last == "weight" and value.ndim == 4:
            last, value = "kernel", value.transpose(2, 3, 1, 0)
        elif last == "weight" and "embeddings" in before and value.ndim == 2:
            last = "embedding"
        elif last == "weight":
            last, value = ("kernel", value.T) if value.ndim == 2 else ("scale", value)
        tree[(*before, last)] = value
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    (folder / "model.safetensors").unlink()
    content = serialization.msgpack_serialize(unflatten_dict(tree))
    (folder / "flax_model.msgpack").write_bytes(content)

    def read():
        config = toy_config(
            model__image__image_size=16, model__text__max_length=9, **{f"init__{modality}": str(folder)}
        )
        encoders.complete(config, ())
        return encoders.read(config, modality).parameters

    toy.assert_trees_close(read(), encoders.read(config_of(name, modality), modality).parameters, 0)
    (folder / "flax_model.msgpack").write_bytes(content[:-50])
    with pytest.raises(UserError, match=r"flax_model\.msgpack is damaged or cut off"):
        read()
