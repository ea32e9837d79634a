"""Which pictures there are: names, contents and what is wrong with some, in SQLite.

A row is a content: the same bytes under several names are one row, bytes that are seen again have the row that they
had, and no row is ever used for other bytes. Vectors are kept by row, see `stores`.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from maskvlm_jax.runtime.errors import UserError

_FILE = "catalogue.sqlite"
_WAIT = 60  # seconds that a process waits while another commits
_TABLES = """
CREATE TABLE IF NOT EXISTS contents (row INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS files (
    name BLOB PRIMARY KEY,             -- below the folder, as the file system has it
    size INTEGER NOT NULL,             -- when it was last read, in bytes
    mtime INTEGER NOT NULL,            -- likewise, in nanoseconds
    row INTEGER REFERENCES contents,   -- NULL: it could not be read
    error TEXT NOT NULL,               -- why; "" where it could
    again INTEGER NOT NULL,            -- whether to try again although it has not changed
    gone INTEGER NOT NULL DEFAULT 0    -- whether there is no such file any more
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_of_row ON files (row);
CREATE TABLE IF NOT EXISTS changes (number INTEGER NOT NULL);
INSERT INTO changes SELECT 0 WHERE NOT EXISTS (SELECT * FROM changes);
"""
_DIFFERS = """
SELECT found.name FROM found LEFT JOIN files ON files.name = found.name
WHERE files.name IS NULL OR files.size != found.size OR files.mtime != found.mtime OR files.again
ORDER BY found.name
"""


class File(NamedTuple):
    """A file as it was read; `row` None and an `error` where that failed, `again` where another try may succeed."""

    name: bytes
    size: int
    mtime: int
    row: int | None
    error: str = ""
    again: bool = False


class Difference(NamedTuple):
    """What differs between a folder and the catalogue: names to read, and how many are not there any more."""

    names: list[bytes]
    gone: int


class Catalogue:
    """The catalogue of an index; every thread has a connection of its own.

    Args:
        index: the folder of the index.
        write: make the tables where they are missing, and allow changes.
    """

    def __init__(self, index: Path, *, write: bool = False):
        self._path, self._write, self._local = index / _FILE, write, threading.local()
        if write:
            with self._told():
                self._connection().executescript(_TABLES)

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            # A reader may write too: it takes back the transaction of a process that was killed in it.
            address = f"file:{quote(bytes(self._path))}?mode={'rwc' if self._write else 'rw'}"
            self._local.connection = sqlite3.connect(address, uri=True, timeout=_WAIT)
        return self._local.connection

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Names the file in SQLite's errors."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UserError(f"{self._path} cannot be used ({error}); the same command goes on") from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._path} is damaged ({error}); make the index anew") from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it, or nothing."""
        with self._told(), self._connection() as connection:
            yield connection
            connection.execute("UPDATE changes SET number = number + 1")

    def _all(self, query: str, *values: object) -> list[tuple]:
        with self._told():
            return self._connection().execute(query, values).fetchall()

    def close(self) -> None:
        """Closes the connection of this thread."""
        if hasattr(self._local, "connection"):
            self._local.connection.close()
            del self._local.connection

    def changes(self) -> int:
        """Grows whenever anything changes."""
        return self._all("SELECT number FROM changes")[0][0]

    def rows(self) -> int:
        """How many rows there are, those of deleted pictures among them."""
        return self._all("SELECT coalesce(max(row) + 1, 0) FROM contents")[0][0]

    def live(self) -> np.ndarray:
        """(rows,) bool: which contents have a file."""
        found = self._all("SELECT row FROM files WHERE row IS NOT NULL AND NOT gone")
        live = np.zeros(self.rows(), bool)
        live[[row for (row,) in found if row < len(live)]] = True
        return live

    def pictures(self) -> int:
        """How many files there are that could be read."""
        return self._all("SELECT count(*) FROM files WHERE row IS NOT NULL AND NOT gone")[0][0]

    def broken(self) -> list[tuple[bytes, str]]:
        """Names that cannot be read, and why."""
        return self._all("SELECT name, error FROM files WHERE row IS NULL AND NOT gone ORDER BY name")

    def row_of(self, sha256: bytes) -> int | None:
        """The row of a content, None if it is new."""
        found = self._all("SELECT row FROM contents WHERE sha256 = ?", sha256)
        return found[0][0] if found else None

    def names_of(self, row: int) -> list[bytes]:
        """All names of a content, in order."""
        return [name for (name,) in self._all("SELECT name FROM files WHERE row = ? AND NOT gone ORDER BY name", row)]

    def listing(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(name, row, sha256) of every file that could be read, in the order of names."""
        query = "SELECT name, row, sha256 FROM files JOIN contents USING (row) WHERE NOT gone ORDER BY name"
        with self._told():
            yield from self._connection().execute(query)

    def compare(self, found: Iterable[tuple[bytes, int, int]], unseen: Sequence[bytes]) -> Difference:
        """Compares with (name, size, mtime) of what a folder holds, and marks what is gone.

        Args:
            unseen: folders that could not be looked into, filled as `found` is read: what they hold is not gone.

        Raises:
            UserError: nothing at all is there any more; nothing is marked then.
        """
        with self._changing() as connection:
            connection.execute(
                "CREATE TEMP TABLE IF NOT EXISTS found (name BLOB PRIMARY KEY, size, mtime) WITHOUT ROWID"
            )
            connection.execute("DELETE FROM found")
            connection.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", found)
            there = connection.execute("SELECT name FROM files WHERE NOT gone AND name NOT IN (SELECT name FROM found)")
            gone = [(name,) for (name,) in there if not name.startswith(tuple(f + b"/" for f in unseen))]
            if gone and not connection.execute("SELECT count(*) FROM found").fetchone()[0]:
                raise UserError(
                    f"there is no picture any more, and the index has {len(gone):,}: is the disk there? "
                    "If they are gone for good, remove the index"
                )
            connection.executemany("UPDATE files SET gone = 1 WHERE name = ?", gone)
            connection.execute("UPDATE files SET gone = 0 WHERE gone AND name IN (SELECT name FROM found)")
            return Difference([name for (name,) in connection.execute(_DIFFERS)], len(gone))

    def add(self, contents: Iterable[tuple[int, bytes]], seen: Iterable[File]) -> None:
        """Adds (row, sha256) of contents whose vectors are stored, and files, in one transaction."""
        with self._changing() as connection:
            connection.executemany("INSERT INTO contents VALUES (?, ?)", contents)
            values = "(name, size, mtime, row, error, again) VALUES (?, ?, ?, ?, ?, ?)"
            connection.executemany(f"INSERT OR REPLACE INTO files {values}", seen)
