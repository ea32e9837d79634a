"""Work on a set in pieces: each leaves a file behind its end, so that work that was stopped goes on where it was.

Pieces may run over processes in any order: what one leaves depends on nothing but its source and its own values.
"""

import dataclasses
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from tqdm import tqdm

from maskvlm_jax.data import decoding
from maskvlm_jax.data.sources import records
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.prepare import survey
from maskvlm_jax.runtime import files, host
from maskvlm_jax.runtime.errors import Stopped, UserError
from maskvlm_jax.runtime.stopping import StopRequest

SCANNED = 1_000  # examples that are looked at between two saves


@dataclasses.dataclass(frozen=True)
class Scan:
    """Examines examples `first` .. `last` - 1 and keeps their `survey.Facts` in a file."""

    source: Source
    first: int
    last: int
    path: Path
    min_size: int

    @classmethod
    def cut(cls, source: Source, examples: int, path: Path, *, min_size: int) -> list["Scan"]:
        """The pieces of the first examples of a source; `path` is what their files' names begin with."""
        return [
            cls(source, first, min(first + SCANNED, examples), Path(f"{path}-{first:09d}.msgpack"), min_size)
            for first in range(0, examples, SCANNED)
        ]

    @property
    def examples(self) -> int:
        return self.last - self.first

    @property
    def done(self) -> bool:
        return self.path.exists()

    def run(self) -> None:
        facts = [survey.examine(self.source[i], min_size=self.min_size) for i in range(self.first, self.last)]
        files.write_bytes(self.path, survey.pack(facts))


@dataclasses.dataclass(frozen=True, eq=False)
class Write:
    """Writes one shard, and what the manifest will say of it into the file `entry`."""

    source: Source
    path: Path
    entry: Path
    indices: np.ndarray
    sha256: np.ndarray  # of the pictures when they were scanned
    resize: int
    quality: int

    @classmethod
    def cut(
        cls,
        source: Source,
        indices: np.ndarray,
        sha256: np.ndarray,
        folder: Path,
        *,
        size: int,
        resize: int,
        quality: int,
    ) -> list["Write"]:
        """The shards of the examples `indices`, `size` of them in each."""
        starts = range(0, len(indices), size)
        writes = []
        for number, start in enumerate(starts):
            name, part = f"shard-{number:05d}-of-{len(starts):05d}", slice(start, start + size)
            path, entry = folder / f"{name}.array_record", folder / "work" / f"{name}.json"
            writes.append(cls(source, path, entry, indices[part], sha256[part], resize, quality))
        return writes

    @property
    def examples(self) -> int:
        return len(self.indices)

    @property
    def done(self) -> bool:
        return self.entry.exists()

    def run(self) -> None:
        shard = records.write_file(self.path, self._records(), temporary=temporary(self.entry))
        files.write_json(self.entry, shard._asdict())

    def _records(self) -> Iterator[bytes]:
        for index, digest in zip(self.indices.tolist(), self.sha256, strict=True):
            example = self.source[index]
            if survey.image_sha256(example["image"]) != digest.tobytes():
                raise UserError(
                    f"the picture {example['id']} changed while it was prepared; remove {self.path.parent} and "
                    "start again"
                )
            image = stored_image(example["image"], resize=self.resize, quality=self.quality)
            yield records.encode(example | {"image": image, "captions": usable_captions(example["captions"])})


def stored_image(image: bytes | np.ndarray, *, resize: int, quality: int) -> bytes:
    """A picture as it is written: the same bytes, a smaller JPEG, or where it was no file a PNG.

    Args:
        resize: the short side, in pixels, that larger pictures get; 0 leaves all as they are.
        quality: of the JPEG.
    """
    height, width = decoding.picture_size(image)
    scale = resize / min(height, width)
    smaller = 0 < scale < 1
    if isinstance(image, bytes) and not smaller:
        return image
    pixels = decoding.decode(image, min_size=resize)
    if smaller:
        pixels = cv2.resize(pixels, (round(scale * width), round(scale * height)), interpolation=cv2.INTER_AREA)
    if isinstance(image, bytes):
        return simplejpeg.encode_jpeg(pixels, quality, colorsubsampling="420")
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


Piece = Scan | Write


class Crew:
    """Runs pieces: over processes, which are started once and not before two pieces are to do; else in this one.

    Args:
        sources: of all pieces; they travel to the processes in a file, not with each piece.
        workers: processes at most; 0 = as many as cores.
        stop: asks to stop behind a piece.
    """

    def __init__(self, sources: Iterable[Source], *, workers: int, stop: StopRequest):
        self._sources = {id(source): source for source in sources}
        self._workers, self._stop, self._pool = workers or host.cores(), stop, None
        self._folder = tempfile.TemporaryDirectory(prefix="prepare-")

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def run(self, pieces: Sequence[Piece], title: str) -> None:
        """Runs the pieces that are not done.

        Raises:
            Stopped: a signal asked for it; the pieces under way are done first.
            UserError: what a piece raised, or a process was killed.
        """
        todo, total = [piece for piece in pieces if not piece.done], sum(piece.examples for piece in pieces)
        ready = total - sum(piece.examples for piece in todo)
        with tqdm(total=total, initial=ready, desc=title, unit=" examples") as bar:
            for piece in self._each_finished(todo):
                bar.update(piece.examples)
                if self._stop.signal:
                    raise Stopped(self._stop.signal, None)

    def _each_finished(self, todo: Sequence[Piece]) -> Iterator[Piece]:
        if min(self._workers, len(todo)) <= 1:
            with warnings.catch_warnings(action="ignore"):  # Pillow's, of pictures that it reads all the same
                for piece in todo:
                    piece.run()
                    yield piece
            return
        if not self._pool:
            # As arguments they would go through a pipe, on which this process waits for ever where one that was killed
            # as it started does not read it.
            path = Path(self._folder.name) / "sources.pickle"
            path.write_bytes(pickle.dumps(self._sources))
            context = multiprocessing.get_context("spawn")  # a forked process would lack JAX's threads
            self._pool = ProcessPoolExecutor(self._workers, context, _enter_worker, (path,))
        try:
            with host.interrupts_held():
                futures = {
                    self._pool.submit(_run_in_worker, id(piece.source), dataclasses.replace(piece, source=None)): piece
                    for piece in todo
                }
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            if self._stop.signal:  # it reached all processes
                raise Stopped(self._stop.signal, None) from error
            raise UserError(
                "a worker process was killed, perhaps for want of memory; the same command goes on, and needs less "
                "with --config.workers=1"
            ) from error


_sources: dict[int, Source] = {}  # of a worker process


def _enter_worker(path: Path) -> None:
    _sources.update(pickle.loads(path.read_bytes()))
    warnings.simplefilter("ignore")  # as above
    host.end_with_parent()


def _run_in_worker(source: int, piece: Piece) -> None:
    dataclasses.replace(piece, source=_sources[source]).run()


def temporary(path: Path) -> Path:
    """Where this process writes what becomes the file `path`, record by record."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")
