"""Pictures with a true caption and false ones, as the readers of compositional benchmarks share them.

An example is {"id", "image", "captions": [the true one, false ones], "kind", "family", "group", "tag"}. Kinds are
scored apart, usually a file each; a family is several kinds whose mean is taken; two examples of a group have one
another's caption as the false one (Winoground); a tag is a finer kind within one. What a set has none of is "".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.annotations import read_text
from maskvlm_jax.data.sources.base import Listed
from maskvlm_jax.data.sources.files import PictureFolder, picture_folder, root_folder
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError


class Case(NamedTuple):
    """One picture and its captions, as a file tells of them.

    where: words that name it in errors: its file and row.
    picture: its name relative to the picture folder.
    captions: the true one first.
    """

    where: str
    id: str
    picture: str
    captions: Sequence[str]
    kind: str
    family: str = ""
    group: str = ""
    tag: str = ""


class Alternatives(Listed):
    """Cases in their order; those whose picture is not there are left out, and counted in `report`.

    Args:
        folder: of the pictures.
        max_missing: largest share of pictures that may be missing.
    Raises:
        UserError: an empty caption, an id that stands twice, too many missing pictures, or no case.
    """

    def __init__(self, cases: Sequence[Case], folder: Path, *, max_missing: float):
        if twice := [case for case, count in Counter(case.id for case in cases).items() if count > 1]:
            where = [case.where for case in cases if case.id == twice[0]]
            raise UserError(f"{where[1]}: {twice[0]!r} is there already ({where[0]}); remove one of them")
        captions = {case.id: _usable(case) for case in cases}
        dropped = Counter()
        names = list(dict.fromkeys(case.picture for case in cases))
        self._pictures = PictureFolder(folder, names, max_missing, dropped)
        self._cases = [case for case in cases if case.picture in self._pictures]
        if not self._cases:
            raise UserError(f"{folder}: there is no picture with captions to tell apart; check --config.data.captions")
        super().__init__(
            [case.id for case in self._cases],
            [captions[case.id] for case in self._cases],
            report={reason: count for reason, count in dropped.items() if count},
            **{key: [getattr(case, key) for case in self._cases] for key in ("kind", "family", "group", "tag")},
        )

    def image(self, index: int) -> bytes:
        """The bytes of the picture's file; b"" where it cannot be read."""
        return self._pictures.read(self._cases[index].picture)


def _usable(case: Case) -> list[str]:
    captions = usable_captions(case.captions)
    if len(captions) < len(case.captions):
        raise UserError(f"{case.where}: a caption is empty or no text; correct it or remove the row")
    return captions


class Place(NamedTuple):
    """Where a set is: the folder of its pictures, and the files that tell of them."""

    pictures: Path
    files: list[Path]


def find(data: Mapping[str, Any], split: str, what: str, *, images: Sequence[str], files: Sequence[str]) -> Place:
    """What `config.data` names: the folder `images`, and `captions` or, of a split, `splits[split]`.

    Args:
        what: the kind of set, for messages.
        images: usual folders where `data.images` is ""; the first that is there.
        files: usual patterns of files where neither is given; the first that has any.
    Raises:
        UserError: there is no such folder, or no such file.
    """
    buckets.local_folder(data["root"], f"a set of kind {what}")
    root = root_folder(data["root"])
    given = data["splits"].get(split) or data["captions"]
    patterns = (given,) if given else tuple(files)
    found = next(filter(None, (sorted(map(root.joinpath, remote.matches(str(root), one))) for one in patterns)), [])
    if not found:
        raise UserError(
            f"{root}: there is no {' and no '.join(patterns)}; set --config.data.captions to the file of {what}"
        )
    usual = next((name for name in images if (root / name).is_dir()), images[0])
    return Place(picture_folder(root, data["images"] or usual), found)


def text_of(path: Path) -> str:
    """A file that tells of pictures."""
    return read_text(path, "caption file")
