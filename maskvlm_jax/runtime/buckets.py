"""Google Cloud Storage: gs://BUCKET/PREFIX where a local folder may stand.

A workdir may lie there. Objects are written whole and have no locks: what grows, as metrics do, grows in a local folder
and is uploaded anew. Data sets are copied to this machine before they are read, see `data.remote`.
"""

import contextlib
import importlib.util
import logging
import os
import re
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maskvlm_jax.runtime.errors import UserError, writing

_SCHEME = "gs://"
_PARTIAL = ".partial"  # is in a folder until all of its files are


def folder(path: str) -> Path:
    """A local folder, ~ standing for home, or one of a bucket; nothing is looked at.

    Raises:
        UserError: another kind of address, or a bucket's where the library that reads them is not installed.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", path)
    if not found:
        return _from_home(path)
    if not re.match(rf"{_SCHEME}[a-z0-9]", path):
        raise UserError(
            f"{path}: local folders and gs://BUCKET/FOLDER are read, {found[1]}: is not; mount it as a local folder"
        )
    _prepare(path)
    from etils import epath

    return epath.Path(path)


def file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a bucket, and the path in it without a scheme.

    Raises:
        UserError: the library that reads buckets is not installed.
    """
    _prepare(path)
    import fsspec

    return fsspec.core.url_to_fs(path.rstrip("/"))


def _prepare(path: str) -> None:
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path} needs a library that is not installed; run pip install gcsfs")
    import fsspec

    # They tell at every file that there is no account, or none that may ask of what kind the bucket is; their errors
    # are raised, too.
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # TensorStore writes to the same buckets, of which a cached listing would not tell.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    _check_network(path)


_reached: set[tuple[str, int]] = set()


def _check_network(path: str) -> None:
    """Asks for a connection once a process: the libraries try again for a minute and more where there is no network."""
    address = urlsplit(os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com")
    if not address.hostname or urllib.request.getproxies().get(address.scheme):
        return
    place = address.hostname, address.port or (443 if address.scheme == "https" else 80)
    if place not in _reached:
        try:
            socket.create_connection(place, timeout=10).close()
        except OSError as error:
            message = f"{path}: {place[0]} cannot be reached ({error.strerror or error}); check the network"
            raise UserError(message) from error
        _reached.add(place)


def is_remote(path: Path | str) -> bool:
    """Whether it is in a bucket."""
    return str(path).startswith(_SCHEME)


def absolute(path: Path) -> Path:
    """The path from the root; of a bucket it is that already."""
    return path if is_remote(path) else path.absolute()


def local_folder(path: str, what: str) -> Path:
    """A local folder, ~ standing for home.

    Args:
        what: is kept there, for the message.

    Raises:
        UserError: the address of a store.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise UserError(f"{path}: {what} must be in a local folder; give one, and copy it afterwards")
    return _from_home(path)


def _from_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no user of that name; the home folder is ~/") from error


@contextlib.contextmanager
def reading(source: Path) -> Iterator[Path]:
    """A local folder with the files of `source`: itself, or a copy that is gone afterwards."""
    if not is_remote(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="maskvlm_jax-") as temporary:
        for file in source.iterdir():
            if file.is_file():
                (Path(temporary) / file.name).write_bytes(file.read_bytes())
        yield Path(temporary)


@contextlib.contextmanager
def making(target: Path) -> Iterator[Path]:
    """A local folder that does not exist yet, and becomes `target` in one step once it is filled.

    Raises:
        UserError: it cannot be written.
    """
    if not is_remote(target):
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Beside it: a folder cannot be moved from one disk to another in one step.
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as parent:
                temporary = Path(parent) / target.name
                yield temporary
                temporary.rename(target)
        return
    with tempfile.TemporaryDirectory(prefix="maskvlm_jax-") as parent, writing(target):
        temporary = Path(parent) / "folder"
        yield temporary
        (target / _PARTIAL).write_bytes(b"")
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            (target / file.relative_to(temporary)).write_bytes(file.read_bytes())
        (target / _PARTIAL).unlink()


def was_made(target: Path) -> bool:
    """Whether a folder is there with all that `making` puts into it."""
    return target.is_dir() and not (target / _PARTIAL).exists()
