"""Data sets in a bucket: the files that are read are copied to this machine first, once.

Training draws examples in random order from all shards, in every epoch: each machine of a run would fetch the whole set
anyway, in small pieces and many times. Copies are kept under $XDG_CACHE_HOME (~/.cache), and taken anew where the file
in the bucket has changed.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskvlm_jax.data.sources.shards import expand_braces
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, first_line, is_of_store

_THREADS = 8
_VERSIONS = ".versions.json"  # name -> which version of the bucket's file a copy is of


def local_root(root: str, kind: str, patterns: Sequence[str]) -> str:
    """`root`, or if it is in a bucket the folder with copies of all its files that match.

    Args:
        kind: of the set, for messages.
        patterns: globs relative to the root, with lists and ranges in braces.

    Raises:
        UserError: another kind of address, the bucket cannot be read, or there is no space for the files.
    """
    if not buckets.is_remote(root):
        buckets.local_folder(root, f"a set of kind {kind}")
        return root
    names = [name for pattern in patterns for name in expand_braces(pattern)]
    folder = _cache() / hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:16]
    with _alone(folder):
        files, base = buckets.file_system(root)
        try:
            listed = [files.glob(f"{base}/{name}", detail=True) for name in names]
            found = {path: info for infos in listed for path, info in infos.items() if info["type"] == "file"}
            there = {path.removeprefix(f"{base}/"): info for path, info in found.items()}
            if not there:
                raise UserError(f"{root}: there is no file {', '.join(patterns)}; check the root and the pattern")
            _remove_others(folder, names, there)
            _fetch(files, base, there, folder)
        except Exception as error:
            if not isinstance(error, OSError) and not is_of_store(error):
                raise
            raise UserError(f"{root} cannot be copied to {folder}: {first_line(error)}") from error
    return str(folder)


def matches(root: str, pattern: str) -> list[str]:
    """Names of the files below a root, on disk or in a bucket, that match a glob."""
    if not buckets.is_remote(root):
        return glob.glob(pattern, root_dir=Path(root).expanduser(), recursive=True)
    files, base = buckets.file_system(root)
    return [path.removeprefix(f"{base}/") for path in files.glob(f"{base}/{pattern}")]


def splits_there(data: Mapping[str, Any]) -> Sequence[str]:
    """The splits of `data.splits` whose list, or some file of whose pattern, is there.

    Where there is none, `data.split`: opening it tells what is wrong.
    """
    there = [name for name, file in data["splits"].items() if "{" in file or matches(data["root"], file)]
    return there or (data["split"],)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maskvlm_jax" / "data"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of the processes on one machine, the first fetches and the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _remove_others(folder: Path, names: list[str], there: dict[str, Any]) -> None:
    """Removes copies of files that are in the bucket no more: a pattern would find them still."""
    for name in names:
        for path in folder.glob(name):
            if path.is_file() and str(path.relative_to(folder)) not in there:
                path.unlink()


def _fetch(files: Any, base: str, there: dict[str, Any], folder: Path) -> None:
    """Copies what is not there yet, or of another version."""
    path = folder / _VERSIONS
    versions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    wanted = {name: f"{info['size']} {info.get('generation') or info.get('etag')}" for name, info in there.items()}
    missing = [name for name in wanted if versions.get(name) != wanted[name] or not (folder / name).exists()]
    if not missing:
        return
    size, free = sum(there[name]["size"] for name in missing), shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"the set is copied to {folder}, and {size / 1e9:,.1f} GB of it do not fit into {free / 1e9:,.1f} GB; "
            "set XDG_CACHE_HOME to a folder on a larger disk"
        )
    print(f"copying {len(missing)} files of {base}, {size / 1e9:,.2f} GB, to {folder}", flush=True)

    def copy(name: str) -> str:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        files.get_file(f"{base}/{name}", str(partial))
        os.replace(partial, target)
        return name

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for name in tqdm(pool.map(copy, missing), "copy", len(missing), unit=" files"):
                versions[name] = wanted[name]
        finally:  # what is whole stays, also where a later one fails
            pool.shutdown(cancel_futures=True)
            path.write_text(json.dumps(versions), encoding="utf-8")
