"""Captions are cleaned as the config says, and a caption that is left empty is not there."""

import pytest

from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources import cleaned


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('A dog, a "cat" & (two) birds!', "a dog a cat & two birds"),
        ("well-known  red/blue\tthing.", "well known red blue thing"),
        ("<PERSON> rides; it's 3:00~", "person rides its 300"),
        (" .,!? ", ""),
    ],
)
def test_albef_s_rules(written, expected):
    assert cleaned.clean(written, "albef") == expected


def test_without_rules_only_white_space_changes():
    assert cleaned.clean(" A dog,\n a CAT. ", "none") == "A dog, a CAT."


def test_a_caption_of_a_megabyte_is_cut():
    assert len(cleaned.clean("word " * 200_000, "none")) <= cleaned.MAX_CHARACTERS


class Punctuated:
    """A source with one caption of which nothing is left."""

    report, fingerprint = {"missing": 1}, "abc"

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"id": "x", "image": b"", "captions": self.captions(index)}

    def id(self, index):
        return "x"

    def captions(self, index):
        return ["...", "A dog."] if index else ["?!"]


def test_captions_of_which_nothing_is_left_are_left_out():
    source = cleaned.Cleaned(Punctuated(), "albef")
    assert [source.captions(i) for i in range(2)] == [[], ["a dog"]]
    assert source[1] == {"id": "x", "image": b"", "captions": ["a dog"]}
    assert (len(source), source.id(0), source.report, source.fingerprint) == (2, "x", {"missing": 1}, "abc")


def test_captions_that_are_clean_stay_as_they_are():
    scenes = Scenes(split="train", image_size=32, length=3)
    assert cleaned.Cleaned(scenes, "none").captions(1) == scenes.captions(1)
