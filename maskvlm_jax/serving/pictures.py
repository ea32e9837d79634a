"""Pictures as people have them: paths, encoded bytes, Pillow's, arrays; one of them, or many of mixed kinds."""

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from maskvlm_jax.data import decoding, transforms
from maskvlm_jax.runtime import host

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray
OnError = Literal["raise", "skip"]


class PictureError(ValueError):
    """A picture cannot be read; the message names it."""


def many(images: Picture | Iterable[Picture]) -> tuple[list[Picture], bool]:
    """The pictures as a list, and whether a single one was given."""
    if isinstance(images, np.ndarray):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images], True
    return list(images), False


def read(picture: Picture, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the whole picture, squeezed to a square as for evaluation.

    Raises:
        PictureError: there is no such file, or it is no picture.
    """
    try:
        if isinstance(picture, str | os.PathLike):
            content: bytes | np.ndarray = Path(picture).expanduser().read_bytes()
        elif isinstance(picture, Image.Image):
            content = np.asarray(decoding.to_rgb(ImageOps.exif_transpose(picture)))
        elif isinstance(picture, np.ndarray):
            content = _colours(picture)
        elif isinstance(picture, bytes):
            content = picture
        else:
            kind = type(picture).__name__
            raise PictureError(f"{kind} is no picture; give a path, bytes, a Pillow image or an array")
        return transforms.resize(decoding.decode(content, min_size=size), size=size)
    except PictureError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a name with a null in it, a home of nobody, a closed image
        raise PictureError(f"{name_of(picture)}: {error}") from error


def name_of(picture: Picture) -> str:
    """What a message calls it."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    return getattr(picture, "filename", "") or f"a picture given as {type(picture).__name__}"


def batches(
    pictures: list[Picture], size: int, batch_size: int, on_error: OnError
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(n, size, size, 3) uint8 of up to `batch_size` pictures at a time, and their numbers.

    Threads read ahead while a batch is computed. A broken picture raises, or is warned of and missing.
    """
    with ThreadPoolExecutor(host.cores()) as pool:
        numbers = iter(range(len(pictures)))
        waiting: list[tuple[int, Future]] = []

        def start(count: int) -> None:
            waiting.extend((i, _started(pool, pictures[i], size)) for i in islice(numbers, count))

        start(2 * batch_size)
        try:
            while waiting:
                chosen, waiting[:] = waiting[:batch_size], waiting[batch_size:]
                start(batch_size)
                found = [(i, pixels) for i, future in chosen if (pixels := _result(future, on_error)) is not None]
                if found:
                    ids, pixels = zip(*found, strict=True)
                    yield np.stack(pixels), np.array(ids)
        finally:
            for _, future in waiting:
                future.cancel()


def _started(pool: ThreadPoolExecutor, picture: Picture, size: int) -> Future:
    """`read` under way; at once of Pillow's images, which read their file when they are first looked at, and may be
    given twice."""
    if not isinstance(picture, Image.Image):
        return pool.submit(read, picture, size)
    future: Future = Future()
    try:
        future.set_result(read(picture, size))
    except PictureError as error:
        future.set_exception(error)
    return future


def _result(future: Future, on_error: OnError) -> np.ndarray | None:
    try:
        return future.result()
    except PictureError as error:
        if on_error == "raise":
            raise
        warnings.warn(f"left out, its row is NaN: {error}", stacklevel=2)
        return None


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Grey as RGB, transparent parts as white."""
    if pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2:] in ((1,), (4,))):
        return np.asarray(decoding.to_rgb(Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)))
    return pixels
