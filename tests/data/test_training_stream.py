"""The stream is exact: batch t depends on (config, seed, t) and on nothing else."""

import io
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data import training_stream
from maskvlm_jax.data.evaluation_set import load_evaluation
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.data.tokenizer import train_wordpiece
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT, toy_config
from tests.data.streaming import OPTIONS, PLAIN, STRONG, fields, make_example, make_tokenizer


@pytest.fixture(scope="module")
def source():
    return Scenes(split="train", image_size=32, length=40)


@pytest.fixture(scope="module")
def tokenizer(source):
    return make_tokenizer(source)


def stream(source, tokenizer, *, augment=STRONG, start=0, stop=12, limit=0, **options):
    values = {"batch_size": 8, "seed": 3, "workers": 0, "threads": 1} | options
    return list(
        training_stream.train_stream(
            Limited(source, limit), make_example(source, tokenizer, augment), start=start, stop=stop, **values
        )
    )


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def straight(source, tokenizer):
    return stream(source, tokenizer)


def test_batches_have_the_contract_s_keys_shapes_and_types(straight):
    batch = straight[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((8, 32, 32, 3), "uint8"),
        "tokens": ((8, 20), "int32"),
        "tokens_masked": ((8, 20), "int32"),
        "token_valid": ((8, 20), "bool"),
        "image_masked": ((8, 16), "bool"),
        "text_masked": ((8, 20), "bool"),
        "pair_id": ((8, 2), "int32"),
        "example_valid": ((8,), "bool"),
        "index": ((8,), "int64"),
        "replaced": ((8,), "int8"),
    }
    assert set(batches.Batch.__annotations__) == set(batch) - set(batches.HOST_KEYS)


def test_a_restart_at_any_step_gives_the_same_batches(source, tokenizer, straight):
    assert_equal(stream(source, tokenizer, start=7), straight[7:])


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_do_not_change_the_stream(source, tokenizer, straight, threads):
    assert_equal(stream(source, tokenizer, threads=threads), straight)


def test_worker_processes_do_not_change_the_stream(source, tokenizer, straight):
    assert_equal(stream(source, tokenizer, workers=2, stop=4), straight[:4])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5], [1, 6], [7]])
def test_a_process_reads_its_rows_of_every_batch(source, tokenizer, straight, rows):
    part = stream(source, tokenizer, rows=rows)
    assert_equal(part, [{key: value[rows] for key, value in batch.items()} for batch in straight])


def test_an_epoch_sees_every_picture_once_and_the_next_in_another_order_with_other_masks(straight):
    first = np.concatenate([batch["index"] for batch in straight[:5]])
    second = np.concatenate([batch["index"] for batch in straight[5:10]])
    assert sorted(first) == sorted(second) == list(range(40))
    assert list(first) != list(second)
    masks = [np.concatenate([b["image_masked"] for b in straight[i : i + 5]]) for i in (0, 5)]
    assert not np.array_equal(masks[0][np.argsort(first)], masks[1][np.argsort(second)])


def test_different_seeds_give_different_streams(source, tokenizer, straight):
    other = stream(source, tokenizer, seed=4, stop=1)[0]
    assert not np.array_equal(other["index"], straight[0]["index"])


def test_limit_trains_on_the_first_pictures(source, tokenizer):
    seen = np.concatenate([b["index"] for b in stream(source, tokenizer, limit=8, stop=3)])
    assert set(seen) == set(range(8))


def test_a_batch_larger_than_the_data_is_refused(source, tokenizer):
    with pytest.raises(UserError, match="batch_size 64 is larger than the data, 40 examples"):
        stream(source, tokenizer, batch_size=64)


def test_each_of_several_captions_is_drawn(source, tokenizer):
    make = make_example(source, tokenizer)
    drawn = {tuple(make.random_map(0, np.random.default_rng(i))["tokens"]) for i in range(60)}
    assert drawn == {tuple(tokenizer.encode(caption, 20)[0]) for caption in source.captions(0)}


class Broken:
    """A source whose picture 1 cannot be decoded."""

    def __init__(self, broken=(1,)):
        png = io.BytesIO()
        Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(png, "PNG")
        self._png, self._broken, self.report, self.fingerprint = png.getvalue(), broken, {}, "x"

    def __len__(self):
        return 4

    def id(self, index):
        return f"picture{index}"

    def captions(self, index):
        return [f"a caption of number {index}"]

    def __getitem__(self, index):
        image = self._png[:30] if index in self._broken else self._png
        return {"id": self.id(index), "image": image, "captions": self.captions(index)}


