"""Queries as the page sends them.

The body of a search is one line of JSON, and after the line break the bytes of the pictures that it searches by, in the
order of the parts that say how many bytes are theirs:

    {"parts": [{"text": "a red square"}, {"text": "ring", "weight": -1}, {"like": 12}, {"bytes": 48213}], "k": 40}
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from maskvlm_jax.search.searching import Part

MOST_HITS = 200
_MOST_PARTS = 16
_MOST_CHARACTERS, _MOST_WORDS = 10_000, 1_000  # of all texts of a query
_MOST_JSON = 8 * _MOST_CHARACTERS  # bytes: letters of 4 bytes, or escaped as \\uXXXX
_MOST_ROW = 2**63 - 1  # SQLite's largest


@dataclass(frozen=True)
class Query:
    """What is searched by; see `Searcher.search`."""

    parts: list[Part]
    k: int
    cutoff: float


def _bad(message: str, status: int = 400) -> HTTPException:
    return HTTPException(status, message)


def read(body: bytes) -> Query:
    """The query of a body.

    Raises:
        HTTPException: 400 where it is none, 413 where it is too long.
    """
    line, _, pictures = body.partition(b"\n")
    given = _json(line)
    parts = given.get("parts")
    if not isinstance(parts, list) or not parts:
        raise _bad("the query is empty")
    if len(parts) > _MOST_PARTS:
        raise _bad(f"a query has {_MOST_PARTS} parts at most", 413)
    k, cutoff = given.get("k", 40), given.get("cutoff", 0.5)
    if type(k) is not int or not 1 <= k <= MOST_HITS:
        raise _bad(f"k must be a number from 1 to {MOST_HITS}")
    if not _is_number(cutoff) or not 0 <= cutoff <= 1:
        raise _bad("the cut-off must be a number from 0 to 1")
    read_parts = []
    for part in parts:
        found, pictures = _part(part, pictures)
        read_parts.append(found)
    if pictures:
        raise _bad("there are more bytes than the query's pictures have")
    _check_texts([part.text for part in read_parts])
    return Query(read_parts, k, float(cutoff))


def read_words(body: bytes) -> tuple[str, int]:
    """The text and the row of a question which words matter; errors as of `read`."""
    given = _json(body)
    text = _text(given.get("text"))
    _check_texts([text])
    return text, row(given.get("row"))


def row(given: Any) -> int:
    """A row of the index, as a number or in digits.

    Raises:
        HTTPException: 404, it is no such number.
    """
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) < 20:
        given = int(given)
    if type(given) is not int or not 0 <= given <= _MOST_ROW:
        raise _bad("there is no such picture", 404)
    return given


def _json(line: bytes) -> dict[str, Any]:
    if len(line) > _MOST_JSON:
        raise _bad(f"a query may have {_MOST_CHARACTERS:,} letters at most", 413)
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise _bad("the query cannot be read")
    return given


def _part(given: Any, pictures: bytes) -> tuple[Part, bytes]:
    """A part, and the bytes that are of later parts."""
    kinds = {"text", "like", "bytes"}
    if not isinstance(given, dict) or len(kinds & set(given)) != 1:
        raise _bad("each part of a query is a text, a picture, or like a picture of the index")
    weight = given.get("weight", 1.0)
    if not _is_number(weight) or not 0 < abs(weight) <= 100:
        raise _bad("a weight must be a number from -100 to 100, and not 0")
    weight = float(weight)
    if "text" in given:
        return Part(text=_text(given["text"]), weight=weight), pictures
    if "like" in given:
        return Part(like=row(given["like"]), weight=weight), pictures
    size = given["bytes"]
    if type(size) is not int or not 0 < size <= len(pictures):
        raise _bad("the picture did not arrive whole, or is empty")
    return Part(image=pictures[:size], weight=weight), pictures[size:]


def _text(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise _bad("the text is empty")
    try:
        given.encode()
    except UnicodeEncodeError:  # halves of letters, which JSON can have
        raise _bad("the text has characters that are none") from None
    return given.strip()


def _check_texts(texts: list[str]) -> None:
    if sum(map(len, texts)) > _MOST_CHARACTERS or sum(len(text.split()) for text in texts) > _MOST_WORDS:
        raise _bad(f"a query may have {_MOST_WORDS:,} words and {_MOST_CHARACTERS:,} letters at most", 413)


def _is_number(given: Any) -> bool:
    return type(given) in (int, float) and math.isfinite(given)
