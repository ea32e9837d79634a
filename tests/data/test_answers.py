"""Answers are made alike and scored as the official evaluation of VQA does, and lists of them are made and read."""

import json

import numpy as np
import pytest

from maskvlm_jax.data import answers
from maskvlm_jax.runtime.errors import UserError
from tests.reference import vqa_score

ODD = [
    "", " ", ".", "a", "the", "The cat.", "2,000", "1,000 people!", "yes/no", "red, white", "red ,white", "u.s.a",
    "no. 5", "it's", "its", "dont know", "somebody'd", "y'alld've", "None", "ten  men", "t-shirt", "a - b", "[MASK]",
    "3.5", "café", "naïve\nword", "\ttab", "٣,٤", "xx" + "." * 40, "one.two", "(left)", "back\\slash", "what?!", "I'm",
]  # fmt: skip


@pytest.mark.parametrize("answer", ODD)
def test_odd_answers_are_normalised_as_officially(answer):
    assert answers.normalised(answer) == vqa_score.normalised(answer)


def test_every_contraction_of_the_official_table_is_known():
    assert {word: answers.normalised(word) for word in vqa_score.TABLE} == vqa_score.TABLE


def test_any_letters_are_normalised_as_officially():
    rng = np.random.default_rng(0)
    letters = [*"aan the one ,.;/-'!?09 \t()", "dont", "cant", " two ", ",5"]
    for _ in range(3_000):
        text = "".join(rng.choice(letters, rng.integers(0, 9)))
        assert answers.normalised(text) == vqa_score.normalised(text), repr(text)


@pytest.mark.parametrize(("people", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_of_ten_people_the_first_four_count(people, expected):
    given = ["yes"] * people + [f"other {i}" for i in range(10 - people)]
    assert answers.score("yes", given) == pytest.approx(expected)
    assert answers.scores(given).get("yes", 0) == pytest.approx(expected)


def test_scores_are_those_of_an_oracle_that_leaves_out_one_person_after_the_other():
    rng = np.random.default_rng(1)
    words = ["yes", "Yes.", "no", "2", "two", "a dog", "dog", "dont know", "don't know", "red,blue", "\n2 "]
    for _ in range(500):
        given = list(rng.choice(words, rng.choice([1, 3, 10])))
        for answer in words:
            assert answers.score(answer, given) == pytest.approx(vqa_score.score(answer, given))
        found = answers.scores(given)
        for answer, value in found.items():
            if len(set(map(str.strip, given))) > 1:
                assert value == pytest.approx(vqa_score.score(answer, given))


def test_where_all_people_agree_only_their_own_letters_are_right():
    assert answers.score("2", ["two"] * 10) == 0 and answers.score("two", ["two"] * 10) == 1
    assert answers.score("2", ["two"] * 9 + ["2"]) == 1


def test_shares_leave_out_what_is_empty_and_begin_with_the_most_frequent():
    assert list(answers.shares(["b", "The", "a cat", "cat", "b", "B."]).items()) == [("b", 0.5), ("cat", 2 / 6)]


def test_a_list_has_the_answers_of_enough_questions():
    most = ["yes"] * 5 + ["No."] * 3 + ["no"] * 2 + ["blue"] * 4 + ["the"] * 9 + ["rare"]
    assert answers.frequent(most, least=4) == ("no", "yes", "blue")
    assert answers.frequent(most, least=1, most=2) == ("no", "yes")
    assert answers.frequent([], least=1) == ()


@pytest.mark.parametrize("name", ["list.txt", "answer_list.json"])
def test_a_list_is_read_as_text_and_as_json(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(["yes", "", "no", "café"]) if name.endswith("json") else "\ufeffyes\r\n\nno\ncafé\n")
    assert answers.read_list(str(path)) == ("yes", "no", "café")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"yes": 1}', "a list of answers is a JSON list of texts"),
        ("a.json", b"[1, 2]", "a list of answers is a JSON list of texts"),
        ("a.json", b"[", "cannot be read"),
        ("a.txt", b"yes\nno\nyes\n", "a.txt row 3: the answer 'yes' is in row 1 too"),
        ("a.txt", b"\n \n", "there is no answer in it"),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8 text"),
        ("a.txt", None, "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        answers.read_list(str(tmp_path / name))
    assert "\n" not in str(error.value)