def test_a_broken_picture_is_replaced_by_the_next_and_marked():
    broken = Broken()
    example = make_example(broken, make_tokenizer(broken)).random_map(1, np.random.default_rng(0))
    assert training_stream.BROKEN[example["replaced"]] == "not a picture" and example["index"] == 1
    second = broken[2]
    np.testing.assert_array_equal(
        example["pair_id"], batches.pair_id(batches.image_hash(second["image"]), second["captions"][0])
    )


def test_only_broken_pictures_are_an_error_that_names_one():
    broken = Broken(broken=range(4))
    with pytest.raises(UserError, match="no example can be used among 4 in a row, the last is picture0"):
        make_example(broken, make_tokenizer(broken)).random_map(1, np.random.default_rng(0))


def test_evaluation_leaves_broken_pictures_out_and_says_which():
    broken = Broken()
    data = load_evaluation(
        broken,
        fields(make_tokenizer(broken)),
        image_size=32,
        masking_options=OPTIONS,
        memory=10**9,
        seed=0,
        limit=0,
        captions_per_image=0,
        one_at_a_time=True,
    )
    assert data.broken == ["picture1"]
    assert data.ids == ["picture0", "picture2", "picture3"]
    assert data.image_of_caption.tolist() == [0, 1, 2]


def test_text_is_cut_to_the_shortest_bucket_that_holds_the_batch(straight):
    batch = straight[0]
    longest = int(batch["token_valid"].sum(axis=1).max())
    cut = batches.trim(batch, (4, longest, 20))
    for key in ("tokens", "tokens_masked", "token_valid", "text_masked"):
        assert cut[key].shape == (8, longest)
        np.testing.assert_array_equal(cut[key], batch[key][:, :longest])
    np.testing.assert_array_equal(cut["image"], batch["image"])
    assert batches.trim(batch, ())["tokens"].shape == (8, 20)


def test_pair_ids_are_equal_for_equal_captions_or_equal_pictures():
    pairs = ((b"a", "One dog ."), (b"b", "one  DOG!"), (b"a", "two"), (b"c", "three"), (b"d", "..."), (b"e", "?!"))
    ids = [batches.pair_id(batches.image_hash(image), caption) for image, caption in pairs]
    equal = [[bool(np.any(x == y)) for x in ids] for y in ids]
    assert equal[0] == [True, True, True, False, False, False]
    assert equal[3] == [False, False, False, True, False, False]
    assert equal[4] == [False, False, False, False, True, False]  # captions without a word are not all alike


def test_an_unknown_source_is_an_error():
    config = toy_config(data__source="sceens")
    message = r"there is no data source 'sceens'; choose among .*files, .*scenes, .*webdataset.*, or a \.py file$"
    with pytest.raises(UserError, match=message):
        open_source(config.data.to_dict(), "train", 32)


def test_the_caption_does_not_change_the_image_mask(source, tokenizer):
    make = make_example(source, tokenizer)
    masks = [make.random_map(i, np.random.default_rng(7))["image_masked"] for i in range(3)]
    for one, other in itertools.pairwise(masks):
        np.testing.assert_array_equal(one, other)


def test_modality_dropout_takes_one_side_as_often_as_the_other_and_makes_what_is_left_out_equal(source, tokenizer):
    kept = make_example(source, tokenizer)
    dropping = training_stream.MakeExample(
        source,
        fields(tokenizer),
        image_size=32,
        augment=PLAIN,
        masking_options=OPTIONS,
        modality_dropout=0.5,
    )
    counts = {"image": 0, "text": 0, "neither": 0}
    for seed in range(400):
        whole, left = (make.random_map(seed % 40, np.random.default_rng(seed)) for make in (kept, dropping))
        no_image, no_words = (left["image"] == batches.MEAN_COLOUR).all(), int(left["token_valid"].sum()) == 2
        assert not (no_image and no_words)
        assert (left["pair_id"] == 0).tolist() == [no_image, no_words]
        assert no_words or np.array_equal(left["tokens"], whole["tokens"])
        assert no_image or np.array_equal(left["image"], whole["image"])
        assert not left["text_masked"].any() or not no_words
        counts["image" if no_image else "text" if no_words else "neither"] += 1
    np.testing.assert_allclose([counts["image"], counts["text"]], 100, atol=5 * np.sqrt(400 * 0.25 * 0.75))


def test_workers_do_without_ctrl_c_and_end_with_the_process_that_started_them(tmp_path, cli_environment):
    tokenizers.save(train_wordpiece(["a red square"], 40), tmp_path / "tokenizer")
    command = [sys.executable, "-m", "tests.data.reading_apart", str(tmp_path / "tokenizer")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=cli_environment, start_new_session=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stdout.readline() == "went on\n"
        process.kill()
        assert process.stderr.read() == ""  # which is open until the last of the processes is gone
