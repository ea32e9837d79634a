"""Data source `nlvr2`: sentences that are true or false of two photographs (Suhr et al. 2019, arXiv 1811.00491).

Reads the set as it was released, a JSON object a line, and ALBEF's lists (arXiv 2107.07651). The sentence is the
example's caption, "image" the left picture, "image2" the right one, "label" one of `LABELS`. An example's id is
SPLIT-SET-PAIR-SENTENCE: four pairs of pictures of a set have a sentence in common.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources.annotations import Json, field, picture_name
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.files import picture_folder, root_folder
from maskvlm_jax.data.sources.picture_rows import PictureRows, Row, json_rows, split_file
from maskvlm_jax.runtime.errors import UserError

LABELS = ("False", "True")
FILES = {"train": "train.json", "val": "dev.json", "test": "test1.json"}


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`: the file `data.splits` names, with pictures of `data.images`.

    Raises:
        UserError: as `PictureRows`, or a row is malformed.
    """
    path, dropped = split_file(data, split, "nlvr2"), Counter()
    folder = picture_folder(root_folder(data["root"]), data["images"])
    return Pairs(data, path, _read(path, folder), dropped)


class Pairs(PictureRows):
    """`PictureRows` with a second picture, "image2"."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"image2": self.picture(index, 1)}


def sentence_of(identifier: str) -> str:
    """What examples of one sentence have in common, as the official scores group them: all but the pair's number."""
    parts = identifier.split("-")
    return "-".join(parts[:2] + parts[3:])


def _read(path: Path, folder: Path) -> Iterator[Row]:
    places = _Places(folder)
    sentences: dict[str, list[str]] = defaultdict(list)
    for where, entry in json_rows(path):
        sentence, label = field(entry, "sentence", str, where), _label(entry, where)
        if "images" in entry:
            pictures = _named(entry, where)
            identifier = _identifier(pictures[0], sentence, sentences, where)
        else:
            identifier = field(entry, "identifier", str, where)
            pictures = places.pictures(_pair_of(identifier, where), str(entry.get("directory", "")), where)
        yield Row(where, identifier, pictures, sentence, {"label": label})


def _label(entry: Json, where: str) -> str:
    label = str(field(entry, "label", (str, bool), where)).capitalize()
    if label not in LABELS:
        raise UserError(f"{where}: the label {entry['label']!r} is none of {', '.join(LABELS)}; correct it")
    return label


def _pair_of(identifier: str, where: str) -> str:
    """What the names of both pictures begin with."""
    pair, _, sentence = identifier.rpartition("-")
    if pair.count("-") != 2 or not sentence:
        raise UserError(f"{where}: the identifier {identifier!r} is not SPLIT-SET-PAIR-SENTENCE; correct it")
    return pair


def _named(entry: Json, where: str) -> tuple[str, ...]:
    """The pictures of a row of ALBEF's, whose names begin at the folder above that of the pictures."""
    names = field(entry, "images", list, where)
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: images must be the names of two pictures")
    return tuple(picture_name(name.removeprefix("images/"), where) for name in names)


def _identifier(picture: str, sentence: str, sentences: dict[str, list[str]], where: str) -> str:
    """The released identifier of a row of ALBEF's, whose sentences are numbered as they come in a set."""
    pair, mark, _ = Path(picture).name.rpartition("-img")
    if not mark or pair.count("-") != 2:
        raise UserError(f"{where}: the picture {picture!r} is not named SPLIT-SET-PAIR-img0.png; correct it")
    of_set = sentences[pair.rpartition("-")[0]]
    if sentence not in of_set:
        of_set.append(sentence)
    return f"{pair}-{of_set.index(sentence)}"


class _Places:
    """Where the pictures of a pair lie: in the folder itself, or in SPLIT/ or SPLIT/DIRECTORY/ below it."""

    def __init__(self, folder: Path):
        self._folder, self._known = folder, {"": True}

    def pictures(self, pair: str, directory: str, where: str) -> tuple[str, ...]:
        split = pair.partition("-")[0]
        inside = next(place for place in (f"{split}/{directory}", split, directory, "") if self._there(place))
        return tuple(picture_name(f"{inside}/{pair}-img{side}.png".lstrip("/"), where) for side in (0, 1))

    def _there(self, place: str) -> bool:
        if place not in self._known:
            self._known[place] = (self._folder / place).is_dir()
        return self._known[place]
