"""Small files in the format of VQA v2."""

import json
from pathlib import Path

from tests.data.hostile import encoded, picture


def questions_of(images) -> list[dict]:
    """Two questions of every picture."""
    return [
        {"question_id": image * 1000 + n, "image_id": image, "question": f"What  is it, {image} {n}?"}
        for image in images
        for n in range(2)
    ]


def annotation_of(question: dict, answers: list[str] | None = None, **changes) -> dict:
    """What ten people answered."""
    answers = answers or ["yes"] * 7 + ["no"] * 3
    given = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n, answer in enumerate(answers)]
    row = {"question_id": question["question_id"], "image_id": question["image_id"], "answers": given}
    return row | {"question_type": "is it", "answer_type": "yes/no", "multiple_choice_answer": answers[0]} | changes


def write(
    root: Path, subset: str, questions: list[dict], annotations: list[dict] | None = None, folder: str = ""
) -> None:
    """The files of a subset; `folder` of its pictures."""
    (root / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps({"questions": questions}))
    if annotations is not None:
        content = json.dumps({"annotations": annotations, "info": {}}, ensure_ascii=False)
        (root / f"v2_mscoco_{subset}_annotations.json").write_text(content)
    of_picture = subset.replace("-dev", "")
    where = root / (folder or of_picture)
    where.mkdir(parents=True, exist_ok=True)
    for image in {q["image_id"] for q in questions}:
        (where / f"COCO_{of_picture}_{image:012d}.jpg").write_bytes(encoded(picture(image), "JPEG"))
