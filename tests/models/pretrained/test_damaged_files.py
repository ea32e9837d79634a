"""Encoders whose files are damaged, of another kind, or not there: one line each, and nothing is run."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT, toy_config

FOLDER = ROOT / "tests" / "reference" / "encoders"


def path_of(name):
    path = FOLDER / name
    return str(path / "google_npz.npz") if name == "google_npz" else str(path)


@pytest.fixture
def copied(tmp_path):
    """A folder that may be damaged."""

    def copy(name="vit"):
        shutil.copytree(FOLDER / name, tmp_path / name)
        return tmp_path / name

    return copy


def read(folder, modality="image"):
    config = toy_config(model__image__image_size=16, **{f"init__{modality}": str(folder)})
    encoders.complete(config, ())
    return encoders.read(config, modality)


def rewritten(folder, change):
    """The folder's safetensors file with another header."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_an_array_that_is_missing_or_too_much_is_named(copied):
    folder = copied()
    rewritten(folder, lambda header: header.pop("layernorm.weight"))
    with pytest.raises(UserError, match=r"has no layernorm.weight; is it whole"):
        read(folder)
    rewritten(
        folder,
        lambda header: header.update(
            {"layernorm.weight": header["layernorm.bias"], "gate.weight": header["layernorm.bias"]}
        ),
    )
    with pytest.raises(UserError, match=r"has what this family's models have not: gate.weight; is it another kind"):
        read(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -100])
def test_a_file_that_was_cut_off_is_told(copied, keep):
    folder = copied()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut off; copy it again"):
        read(folder)


def test_a_file_is_read_as_its_folder_is():
    found, expected = (read(path).parameters for path in (FOLDER / "vit" / "model.safetensors", FOLDER / "vit"))
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["patch_embedding/kernel"], expected["patch_embedding/kernel"])


def described(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ["vit"]}, r"is of no family that can be read \(\['vit'\]\)"),
        ({"model_type": "unheard-of"}, r"is of no family that can be read \(unheard-of\)"),
        ({"hidden_size": 0}, "no multiple of its width 0"),
        ({"hidden_size": "16"}, "is not as its family is|says '16' for model.image.width"),
        ({"patch_size": "4"}, r"says '4' for model\.image\.patch, which is a value like 8"),
        ({"layer_norm_eps": "1e-12"}, r"says '1e-12' for model\.image\.eps"),
        ({"num_hidden_layers": 5}, r"has no encoder\.layer\.2\."),
        ({"num_hidden_layers": 1}, r"has what this family's models have not: encoder\.layer\.1\."),
        ({"hidden_act": "relu"}, "has the activation relu; there are gelu"),
        ({"intermediate_size": 33}, "has a hidden layer of 33, no multiple of its width 16"),
    ],
)
def test_a_description_that_does_not_fit_is_told_in_one_line(copied, changes, message):
    folder = copied()
    described(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": 3}},
    ],
)
def test_an_index_names_files_of_its_folder(copied, index):
    folder = copied()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names no files of its folder; copy it again"):
        read(folder)


@pytest.mark.parametrize("content", [b"[1, 2]", b"null", b"[" * 200_000, b"{}"])
def test_a_header_that_is_none_is_told(copied, content):
    folder = copied()
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(UserError, match=r"is damaged or cut off|has no embeddings"):
        read(folder)
    (folder / "model.safetensors").write_bytes((2**63 + 5).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="is damaged or cut off"):
        read(folder)


def test_names_that_coincide_and_numbers_that_are_quantised_are_refused(copied):
    folder = copied("vit_for_classification")
    rewritten(folder, lambda header: header.update({"layernorm.bias": header["vit.layernorm.bias"]}))
    with pytest.raises(UserError, match=r"holds layernorm\.bias twice, with and without a prefix"):
        read(folder)
    folder = copied()
    size = {"dtype": "I8", "shape": [64], "data_offsets": [0, 64]}
    rewritten(folder, lambda header: header.update({"layernorm.bias": size}))
    with pytest.raises(UserError, match=r"layernorm\.bias holds int8, no floating point; a quantised encoder"):
        read(folder)
    rewritten(folder, lambda header: header.update({"layernorm.bias": size | {"dtype": "F8_E4M3"}}))
    with pytest.raises(UserError, match=r"layernorm\.bias holds numbers of type F8_E4M3; F64, F32"):
        read(folder)


def test_a_family_that_is_named_must_be_of_the_modality():
    config = toy_config(init__image=path_of("bert"), init__image_family="bert")
    with pytest.raises(UserError, match=r"reads texts; it is no encoder for init\.image"):
        encoders.complete(config, ())
    config.init.image_family = "birds"
    with pytest.raises(UserError, match="there is no family of encoders 'birds'; choose among bert, clip_vision"):
        encoders.complete(config, ())


@pytest.mark.parametrize(
    "name",
    [
        "vit_pe_core_base_patch16_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_rpn_224",
        "eva02_base_patch14_224",
    ],
)
def test_models_of_timm_that_are_computed_otherwise_are_refused(copied, name):
    folder = copied("timm_vit")
    described(folder, architecture=name)
    with pytest.raises(UserError, match=r"is no plain vision transformer of timm|is of no family"):
        read(folder)


def test_half_precision_is_read_as_float32(copied):
    folder = copied()
    arrays = load_file(folder / "model.safetensors")
    save_file({name: value.astype(np.float16) for name, value in arrays.items()}, folder / "model.safetensors")
    found = read(folder).parameters["norm/bias"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, arrays["layernorm.bias"], rtol=1e-3)


def test_a_pickle_is_not_read(copied):
    folder = copied()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds a pickle \(pytorch_model.bin\), which can run anything"):
        read(folder)
    (folder / "weights.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(UserError, match=r"weights\.npz cannot be read as plain arrays"):
        read(folder / "weights.npz")


def test_a_name_that_is_nowhere_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("nowhere", "google/nothing-at-all", str(tmp_path / "not there")):
        with pytest.raises(UserError, match=r"there is no folder or file .* for --config\.init\.image") as caught:
            read(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"has no config\.json"):
        read(tmp_path)


def test_a_text_encoder_brings_its_tokenizer_or_asks_for_one(copied):
    folder = copied("bert")
    config = toy_config(init__text=str(folder))
    with pytest.raises(UserError, match=r"has no tokenizer; set --config\.data\.tokenizer"):
        encoders.tokenizer_of(config)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    assert encoders.tokenizer_of(config) == str(folder)


def test_heads_of_timm_are_told_or_those_of_the_architecture(copied):
    folder = copied("timm_vit")
    arguments = json.loads((folder / "config.json").read_text())["model_args"]
    described(folder, model_args={key: value for key, value in arguments.items() if key != "num_heads"})
    with pytest.raises(UserError, match="does not say how many heads share its width of 16"):
        read(folder)
