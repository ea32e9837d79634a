"""An index brought up to date with its folder: only what is new is read, and only new contents are embedded.

Every batch is stored as it comes, vectors first and then the catalogue in one transaction, so that a process may end
anywhere: the next one goes on behind the last batch. Nothing is ever written into the folder of the pictures.
"""

import collections
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskvlm_jax.runtime import files, host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import facts as facts_of
from maskvlm_jax.search import scanning, stores
from maskvlm_jax.search.catalogue import Catalogue, File
from maskvlm_jax.search.facts import Embedder, Facts
from maskvlm_jax.search.scanning import Looked

BATCH = 64  # contents that are embedded, and then stored, at a time
_MOST_WAITING = 1_000  # files that were read and are not stored yet
BROKEN = "broken.txt"


@dataclasses.dataclass
class Report:
    """What an update did.

    Attributes:
        pictures: files of the index now; embedded: new contents; known: files that were new or had changed, whose
            content had a row; gone: files that are not there any more; broken: files that cannot be read.
        links, unseen: links that were passed over, and folders that could not be looked into.
        seconds: from the first file read to the last one stored.
    """

    pictures: int = 0
    embedded: int = 0
    known: int = 0
    gone: int = 0
    broken: int = 0
    links: int = 0
    unseen: int = 0
    seconds: float = 0.0


def update(index: Path, facts: Facts, load_model: Callable[[], Embedder], *, progress: bool = False) -> Report:
    """Brings an index up to date; the caller has its lock.

    Args:
        load_model: the model of the index; called only where there is something to embed.
        progress: show a bar.

    Raises:
        UserError: the folder or the index cannot be read or written, or the model is another one.
    """
    folder, catalogue = os.fsencode(facts.folder), Catalogue(index, write=True)
    walk, report = scanning.Walk(folder), Report()
    difference = catalogue.compare(walk, walk.unseen)
    report.gone, report.links, report.unseen = difference.gone, walk.links, len(walk.unseen)
    batch, clock = _Batch(index, facts, catalogue, load_model, report), time.perf_counter()
    with tqdm(total=len(difference.names), unit=" pictures", disable=None if progress else True, leave=False) as bar:
        for looked in _looked_at(folder, difference.names, facts.image_size, catalogue):
            bar.update()
            if looked is not None:  # it was there when the folder was listed
                batch.add(looked)
        batch.store()
    report.seconds = time.perf_counter() - clock
    batch.finish()
    broken = catalogue.broken()
    lines = [f"{scanning.printable(name)}: {error}\n" for name, error in broken]
    files.write_text(index / BROKEN, "".join(lines))
    report.pictures, report.broken = catalogue.pictures(), len(broken)
    catalogue.close()
    return report


def _looked_at(folder: bytes, names: Iterable[bytes], image_size: int, catalogue: Catalogue) -> Iterator[Looked | None]:
    """Every file, in order, read by a thread a core a little ahead."""
    names, waiting = iter(names), collections.deque[Future]()
    known = lambda sha256: catalogue.row_of(sha256) is not None  # noqa: E731
    pool = ThreadPoolExecutor(host.cores())
    try:
        while True:
            for name in itertools.islice(names, 2 * BATCH - len(waiting)):
                waiting.append(pool.submit(scanning.look, folder, name, image_size, known))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Batch:
    """Files that were read and are not stored yet."""

    def __init__(
        self,
        index: Path,
        facts: Facts,
        catalogue: Catalogue,
        load_model: Callable[[], Embedder],
        report: Report,
    ):
        self._index, self._facts, self._catalogue, self._report = index, facts, catalogue, report
        self._store = stores.open_store(index, facts)
        self._load_model, self._model = load_model, None
        self._looked: list[Looked] = []
        self._pixels: dict[bytes, np.ndarray] = {}  # of new contents, by sha256

    def add(self, looked: Looked) -> None:
        """Takes a file; where there are enough of them they are stored."""
        self._looked.append(looked)
        # A content that another name had may have been stored since this one was read.
        if looked.pixels is not None and self._catalogue.row_of(looked.sha256) is None:
            self._pixels[looked.sha256] = looked.pixels
        if len(self._pixels) == BATCH or len(self._looked) == _MOST_WAITING:
            self.store()

    def store(self) -> None:
        """Embeds the new contents, and stores vectors and files."""
        first, contents = self._catalogue.rows(), []
        if self._pixels:
            self._store.write(first, self._embedded(np.stack(list(self._pixels.values()))))
            contents = [(first + place, sha256) for place, sha256 in enumerate(self._pixels)]
        rows = {sha256: row for row, sha256 in contents}
        seen = [self._file(looked, rows) for looked in self._looked]
        self._catalogue.add(contents, seen)
        self._report.embedded += len(contents)
        self._report.known += sum(file.row is not None for file in seen) - len(contents)
        self._looked, self._pixels = [], {}

    def finish(self) -> None:
        """To be called when all is stored."""
        self._store.finish(self._catalogue.rows())

    def _file(self, looked: Looked, rows: dict[bytes, int]) -> File:
        name, size, mtime = looked.name, looked.size, looked.mtime
        if looked.error:
            return File(name, size, mtime, None, looked.error, again=not looked.sha256)
        row = rows.get(looked.sha256)
        return File(name, size, mtime, self._catalogue.row_of(looked.sha256) if row is None else row)

    def _embedded(self, pixels: np.ndarray) -> np.ndarray:
        if self._model is None:
            self._model = self._load_model()
            facts_of.check_model(self._index, self._facts, self._model)
        vectors = self._model.encode_images(pixels)
        if not np.isfinite(vectors).all():
            raise UserError(f"the model {self._facts.model} gives vectors that are no numbers; train it anew")
        return vectors
