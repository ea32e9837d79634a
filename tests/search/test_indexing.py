"""An index holds what its folder holds, embeds only what is new, and loses nothing however its process ends."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import facts as facts_of
from maskvlm_jax.search import indexing, making, scanning, vectors
from maskvlm_jax.search.catalogue import Catalogue
from tests.conftest import ROOT
from tests.search.stand_ins import StandIn, content, made, update, write_picture


@pytest.fixture
def folder(tmp_path):
    """Nine pictures in two folders."""
    for number in range(9):
        write_picture(tmp_path / "pictures" / ("a" if number < 5 else "b") / f"{number}.png", number)
    return tmp_path / "pictures"


@pytest.fixture
def index(tmp_path, folder):
    made(tmp_path / "index", folder)
    return tmp_path / "index"


def change(folder, count):
    """Deletes, renames, changes and adds as many pictures each."""
    names = sorted(folder.rglob("*.png"))
    for path in names[:count]:
        path.unlink()
    (folder / "elsewhere").mkdir()
    for path in names[count : 2 * count]:
        path.rename(folder / "elsewhere" / f"renamed-{path.name}")
    for place, path in enumerate(names[2 * count : 3 * count]):
        write_picture(path, 10_000 + place)
        os.utime(path, (1, 1))  # whatever the clock of the file system can tell apart
    for place in range(count):
        write_picture(folder / "added" / f"{place}.png", 20_000 + place)


@pytest.mark.parametrize(("pictures", "count"), [(500, 10), pytest.param(5_000, 100, marks=pytest.mark.slow)])
def test_an_update_embeds_what_was_added_or_changed_and_nothing_else(tmp_path, pictures, count):
    folder, index, model = tmp_path / "pictures", tmp_path / "index", StandIn()
    for number in range(pictures):
        write_picture(folder / str(number % 7) / f"{number}.png", number)
    made(index, folder)
    assert update(index, model).embedded == model.embedded == pictures
    again = update(index, model)
    assert (again.pictures, again.embedded, again.known, again.gone) == (pictures, 0, 0, 0)
    change(folder, count)
    report = update(index, model)
    assert (report.embedded, model.embedded) == (2 * count, pictures + 2 * count)
    assert (report.pictures, report.known, report.gone, report.broken) == (pictures, count, 2 * count, 0)
    made(tmp_path / "anew", folder)
    update(tmp_path / "anew")
    assert content(index) == content(tmp_path / "anew")
    assert Catalogue(index).rows() == pictures + 2 * count  # no row is used again
    assert int(Catalogue(index).live().sum()) == pictures


def run(index, *arguments):
    command = [sys.executable, "-m", "tests.search.stand_ins", *map(str, (index, *arguments))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_process_that_is_ended_anywhere_loses_nothing(tmp_path):
    folder, index, dice = tmp_path / "pictures", tmp_path / "index", random.Random(0)
    for place in range(1_000):
        write_picture(folder / f"{place}.png", place % 900)
    made(index, folder)
    stored = [0]
    points = [
        ("transaction", signal.SIGKILL, dice.randint(65, 200)),
        ("vectors", signal.SIGKILL, 2 * dice.randint(1, 3)),
    ]
    points += [("stored", signal.SIGKILL, dice.randint(1, 3)), ("embedding", signal.SIGINT, dice.randint(1, 3))]
    for point, number, count in points:
        assert run(index, point, int(number), count).returncode == -number
        stored.append(Catalogue(index).rows())
    assert stored == sorted(stored) and 0 < stored[1] <= stored[-1] < 900
    assert run(index).returncode == 0
    made(tmp_path / "straight", folder)
    assert update(tmp_path / "straight").embedded == 900
    assert content(index) == content(tmp_path / "straight")
    assert Catalogue(index).rows() == 900


def test_the_same_bytes_are_embedded_once_and_keep_their_row(index, folder):
    shutil.copy(folder / "a" / "0.png", folder / "b" / "copy.png")
    assert update(index).embedded == 9
    catalogue = Catalogue(index)
    (row,) = {row for name, row, _ in catalogue.listing() if name in (b"a/0.png", b"b/copy.png")}
    assert catalogue.names_of(row) == [b"a/0.png", b"b/copy.png"]
    for name in ("a/0.png", "b/copy.png"):
        (folder / name).unlink()
    assert update(index).gone == 2
    assert not catalogue.live()[row] and catalogue.names_of(row) == []
    write_picture(folder / "again.png", 0)
    report = update(index)
    assert (report.embedded, report.known) == (0, 1) and catalogue.names_of(row) == [b"again.png"]


def test_broken_files_are_listed_and_tried_again_when_they_have_changed(index, folder, monkeypatch):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture, and does not say so")
    report = update(index)
    assert (report.pictures, report.broken) == (9, 2)
    lines = (index / indexing.BROKEN).read_text().splitlines()
    assert lines[0].startswith("broken.jpg: the picture cannot be decoded") and lines[1].startswith("empty.png: ")
    monkeypatch.setattr(scanning, "look", None)
    assert update(index).broken == 2
    monkeypatch.undo()
    write_picture(folder / "broken.jpg", 77)
    report = update(index)
    assert (report.embedded, report.broken) == (1, 1)


def test_what_cannot_be_opened_is_tried_again_every_time(index, folder, monkeypatch):
    def refused(path, *flags):
        if os.fsencode(path).endswith(b"a/0.png"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *flags)

    opened = os.open
    monkeypatch.setattr(scanning.os, "open", refused)
    report = update(index)
    assert (report.embedded, report.broken) == (8, 1)
    assert (index / indexing.BROKEN).read_text() == "a/0.png: Permission denied\n"
    monkeypatch.undo()
    report = update(index)
    assert (report.embedded, report.broken) == (1, 0)


def test_links_are_not_followed(index, folder, tmp_path):
    write_picture(tmp_path / "outside" / "secret.png", 50)
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "secret.png").symlink_to(tmp_path / "outside" / "secret.png")
    (folder / "dangling.png").symlink_to("nowhere")
    report = update(index)
    assert (report.pictures, report.links, report.broken) == (9, 4, 0)


def test_names_of_any_bytes(index, folder):
    names = [b"\xff\xfe.png", "Grüße.PNG".encode(), b"line\nbreak\x1b[31m.png", b"a'b\"c%20?.jpeg", b".hidden.png"]
    for place, name in enumerate(names):
        write_picture(folder / "x.png", 100 + place)
        os.rename(folder / "x.png", os.path.join(os.fsencode(folder), name))
    assert update(index).pictures == 13
    there = [name for name, _, _ in Catalogue(index).listing()]
    assert set(names[:-1]) < set(there)
    assert update(index).embedded == 0
    shown = [scanning.printable(name) for name in names[:3]]
    assert shown == ["\\xff\\xfe.png", "Grüße.PNG", "line\\nbreak\\x1b[31m.png"]


def test_a_pipe_is_no_picture(index, folder):
    os.mkfifo(folder / "pipe.png")
    assert update(index).pictures == 9


def test_files_that_vanish_meanwhile_are_left_out(index, folder, monkeypatch):
    def look(where, name, *rest):
        if name.startswith(b"b/"):
            shutil.rmtree(folder / "b", ignore_errors=True)
        return looked(where, name, *rest)

    looked = scanning.look
    monkeypatch.setattr(scanning, "look", look)
    report = update(index)
    assert (report.pictures, report.embedded, report.broken) == (5, 5, 0)
    monkeypatch.undo()
    assert update(index).embedded == 0


def test_an_empty_folder_makes_an_index_without_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    made(tmp_path / "index", tmp_path / "empty")
    report = update(tmp_path / "index")
    assert (report.pictures, report.embedded) == (0, 0)


def test_a_folder_that_is_away_deletes_nothing(index, folder, tmp_path):
    update(index)
    before = content(index)
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the folder .*pictures cannot be read .*: is the disk there\?"):
        update(index)
    folder.mkdir()  # as a mount point is
    with pytest.raises(UserError, match="there is no picture any more, and the index has 9: is the disk there"):
        update(index)
    assert content(index) == before
    assert "9 pictures of" in making.update(index, folder=str(tmp_path / "moved"), progress=False)
    assert content(index) == before and facts_of.read(index).folder == str(tmp_path / "moved")


def test_a_folder_within_that_cannot_be_looked_into_keeps_what_is_known(index, folder, monkeypatch):
    update(index)
    before, scandir = content(index), os.scandir

    def refused(path):
        if path.endswith(b"/b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(scanning.os, "scandir", refused)
    report = update(index)
    assert (report.unseen, report.gone) == (1, 0) and content(index) == before


def test_nothing_is_written_into_the_folder_of_the_pictures(index, folder):
    def listing():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}

    before = listing()
    for path in (folder / "a", folder / "b", folder):
        path.chmod(0o555)
    update(index)
    for path in (folder, folder / "a", folder / "b"):
        path.chmod(0o755)
    assert listing() == before
    with pytest.raises(UserError, match="lies in the folder of the pictures, which is only read"):
        making.update(index, folder=str(index.parent))


def test_nothing_is_read_again_and_no_model_loaded_where_nothing_has_changed(index, monkeypatch):
    update(index)
    monkeypatch.setattr(scanning, "look", None)

    def load():
        raise AssertionError("the model is not needed")

    assert indexing.update(index, facts_of.read(index), load).pictures == 9


def test_another_model_is_refused_by_both_sha256(index):
    model = StandIn()
    model.parameters_sha256 = "b" * 64
    with pytest.raises(UserError, match=f"another model.* stand-in with parameters {'a' * 64}, .* has {'b' * 64}"):
        update(index, model)
    assert content(index) == []


def test_vectors_that_are_no_numbers_are_refused(index):
    model = StandIn()
    model.encode_images = lambda images: images.reshape(len(images), -1)[:, :16] * float("nan")
    with pytest.raises(UserError, match="gives vectors that are no numbers"):
        update(index, model)


def test_two_processes_cannot_update_at_once(index):
    with facts_of.locked(index):
        process = run(index)
        assert (
            f"another index command (process {os.getpid()}) is writing to {index}; wait for its end" in process.stderr
        )
    assert run(index).returncode == 0


def test_a_full_disk_is_told_and_the_same_command_goes_on(index, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(vectors.os, "fsync", full)
    with pytest.raises(UserError, match=r"vectors\.f16 cannot be written \(No space left on device\)"):
        update(index)
    monkeypatch.undo()
    assert update(index).embedded == 9


def test_a_damaged_index_is_named(index):
    update(index)
    (index / "vectors.f32").write_bytes(b"short")
    with pytest.raises(UserError, match=r"vectors\.f32 is damaged"):
        content(index)
    (index / "catalogue.sqlite").write_bytes(b"no database, but long enough to be looked at" * 99)
    with pytest.raises(UserError, match=r"catalogue\.sqlite is damaged"):
        update(index)
    (index / "index.json").write_text("{}")
    with pytest.raises(UserError, match="is an index of format None"):
        update(index)
