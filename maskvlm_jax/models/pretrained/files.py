"""Files of arrays: safetensors, npz and Flax's msgpack, and the folders that Hugging Face ships them in. Pickles are
never read."""

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, few, first_line

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_FLAX = "flax_model.msgpack"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_WANTED = ("*.json", "*.safetensors", "*.npz", "*.msgpack", "*.txt", "*.model")  # of a folder on the hub


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model as it was found, whose arrays are not read yet.

    name: as it was given; config: its config.json, {} of a single file; preprocessor: its preprocessor_config.json, {}
    where there is none; files: what holds the arrays.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    files: tuple[Path, ...]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by their names, those of floating point as float32.

        Raises:
            UserError: a file is damaged or cut off.
        """
        found: dict[str, np.ndarray] = {}
        for file in self.files:
            for name, value in _READERS[file.suffix](file).items():
                if name in found:
                    raise UserError(f"{self.name} holds {name} twice, in {file.name} too; copy the folder again")
                found[name] = _plain(value)
        return found

    def sha256(self) -> dict[str, str]:
        """Of each file that holds arrays."""
        digests = {}
        for path in self.files:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests


def find(name: str, flag: str) -> Stored:
    """The model in a local folder or file, or on the Hugging Face hub.

    Args:
        flag: that named it, for messages.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    path = Path(name).expanduser()
    if buckets.is_remote(buckets.folder(name)):
        raise UserError(f"{name} is in a bucket; copy it to a local folder for --config.{flag}")
    if path.is_file():
        if path.suffix not in _READERS:
            kinds = ", ".join(_READERS)
            raise UserError(f"{path} is no file of {kinds}; --config.{flag} takes one of these, or a folder")
        beside = {} if path.suffix == ".npz" else _described(path.parent)
        if path.suffix != ".npz" and _CONFIG not in beside:
            raise UserError(f"{path} has no config.json beside it, which says what the encoder is; copy it there")
        return Stored(name, path.parent, beside.get(_CONFIG, {}), beside.get(_PREPROCESSOR, {}), (path,))
    if not path.is_dir():
        path = _from_hub(name, flag)
    described = _described(path)
    if _CONFIG not in described:
        raise UserError(f"{path} has no config.json; --config.{flag} takes a Hugging Face folder, or one file")
    return Stored(name, path, described[_CONFIG], described.get(_PREPROCESSOR, {}), _files_of(path))


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    """What the folder's JSON files say of the model, of those that are there."""
    found = {name: _json(folder / name) for name in (_CONFIG, _PREPROCESSOR)}
    return {name: content for name, content in found.items() if content is not None}


def _files_of(folder: Path) -> tuple[Path, ...]:
    index = _json(folder / "model.safetensors.index.json")
    if index is not None:
        named = index.get("weight_map")
        names = set(map(str, named.values())) if isinstance(named, dict) else set()
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise UserError(f"{folder}/model.safetensors.index.json names no files of its folder; copy it again")
        return tuple(folder / name for name in sorted(names))
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if (folder / _FLAX).is_file():
        return (folder / _FLAX,)
    if pickles := [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]:
        raise UserError(
            f"{folder} holds a pickle ({few(pickles, 2)}), which can run anything when it is read; save the model as "
            "model.safetensors: model.save_pretrained(FOLDER) of transformers does"
        )
    raise UserError(f"{folder} has no model.safetensors; was it copied whole?")


def _from_hub(name: str, flag: str) -> Path:
    missing = f"there is no folder or file {name!r} for --config.{flag}"
    repository, _, revision = name.rstrip("/").partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise UserError(missing)
    try:
        from huggingface_hub import snapshot_download  # imports a second's worth of network code

        print(f"{repository} is looked for on the Hugging Face hub", flush=True)
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_WANTED)))
    except Exception as error:  # of many kinds: no network, no such name, no right
        raise UserError(
            f"{missing}, and the hub has none that can be fetched ({type(error).__name__}: {first_line(error)})"
        ) from error


def _json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object; copy it again")
    return content


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Format: the header's length in eight bytes, the header in JSON, and the arrays one behind the other."""
    damaged = UserError(f"{path} is damaged or cut off; copy it again")
    try:
        content = np.memmap(path, np.uint8, "r")
        length = int(content[:8].view("<u8")[0])
        if 8 + length > len(content):
            raise damaged
        header = json.loads(content[8 : 8 + length].tobytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy the folder again") from error
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise damaged from error
    if not isinstance(header, dict):
        raise damaged
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            (start, stop), shape, kind = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
            if not 0 <= start <= stop <= len(content) - 8 - length:
                raise damaged
            if kind not in _DTYPES:
                raise UserError(f"{path}: {name} holds numbers of type {kind}; {', '.join(_DTYPES)} can be read")
            found[name] = content[8 + length + start : 8 + length + stop].view(_DTYPES[kind]).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {name} cannot be read ({first_line(error)}); copy the file again") from error
    return found


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # of many kinds, depending on where the bytes are wrong
        raise UserError(
            f"{path} cannot be read as plain arrays ({first_line(error)}); copy it again, or save it without objects"
        ) from error


def _read_flax(path: Path) -> dict[str, np.ndarray]:
    """Arrays under the names and in the shapes that the same model of PyTorch has."""
    from flax import serialization, traverse_util

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        flat = traverse_util.flatten_dict(tree)
        return dict(_of_torch(name, np.asarray(value)) for name, value in flat.items())
    except UserError:
        raise
    except Exception as error:  # of many kinds, depending on where the bytes are wrong
        raise UserError(f"{path} is damaged or cut off ({first_line(error)}); copy it again") from error


def _of_torch(name: tuple[str, ...], value: np.ndarray) -> tuple[str, np.ndarray]:
    """A dense kernel is (in, out) and a convolution's (height, width, in, out) in Flax."""
    *before, last = name
    if last == "kernel":
        value = value.T if value.ndim == 2 else np.transpose(value, (3, 2, 0, 1))
    return ".".join([*before, {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)]), value


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".msgpack": _read_flax}


def _plain(value: np.ndarray) -> np.ndarray:
    if value.dtype == np.dtype("V2"):  # bfloat16 as NumPy writes it, without its name
        value = value.view(ml_dtypes.bfloat16)
    floating = np.issubdtype(value.dtype, np.floating) or value.dtype == ml_dtypes.bfloat16
    return np.asarray(value, np.float32) if floating else np.asarray(value)
