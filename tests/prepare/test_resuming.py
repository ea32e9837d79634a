"""Preparing goes on where it was stopped, and leaves alone what is another's."""

import dataclasses
import os
import signal

import pytest

from maskvlm_jax.data.sources import records
from maskvlm_jax.data.sources.array_record import ArrayRecords
from maskvlm_jax.prepare import pieces, survey
from maskvlm_jax.runtime import files
from maskvlm_jax.runtime.errors import Stopped, UserError
from maskvlm_jax.runtime.stopping import StopRequest
from tests.prepare.albums import SOUND, Album, contents, found_by_root, run, settings


@pytest.fixture
def albums(monkeypatch):
    return found_by_root(monkeypatch)


class Killed(BaseException):
    """Ends a preparation at once, wherever it is."""


def kill_at(monkeypatch, module, name: str, call: int) -> list:
    """Makes the `call`-th call of a function the end; returns the calls, which grow."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def run_killed_at(monkeypatch, config, record: int) -> None:
    """A run that ends before its `record`-th record is written."""
    with monkeypatch.context() as patch:
        kill_at(patch, records, "encode", record)
        with pytest.raises(Killed):
            run(config)


@pytest.mark.parametrize(
    ("module", "name", "call", "left"),
    [
        (survey, "examine", 6, 6),  # in the second piece of the scan, when the four examples of the first are kept
        (records, "encode", 5, 0),  # in the second shard
        (records, "encode", 12, 0),  # in the file of the captions
        # Before the manifest: the calls before it are one at the beginning and one a shard.
        (files, "write_json", 6, 0),
    ],
)
def test_what_was_killed_goes_on_and_ends_with_the_same_files(albums, tmp_path, monkeypatch, module, name, call, left):
    run(settings(tmp_path / "straight"))
    config = settings(tmp_path / "killed")
    with monkeypatch.context() as patch:
        kill_at(patch, module, name, call)
        with pytest.raises(Killed):
            run(config)
    assert not (tmp_path / "killed" / "train" / records.MANIFEST).exists()
    with pytest.raises(UserError, match="is not finished; the command that prepared it goes on"):
        ArrayRecords(root=config.out, split="train")
    examined = kill_at(monkeypatch, survey, "examine", 100)
    run(config)
    assert len(examined) == left, "what was scanned before is not scanned again"
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_finished_shards_are_not_written_again(albums, tmp_path, monkeypatch):
    config = settings(tmp_path)
    run_killed_at(monkeypatch, config, 8)
    first = tmp_path / "train" / "shard-00000-of-00004.array_record"
    before = first.stat()
    run(config)
    assert first.stat() == before


def test_a_signal_stops_behind_a_piece(albums, tmp_path):
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    scans = pieces.Scan.cut(albums["sound"], 10, tmp_path / "scan", min_size=0)
    crew = pieces.Crew([albums["sound"]], workers=1, stop=stop)
    with crew, pytest.raises(Stopped, match="the same command goes on"):
        crew.run(scans, "")
    assert [scan.done for scan in scans] == [True, False, False]


@dataclasses.dataclass(frozen=True)
class Deadly:
    """A piece that ends its process as the kernel does when memory runs out."""

    source: Album | None
    examples: int = 1
    done: bool = False

    def run(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told(albums):
    deadly = [Deadly(albums["sound"])] * 2
    crew = pieces.Crew([albums["sound"]], workers=2, stop=StopRequest())
    with crew, pytest.raises(UserError, match="a worker process was killed, perhaps for want of memory"):
        crew.run(deadly, "")


def test_a_finished_set_that_lacks_a_file_is_told(albums, tmp_path):
    run(settings(tmp_path))
    shard = next(tmp_path.rglob("*.array_record"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{shard.name} is not of the size that was written; copy it again"):
        run(settings(tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing; copy it again, or remove {shard.parent}"):
        run(settings(tmp_path))
    shard.write_bytes(whole)
    run(settings(tmp_path))


def test_a_finished_set_is_left_alone(albums, tmp_path, capsys):
    run(settings(tmp_path))
    before = contents(tmp_path)
    capsys.readouterr()
    run(settings(tmp_path, workers=2))
    assert "is finished already\n  parquet train: 10 of 12" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_other_values_and_other_sources_are_refused(albums, tmp_path):
    run(settings(tmp_path))
    before = contents(tmp_path)
    albums["less"] = Album({"00": SOUND["00"]})
    for changed, named in (
        ({"resize": 40}, "with other values of quality, resize"),
        ({"min_size": 10}, "with other values of min_size"),
        ({"root": "less"}, "from other examples or captions"),
        ({"structure": "data=parquet,against=coco", "against": "less"}, "with other values of against, against_distan"),
    ):
        with pytest.raises(UserError, match=f"was prepared {named}.*; use another --config.out, or remove it"):
            run(settings(tmp_path, **changed))
    assert contents(tmp_path) == before


def test_unfinished_work_of_another_preparation_is_refused(albums, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, survey, "examine", 6)
        with pytest.raises(Killed):
            run(settings(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="was prepared in part with other values of quality, resize"):
        run(settings(tmp_path, resize=40))
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_is_refused(albums, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds other files; use another"):
        run(settings(tmp_path))
    assert contents(tmp_path) == {"train/photo.jpg": b"mine"}


def test_a_picture_that_changes_on_the_way_is_told(albums, tmp_path, monkeypatch):
    config = settings(tmp_path)
    run_killed_at(monkeypatch, config, 1)
    albums["sound"]._pictures[4] = ("04", SOUND["05"])
    with pytest.raises(UserError, match="the picture 04 changed while it was prepared; remove"):
        run(config)
