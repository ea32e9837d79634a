"""Captions as training reads them: cleaned by rules, and none longer than is reasonable."""

import re
from typing import Any

from maskvlm_jax.data.sources.base import facts_of

CLEANING = ("none", "albef")
MAX_CHARACTERS = 10_000  # a megabyte of text in the place of a caption would keep the tokenizer busy for seconds

_ALBEF_DROPPED, _ALBEF_SPACED = re.compile(r"[,.'!?\"()*#:;~]"), re.compile(r"[-/]")


def clean(caption: str, rules: str) -> str:
    """A caption with white space collapsed, cut to MAX_CHARACTERS, and cleaned.

    Args:
        rules: "none" changes nothing else. "albef" is ALBEF's `pre_caption` (arXiv 2107.07651, its code): lower case,
            the characters ,.'!?"()*#:;~ left out, - and / made spaces, <person> made a word.
    """
    caption = caption[:MAX_CHARACTERS]
    if rules == "albef":
        caption = _ALBEF_SPACED.sub(" ", _ALBEF_DROPPED.sub("", caption.lower())).replace("<person>", "person")
    return " ".join(caption.split())


class Cleaned:
    """A source with cleaned captions; a caption of which nothing is left is left out."""

    def __init__(self, source: Any, rules: str):
        self._source, self._rules = source, rules
        self.report = source.report
        self.id_reads_record = getattr(source, "id_reads_record", False)
        self.classes = getattr(source, "classes", ())

    def _clean(self, captions: list[str]) -> list[str]:
        return [cleaned for cleaned in (clean(caption, self._rules) for caption in captions) if cleaned]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return example | {"captions": self._clean(example["captions"])}

    def facts(self, index: int) -> dict[str, Any]:
        known = facts_of(self._source, index)
        return known | {"captions": self._clean(known["captions"])}

    def id(self, index: int) -> str:
        return self._source.id(index)

    def captions(self, index: int) -> list[str]:
        return self._clean(self._source.captions(index))

    @property
    def fingerprint(self) -> str:
        """The source's own: the rules are part of the config."""
        return self._source.fingerprint
