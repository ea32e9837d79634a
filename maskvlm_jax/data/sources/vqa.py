"""Data source `vqa`: questions about pictures with ten answers each, in the files of VQA v2 as they are released.

    ROOT/v2_OpenEnded_mscoco_train2014_questions.json     {"questions": [{"question_id", "image_id", "question"}, ...]}
    ROOT/v2_mscoco_train2014_annotations.json             {"annotations": [{"question_id", "answers": [...], ...}, ...]}
    ROOT/IMAGES/train2014/COCO_train2014_000000000009.jpg

`data.splits` says which subsets a split is made of, "train2014", or several, "train2014+val2014"; `data.images` is the
folder IMAGES, where pictures may lie without folders of the subsets too. Test subsets have no annotations.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskvlm_jax.data.sources.annotations import Json, field, load_json, read_text, rows
from maskvlm_jax.data.sources.base import Listed, Source
from maskvlm_jax.data.sources.files import PictureFolder, picture_folder, root_folder
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, few

SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split` of the folder `data.root`, which must be on disk.

    Raises:
        UserError: a file is missing or malformed, there is no such split, its pictures are missing, or it is the one
            that is trained on and has no answers.
    """
    buckets.local_folder(data["root"], "a set of kind vqa")
    root = root_folder(data["root"])
    if split not in data["splits"]:
        raise UserError(
            f"there is no split {split!r} in --config.data.splits; choose from {few(sorted(data['splits']))}"
        )
    subsets = data["splits"][split].split("+")
    if split == data["split"]:
        for path in (_annotations_file(root, subset) for subset in subsets):
            if not path.is_file():
                raise UserError(f"{path}: no such file; questions are trained on with their answers, put it there")
    return Questions(root, data["images"], subsets, max_missing=data["max_missing"])


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """The splits whose questions are on disk; where there are none `data.split`, whose opening tells what is wrong."""
    root = buckets.local_folder(data["root"], "a set of kind vqa")
    there = [
        split
        for split, subsets in data["splits"].items()
        if all(_questions_file(root, subset).is_file() for subset in subsets.split("+"))
    ]
    return there or (data["split"],)


def _questions_file(root: Path, subset: str) -> Path:
    return root / f"v2_OpenEnded_mscoco_{subset}_questions.json"


def _annotations_file(root: Path, subset: str) -> Path:
    return root / f"v2_mscoco_{subset}_annotations.json"


class _Question(NamedTuple):
    """A question as its file has it, and where that is, for messages."""

    number: int
    picture: str
    text: str
    where: str


class _Annotation(NamedTuple):
    """What people answered; nothing where it is not known."""

    answers: tuple[str, ...] = ()
    answer: str = ""
    question_type: str = ""
    answer_type: str = ""


class Questions(Listed):
    """Questions, one an example: its id is that of the question, its one caption the question.

    What else is known of it: "question_id" as the file has it, "answers" of the people, () where there are none,
    "answer" of most of them, "question_type" and "answer_type".

    `report` counts what was left out: `missing_pictures`, and questions that are `questions_without_picture`,
    `empty_questions` or `questions_without_answers`.

    Args:
        root: the folder of the files.
        images: the folder of the pictures below it; "" is the root.
        subsets: "train2014", ...
        max_missing: largest share of the pictures that may be missing.
    Raises:
        UserError: a file is missing or malformed, an id is there twice, or no question is left.
    """

    def __init__(self, root: Path, images: str, subsets: Sequence[str], *, max_missing: float):
        folder, dropped = picture_folder(root, images), Counter()
        asked = [question for subset in subsets for question in _read_questions(root, subset, folder)]
        _check_different(asked)
        answered = [_read_annotations(root, subset) for subset in subsets]
        known = {number: annotation for one in answered if one is not None for number, annotation in one.items()}
        if answered and all(one is not None for one in answered):
            dropped["questions_without_answers"] = sum(question.number not in known for question in asked)
            asked = [question for question in asked if question.number in known]
        self._pictures = PictureFolder(folder, list(dict.fromkeys(q.picture for q in asked)), max_missing, dropped)
        dropped["questions_without_picture"] = sum(question.picture not in self._pictures for question in asked)
        used = [question for question in asked if question.picture in self._pictures]
        texts = [usable_captions([question.text]) for question in used]
        dropped["empty_questions"] = texts.count([])
        used = [question for question, text in zip(used, texts, strict=True) if text]
        if not used:
            raise UserError(f"{_questions_file(root, subsets[0])}: no question can be used ({dict(+dropped)})")
        self._picture_of = [question.picture for question in used]
        annotations = [known.get(question.number, _Annotation()) for question in used]
        super().__init__(
            [str(question.number) for question in used],
            [text for text in texts if text],
            report=dict(+dropped),
            question_id=[question.number for question in used],
            **{key: [getattr(one, key) for one in annotations] for key in _Annotation._fields},
        )

    def image(self, index: int) -> bytes:
        """The bytes of the picture's file; b"" where it cannot be read."""
        return self._pictures.read(self._picture_of[index])


def _read_questions(root: Path, subset: str, folder: Path) -> Iterator[_Question]:
    path, pictures = _questions_file(root, subset), subset.replace("-dev", "")  # test-dev has the pictures of test
    inside = f"{pictures}/" if (folder / pictures).is_dir() else ""
    for where, entry in _entries(path, "questions", "question file"):
        picture = f"{inside}COCO_{pictures}_{_number(entry, 'image_id', where):012d}.jpg"
        yield _Question(_number(entry, "question_id", where), picture, field(entry, "question", str, where), where)


def _read_annotations(root: Path, subset: str) -> dict[int, _Annotation] | None:
    """Question id -> what people answered; None where there is no such file."""
    path, found = _annotations_file(root, subset), {}
    if not path.is_file():
        return None
    for where, entry in _entries(path, "annotations", "annotation file"):
        number = _number(entry, "question_id", where)
        if number in found:
            raise UserError(f"{where}: question_id {number} is used twice; take the file anew")
        given = [field(one, "answer", str, where) for one in field(entry, "answers", list, where)]
        others = (field(entry, key, str, where) for key in ("multiple_choice_answer", "question_type", "answer_type"))
        # Half a million questions have few different answers.
        found[number] = _Annotation(tuple(map(sys.intern, given)), *map(sys.intern, others))
    return found


def _entries(path: Path, key: str, kind: str) -> Iterator[tuple[str, Json]]:
    return rows(field(load_json(read_text(path, kind), path.name), key, list, path.name), path.name)


def _number(entry: Json, key: str, where: str) -> int:
    number = field(entry, key, int, where)
    if isinstance(number, bool) or number < 0:
        raise UserError(f"{where}: {key} is {number!r}; it must be a whole number from 0 on")
    return number


def _check_different(questions: Sequence[_Question]) -> None:
    """Raises UserError where two questions have one id."""
    seen: dict[int, str] = {}
    for question in questions:
        if question.number in seen:
            raise UserError(
                f"{question.where}: question_id {question.number} is that of {seen[question.number]} too; "
                "take the file anew"
            )
        seen[question.number] = question.where
