"""Templates and names of classes are read from plain files, and make one vector a class."""

import numpy as np
import pytest

from maskvlm_jax.evaluators import prompts
from maskvlm_jax.runtime.errors import UserError


def test_those_that_are_shipped_are_read_by_name():
    assert "itap of a {}." in prompts.read_templates("photographs") and len(prompts.read_templates("photographs")) == 8
    assert prompts.read_templates("plain") == ("a photo of a {}",)
    assert all(map(prompts.is_template, prompts.read_templates("scenes")))


def test_a_file_of_one_s_own_has_one_a_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# mine\n\na  photo of {}\r\nune photo d'un {} éveillé\n".encode())
    assert prompts.read_templates(str(path)) == ("a photo of {}", "une photo d'un {} éveillé")
    path.write_text("a {}\na photo\n")
    with pytest.raises(UserError, match=r"mine\.txt row 2: 'a photo' must have \{\} once"):
        prompts.read_templates(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="there is no line in it: it should have templates"):
        prompts.read_templates(str(path))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8 text"):
        prompts.read_templates(str(path))
    with pytest.raises(UserError, match="choose among photographs, plain, scenes, or give the path of a file"):
        prompts.read_templates("photos")
    path.write_text("cat\nred panda\n")
    assert prompts.read_names(str(path)) == ("cat", "red panda")


def test_prompts_of_a_class_stand_together_and_their_mean_is_of_unit_length():
    texts = prompts.prompts(["cat", "dog"], ["a {}", "the {}."])
    assert texts == ["a cat", "the cat.", "a dog", "the dog."]
    rng = np.random.default_rng(0)
    text_TE = rng.normal(size=(4, 3))
    class_CE = prompts.class_vectors(text_TE, 2)
    for number in range(2):
        mean = (text_TE[2 * number] + text_TE[2 * number + 1]) / 2
        np.testing.assert_allclose(class_CE[number], mean / np.sqrt(np.sum(mean**2)))
