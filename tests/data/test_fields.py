"""Fields: more arrays of an example, without any change to those that are there."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import evaluate
from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import evaluation_set, examples
from maskvlm_jax.data.evaluation_set import load_evaluation
from maskvlm_jax.data.fields import label
from maskvlm_jax.data.fields.base import Sizes
from maskvlm_jax.data.rows import Rows
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources import records
from maskvlm_jax.data.sources.base import Listed
from maskvlm_jax.prepare import pieces
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values, rules
from tests.conftest import toy_config
from tests.data.streaming import STRONG, make_tokenizer

COLOURS = ("red", "green", "blue")
MORE = {
    "colour": {"name": "label", "classes": COLOURS},
    "number": {"name": "label", "key": "place"},
    "after": {"name": "picture", "key": "second"},
}


class Pairs(Listed):
    """Ten pictures, each with a colour, a number and a second picture."""

    def __init__(self):
        self._scenes = Scenes(split="train", image_size=32, length=20)
        colours = [COLOURS[i % 3] for i in range(10)]
        second = [self._scenes[10 + i]["image"] for i in range(10)]
        captions = [[*self._scenes.captions(i), "another one"] for i in range(10)]
        super().__init__([f"p{i}" for i in range(10)], captions, colour=colours, place=list(range(10)), second=second)

    def image(self, index):
        return self._scenes[index]["image"]


@pytest.fixture(scope="module")
def source():
    return Pairs()


@pytest.fixture(scope="module")
def tokenizer(source):
    return make_tokenizer(source)


def config_with(fields, **values):
    config = toy_config(data__augment=STRONG, **values)
    with config.unlocked():
        config.data.fields = fields
    return config


def drawn(config, source, tokenizer, element=4, seed=0):
    return examples.make_example(config, source, tokenizer).random_map(element, np.random.default_rng(seed))


def test_more_fields_leave_the_others_as_they_are(source, tokenizer):
    for dropout in (0.9, 0.0):
        for seed in range(8):
            plain = drawn(config_with({}, data__modality_dropout=dropout), source, tokenizer, seed=seed)
            more = drawn(config_with(MORE, data__modality_dropout=dropout), source, tokenizer, seed=seed)
            assert more.keys() - plain.keys() == MORE.keys()
            for name, value in plain.items():
                np.testing.assert_array_equal(more[name], value)
    assert (more["colour"], more["number"], more["colour"].dtype) == (1, 4, np.int32)
    assert more["after"].shape == (32, 32, 3) and (more["after"] != more["image"]).any()


def test_a_second_crop_is_drawn_anew_and_behind_all_else(source, tokenizer):
    crop = {"second_crop": {"name": "picture", "key": "image"}}
    plain, more, again = (drawn(config_with(fields), source, tokenizer) for fields in ({}, crop, crop))
    for name, value in plain.items():
        np.testing.assert_array_equal(more[name], value)
    np.testing.assert_array_equal(more["second_crop"], again["second_crop"])
    assert more["second_crop"].shape == more["image"].shape and (more["second_crop"] != more["image"]).any()
    whole = read(source, tokenizer, crop)
    np.testing.assert_array_equal(whole.of_picture["second_crop"][3], whole.images[3], "nothing is cropped there")


def test_a_batch_has_the_shapes_that_were_told(source, tokenizer):
    config = config_with(MORE)
    example = drawn(config, source, tokenizer)
    shapes = examples.batch_shapes(config)
    assert shapes.keys() == example.keys() - set(batches.HOST_KEYS)
    for name, (shape, dtype) in shapes.items():
        assert (shape, np.dtype(dtype)) == ((config.batch_size, *np.shape(example[name])), example[name].dtype), name


def read(source, tokenizer, fields, memory=10**9, **options):
    config = config_with(fields)
    values = {"seed": 5, "limit": 0, "captions_per_image": 0, "one_at_a_time": True} | options
    return load_evaluation(
        source,
        examples.fields_of(config, tokenizer),
        image_size=32,
        masking_options=config.masking.to_dict(),
        memory=memory,
        **values,
    )


def test_an_evaluation_set_has_the_fields_too(source, tokenizer):
    plain, more = read(source, tokenizer, {}), read(source, tokenizer, MORE)
    pictures, texts = np.array([7, 2, 2]), np.array([3, 0, 19])
    expected, found = (data.batch(pictures, texts, np.ones(3, bool)) for data in (plain, more))
    assert found.keys() - expected.keys() == MORE.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["number"].tolist() == [7, 2, 2] and found["colour"].tolist() == [1, 2, 2]
    np.testing.assert_array_equal(found["after"][0], source[7]["second"])
    assert more.first(4).batch(np.arange(4), np.arange(4), np.ones(4, bool))["number"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("memory", [0, 3 * 2 * 32 * 32 * 3 + 5])
def test_pictures_that_do_not_fit_into_memory_are_read_again(source, tokenizer, memory, monkeypatch):
    held = read(source, tokenizer, MORE)
    reads, prepare = [], evaluation_set.transforms.resize
    monkeypatch.setattr(evaluation_set, "SMALL", 1_000)
    monkeypatch.setattr(
        evaluation_set.transforms, "resize", lambda image, size: reads.append(1) or prepare(image, size=size)
    )
    apart = read(source, tokenizer, MORE, memory=memory)
    first = len(reads)
    ids = np.array([9, 0, 3, 3, 1])
    for name, rows in held.of_picture.items():
        np.testing.assert_array_equal(apart.of_picture[name][ids], rows[ids], err_msg=name)
        np.testing.assert_array_equal(apart.of_picture[name].first(5)[4], rows[4])
    assert len(reads) > first
    small = len(reads)
    apart.image_masked[ids]
    assert len(reads) == small, "small arrays are held in any case"


def test_rows_that_are_not_held_are_made_once_for_each_request():
    made = []
    rows = Rows(np.arange(3), 8, lambda i: made.append(i) or np.int64(i))
    assert rows[np.array([7, 1, 7, 5])].tolist() == [7, 1, 7, 5] and sorted(made) == [5, 7]
    assert len(rows) == 8 and len(rows.first(2)) == 2 and rows.first(20)[7] == 7


def test_what_a_packed_record_holds_makes_the_same_fields(source, tokenizer):
    def packed(i):
        example = source[i]
        stored = {key: pieces.stored_image(example[key], resize=0, quality=90) for key in ("image", "second")}
        return records.decode(records.encode(example | stored))

    class Packed(Pairs):
        def __getitem__(self, index):
            return packed(index)

    direct, packed_one = (drawn(config_with(MORE), one, tokenizer) for one in (source, Packed()))
    for name in direct.keys() - {"pair_id"}:  # of the picture's bytes, which were pixels
        np.testing.assert_array_equal(direct[name], packed_one[name])


class Broken(Pairs):
    """The second picture of number 4 cannot be decoded."""

    def __getitem__(self, index):
        return super().__getitem__(index) | ({"second": b"no picture"} if index == 4 else {})


def test_an_example_whose_other_picture_is_broken_is_replaced_and_left_out_of_evaluation(tokenizer):
    found = drawn(config_with(MORE), Broken(), tokenizer)
    assert (found["number"], found["index"], found["replaced"] > 0) == (5, 4, True)
    data = read(Broken(), tokenizer, MORE)
    assert data.broken == ["p4"] and len(data.images) == 9


def test_another_set_is_scored_without_the_fields_of_training():
    trained, wanted = config_with(MORE), evaluate.get_config("data=flickr8k")
    assert plain_values.merge_evaluation(trained, wanted).data.fields.to_dict() == {}
    assert plain_values.merge_evaluation(config_with(MORE), evaluate.get_config()).data.fields.to_dict() == MORE


@pytest.mark.parametrize("line", [3, None, "filename", {"name": 3}])
def test_a_line_that_is_none_is_refused(line):
    with pytest.raises(UserError, match=r"data\.fields\.c is .*; give a block with name"):
        rules.check(config_with({"c": line}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"colour": {"name": "colours"}},
            "there is no field 'colours'; choose among .*hidden_patches, .*label, .*picture",
        ),
        ({"tokens": {"name": "label"}}, "data.fields.tokens makes an array 'tokens', which is there already"),
        ({"index": {"name": "label"}}, "data.fields.index makes an array 'index'"),
        ({"a": {"name": "label", "kay": "b"}}, r"data.fields.a: .* unexpected keyword argument 'kay'"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        examples.fields_of(config_with(fields))


def test_what_an_example_lacks_is_named_with_it(source, tokenizer):
    with pytest.raises(UserError, match=r"p4 has the shape None, data.fields.shape reads a whole number"):
        drawn(config_with({"shape": {"name": "label"}}), source, tokenizer)
    with pytest.raises(UserError, match=r"p4 has the colour 'green', data.fields.colour reads one of red, blue"):
        drawn(config_with({"colour": {"name": "label", "classes": ("red", "blue")}}), source, tokenizer)
    with pytest.raises(UserError, match=r"p4 has no 'before', which data.fields.after reads"):
        drawn(config_with({"after": {"name": "picture", "key": "before"}}), source, tokenizer)


def test_a_line_without_a_name_is_refused():
    with pytest.raises(UserError, match=r"data.fields.colour has no name"):
        rules.check(config_with({"colour": {"key": "x"}}))


@pytest.mark.parametrize(
    "key, classes, number",
    [
        ("objects.0.colour", COLOURS, COLOURS.index("red")),
        ("objects.count", (1, 2, 3), 1),
        ("objects.1.number", (), 7),
        ("objects.2.colour", COLOURS, None),
        ("objects.0.nothing.more", COLOURS, None),
        ("objects.0", COLOURS, None),
        ("sure", (0, 1), None),
        ("sure", (), None),
        ("below", (), None),
    ],
)
def test_a_label_is_found_behind_names_and_numbers(key, classes, number):
    example = {"id": "a", "objects": [{"colour": "red"}, {"number": 7}], "sure": True, "below": -1}
    field = label.Field("label", Sizes(32, 8, 9), key=key, classes=classes)
    if number is None:
        with pytest.raises(UserError, match=f"a has the {key} .*, data.fields.label reads"):
            field.make(SimpleNamespace(example=example), np.random.default_rng(0))
    else:
        assert field.make(SimpleNamespace(example=example), np.random.default_rng(0)) == {"label": number}


def test_a_label_is_below_the_count_and_names_are_as_many():
    field = label.Field("label", Sizes(32, 8, 9), count=3)
    assert field.make(SimpleNamespace(example={"id": "a", "label": 2}), None) == {"label": 2}
    with pytest.raises(UserError, match=r"a has the label 3, data.fields.label reads a whole number below 3"):
        field.make(SimpleNamespace(example={"id": "a", "label": 3}), None)
    with pytest.raises(UserError, match=r"data\.fields\.label names 3 classes, and count is 2"):
        label.Field("label", Sizes(32, 8, 9), classes=COLOURS, count=2)
