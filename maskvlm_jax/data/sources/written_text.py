"""Text as people's files hold it: which encoding it has, and which captions of it can be used."""

import codecs
from collections.abc import Iterable
from typing import Any


def encoding_of(text: Any) -> str:
    """UTF-8, or UTF-16 where a mark at the beginning says so, as Windows' editors write it."""
    marked = isinstance(text, bytes) and text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if marked else "utf-8"


def usable_captions(written: Iterable[Any]) -> list[str]:
    """The captions among `written` with white space collapsed; what is empty or no text is left out."""
    captions = []
    for caption in written:
        try:
            if isinstance(caption, str):
                caption.encode()  # JSON can hold half of a surrogate pair, which no tokenizer takes
            text = caption if isinstance(caption, str) else bytes.decode(caption, encoding_of(caption))
        except (TypeError, UnicodeError):
            continue
        captions.append(" ".join(text.removeprefix("\ufeff").split()))
    return [caption for caption in captions if caption]
