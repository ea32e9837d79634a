"""Answers as arrays: the score of each answer of a list, and the tokens of those that people gave."""

import numpy as np
import pytest

from maskvlm_jax.data.fields import answer_text, answers
from maskvlm_jax.data.fields.base import Drawn, Sizes
from maskvlm_jax.data.sources.base import Listed, facts_of
from maskvlm_jax.data.sources.cleaned import Cleaned
from maskvlm_jax.data.sources.mixture import Mixture
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.runtime.errors import UserError
from tests.data.streaming import make_tokenizer

SIZES = Sizes(image_size=32, patch=8, max_length=20)
GIVEN = [["yes"] * 8 + ["no", "maybe"], ["2"] * 5 + ["two"] * 2 + ["3"] * 3, [], ["a cat"] * 10]


class Asked(Listed):
    """Questions whose pictures must not be read."""

    def __init__(self, given=GIVEN, **others):
        count = len(given)
        super().__init__(
            [f"q{i}" for i in range(count)], [[f"question {i}"] for i in range(count)], answers=given, **others
        )

    def image(self, index):
        raise AssertionError("a picture was read")


def drawn(given):
    return Drawn({"id": "q7", "answers": given}, np.zeros((2, 2, 3), np.uint8), "", {}, prepare=None)


def made(field, given):
    return field.make(drawn(given), np.random.default_rng(0))


def test_scores_are_in_the_order_of_the_list():
    field = answers.Field("answers", SIZES, answers=("no", "yes", "two", "dog"))
    assert field.arrays()["answers"].shape == (4,)
    np.testing.assert_allclose(made(field, GIVEN[0])["answers"], [0.3, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(made(field, GIVEN[1])["answers"], [0, 0, 1, 0])  # 2 and two are one answer
    assert not made(field, [])["answers"].any()


def test_of_two_answers_of_a_list_that_are_alike_the_first_is_meant():
    field = answers.Field("answers", SIZES, answers=("two", "2"))
    np.testing.assert_allclose(made(field, GIVEN[1])["answers"], [1, 0])


@pytest.mark.parametrize("wrap", [Limited, lambda s: Mixture([("a", s, 0.0, 0), ("b", Asked([["no"]] * 3), 0.0, 2)])])
def test_a_list_is_made_of_what_is_trained_on_and_no_picture_is_read(wrap):
    found = answers.Field.resolved({"answers": (), "file": "", "least": 1, "count": 0}, wrap(Cleaned(Asked(), "none")))
    both = wrap is not Limited
    assert found["answers"] == (("no",) if both else ()) + ("2", "cat", "yes")
    assert found["count"] == len(found["answers"])


def test_the_answer_of_most_people_is_the_sources_own_where_it_tells_one():
    source = Limited(Asked([["yes", "no"]] * 2, answer=["no", "no"]))
    assert answers.Field.resolved({"least": 2}, source)["answers"] == ("no",)


def test_only_examples_that_are_drawn_make_the_list():
    assert answers.Field.resolved({"least": 1}, Limited(Asked(), limit=1))["answers"] == ("yes",)


def test_a_list_of_a_file_is_kept_without_the_file(tmp_path):
    (tmp_path / "list.txt").write_text("yes\nno\n")
    found = answers.Field.resolved({"file": str(tmp_path / "list.txt"), "count": 2}, Limited(Asked()))
    assert found == {"answers": ("yes", "no"), "file": "", "count": 2}


def test_a_list_that_is_given_stays_and_the_most_frequent_can_be_asked_for():
    assert answers.Field.resolved({"answers": ("x",)}, Limited(Asked()))["answers"] == ("x",)
    assert answers.Field.resolved({"least": 1, "count": 1}, Limited(Asked()))["answers"] == ("2",)


def test_answers_too_rare_for_a_list_are_one_line():
    with pytest.raises(UserError, match=r"no answer is that of 9 questions that are trained on; lower least"):
        answers.Field.resolved({}, Limited(Asked()))


@pytest.mark.parametrize("given", [None, "yes", [1, 2], {"answer": "yes"}])
def test_answers_that_are_no_texts_are_named(given):
    with pytest.raises(UserError, match=r"q7 has the answers .*, data.fields.answers reads a list of texts"):
        made(answers.Field("answers", SIZES, answers=("yes",)), given)


def test_a_count_that_is_not_the_lists_is_refused():
    with pytest.raises(UserError, match=r"data\.fields.answers has 2 answers, and count is 3; make them agree"):
        answers.Field("answers", SIZES, answers=("yes", "no"), count=3)


def test_texts_of_answers_come_with_their_shares():
    tokenizer = make_tokenizer(Asked([["yes"]] * 4))
    field = answer_text.Field("answer", SIZES, tokenizer, most=3, length=8)
    arrays = made(field, GIVEN[1])
    assert {name: (value.shape, value.dtype) for name, value in arrays.items()} == {
        name: (array.shape, np.dtype(array.dtype)) for name, array in field.arrays().items()
    }
    np.testing.assert_allclose(arrays["answer_share"], [0.7, 0.3, 0])
    assert (arrays["answer_tokens"][:, 0] == tokenizer.start_id).all()
    assert arrays["answer_valid"].sum(axis=1).min() >= 2  # start and end
    assert not made(field, [])["answer_share"].any()


def test_more_answers_than_there_is_room_for_leave_out_the_rare_ones():
    field = answer_text.Field("answer", SIZES, make_tokenizer(Asked()), most=1)
    np.testing.assert_allclose(made(field, GIVEN[0])["answer_share"], [0.8])


def test_what_is_known_of_an_example_is_told_without_its_picture_where_a_source_can():
    known = facts_of(Asked(), 1)
    assert known == {"id": "q1", "captions": ["question 1"], "answers": GIVEN[1]}
    asked = [{"id": "a", "image": b"", "captions": [], "answers": ["x"]}]
    assert facts_of(asked, 0) == {"id": "a", "captions": [], "answers": ["x"]}
