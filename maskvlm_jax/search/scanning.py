"""The pictures of a folder: which names there are, and what one holds."""

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving import pictures

# What cameras, scanners and the web have; other files are no pictures and are passed over.
ENDINGS = (b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".gif", b".bmp", b".tif", b".tiff", b".avif")
ENDINGS += (b".jp2", b".j2k", b".tga", b".ppm", b".pgm", b".pbm", b".pnm", b".ico", b".dds", b".pcx", b".qoi")


class Walk:
    """(name, size, mtime) of every picture below a folder; names are bytes, as the file system has them.

    Links are not followed: what one leads to inside of the folder has a name of its own there, and what lies outside is
    no part of it. Names that start with a dot are passed over.

    Attributes:
        links: how many links were passed over; unseen: folders that could not be looked into.
    """

    def __init__(self, folder: bytes):
        self._folder, self.links, self.unseen = folder, 0, []

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        waiting = [b""]
        while waiting:
            below = waiting.pop()
            try:
                with os.scandir(os.path.join(self._folder, below)) as entries:
                    for entry in entries:
                        name = os.path.join(below, entry.name)
                        if entry.name.startswith(b"."):
                            continue
                        if entry.is_symlink():
                            self.links += 1
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append(name)
                        elif entry.name.lower().endswith(ENDINGS) and entry.is_file(follow_symlinks=False):
                            yield from _stat(entry, name)
            except OSError as error:
                if not below:
                    folder = printable(self._folder)
                    raise UserError(
                        f"the folder {folder} cannot be read ({error.strerror}): is the disk there?"
                    ) from error
                self.unseen.append(below)


def _stat(entry: os.DirEntry, name: bytes) -> Iterator[tuple[bytes, int, int]]:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # deleted in between
        return
    yield name, found.st_size, found.st_mtime_ns


class Looked(NamedTuple):
    """A file that was read.

    Attributes:
        size, mtime: before it was read, so that a change meanwhile is seen next time.
        sha256: of the bytes, b"" where they could not be read.
        pixels: (Y, X, 3) uint8, None where the content is known or no picture.
        error: why it could not be read.
    """

    name: bytes
    size: int
    mtime: int
    sha256: bytes = b""
    pixels: np.ndarray | None = None
    error: str = ""


def look(folder: bytes, name: bytes, image_size: int, is_known: Callable[[bytes], bool]) -> Looked | None:
    """Reads a file, and decodes it where its content is new; None if there is none any more.

    Args:
        is_known: says of a sha256 whether pixels are not needed.
    """
    path, looked = os.path.join(folder, name), Looked(name, 0, 0)
    try:
        found = os.lstat(path)
        looked = looked._replace(size=found.st_size, mtime=found.st_mtime_ns)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        return looked._replace(error=error.strerror)
    looked = looked._replace(sha256=hashlib.sha256(content).digest())
    if is_known(looked.sha256):
        return looked
    try:
        return looked._replace(pixels=pictures.read(content, image_size))
    except pictures.PictureError as error:
        return looked._replace(error=str(error.__cause__ or error))


def printable(name: bytes) -> str:
    """A name to be shown: bytes that are no UTF-8 as \\xNN, and so are letters that would move the cursor."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
