"""Answers as people give them: made alike, scored, and listed, as the evaluation of VQA does (Goyal et al. 2017, arXiv
1612.00837; visualqa.org).

Ten people answer each question. An answer's score is the mean, over all ways to leave one of them out, of

    min(1, how many of the others gave this answer / 3)

which for ten people is 0.3, 0.6, 0.9 and 1 where one, two, three and more of them gave it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from maskvlm_jax.runtime import files
from maskvlm_jax.runtime.errors import UserError

ENOUGH = 3  # people whose answer is right in full

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # that are removed: the official script gives a flag of that value in the place of a count

_CONTRACTIONS = (
    "ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't", "don't", "hadn't",
    "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd", "how'll", "how's", "isn't", "it'd",
    "it'd've", "it'll", "ma'am", "mightn't", "mightn't've", "might've", "mustn't", "must've", "needn't", "not've",
    "o'clock", "oughtn't", "'ow's'at", "shan't", "she'd've", "should've", "shouldn't", "shouldn't've",
    "somebody'd've", "somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's",
    "something'd", "something'd've", "something'll", "that's", "there'd", "there'd've", "there're", "there's",
    "they'd", "they'd've", "they'll", "they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't",
    "what'll", "what're", "what's", "what've", "when's", "where'd", "where's", "where've", "who'd", "who'd've",
    "who'll", "who's", "who've", "why'll", "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've",
    "y'all", "y'all'll", "y'all'd've", "you'd", "you'd've", "you'll", "you're", "you've",
)  # fmt: skip


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'")


# What lacks one apostrophe gets it; one word of the official table loses it.
_WRITTEN_OUT = {short: word for word in _CONTRACTIONS for short in _without_one_apostrophe(word)}
_WRITTEN_OUT["somebody'd"] = "somebodyd"


def normalised(answer: str) -> str:
    """An answer as it is compared: no punctuation, lower case, digits for numbers, no articles, contractions with their
    apostrophes.

    Punctuation becomes a space, or nothing where it stands beside a space or the answer has a number with a comma.
    Periods before a digit stay.
    """
    joined, text = _NUMBER_WITH_COMMA.search(answer) is not None, answer
    for mark in _PUNCTUATION:
        apart = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if apart or joined else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", text, count=_MOST_PERIODS).lower().split()]
    return " ".join(_WRITTEN_OUT.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def score(answer: str, given: Sequence[str]) -> float:
    """The score of an answer to a question that people gave these answers to, 0 to 1.

    Answers are normalised where people differ. Where all gave the same one, letter for letter, that one is right and
    nothing else, as in the official script.
    """
    answer, given = _one_line(answer), [_one_line(one) for one in given]
    if len(set(given)) > 1:
        answer, given = normalised(answer), [normalised(one) for one in given]
    return _share(given.count(answer), len(given))


def _share(matches: int, people: int) -> float:
    """The mean over those that may be left out, of whom `matches` gave the answer."""
    others = (people - matches) * min(1.0, matches / ENOUGH)
    return (matches * min(1.0, (matches - 1) / ENOUGH) + others) / people if matches else 0.0


def scores(given: Sequence[str]) -> dict[str, float]:
    """Normalised answer -> score, of all that people gave."""
    counts = Counter(map(normalised, given))
    return {answer: _share(count, len(given)) for answer, count in counts.items()}


def shares(given: Sequence[str]) -> dict[str, float]:
    """Normalised answer -> share of the people who gave it, the most frequent first; what is empty is left out."""
    counts = Counter(answer for answer in map(normalised, given) if answer)
    return {answer: count / len(given) for answer, count in counts.most_common()}


def frequent(answers: Iterable[str], *, least: int, most: int = 0) -> tuple[str, ...]:
    """The normalised answers of at least `least` questions, the most frequent first, then by the alphabet.

    Args:
        answers: the one answer of each question that most people gave.
        most: so many of them only; 0 = all.
    """
    counts = Counter(answer for answer in map(normalised, answers) if answer)
    found = sorted((answer for answer, count in counts.items() if count >= least), key=lambda one: (-counts[one], one))
    return tuple(found[: most or None])


def read_list(path: str) -> tuple[str, ...]:
    """The answers of a file: one a line, or a JSON list of them (ALBEF's `answer_list.json`).

    Raises:
        UserError: the file cannot be read, holds no answers, or one twice.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() == ".json":
        answers = files.read_json(file)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise UserError(f"{file}: a list of answers is a JSON list of texts; take the file anew")
    else:
        try:
            answers = file.read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise UserError(f"{file}: the list of answers cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 text; save the list of answers as UTF-8") from error
    found: dict[str, int] = {}
    for row, answer in enumerate(map(_one_line, answers), start=1):
        if answer in found:
            raise UserError(f"{file.name} row {row}: the answer {answer!r} is in row {found[answer]} too; remove one")
        if answer:
            found[answer] = row
    if not found:
        raise UserError(f"{file}: there is no answer in it; give one a line")
    return tuple(found)
