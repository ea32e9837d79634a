"""Captions to ids and back."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT, toy_config

CAPTIONS = ["A black dog runs", "two dogs running in the snow", "a small red circle"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "trained"
    tokenizers.save(tokenizers.train_wordpiece(CAPTIONS, 120), path)
    return path


def test_a_trained_tokenizer_is_read_back_from_its_folder(folder):
    tokenizer = tokenizers.load(folder)
    assert tokenizer.vocab_size <= 120
    tokens, word_ids, _ = tokenizer.encode("a black DOG", 8)
    assert tokens[0] == tokenizer.start_id and (tokens == tokenizer.end_id).sum() == 1
    assert tokenizer.decode(tokens[1 : int((word_ids >= 0).sum()) + 1]) == "a black dog"
    np.testing.assert_array_equal(
        word_ids >= 0, ~np.isin(tokens, [tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id])
    )


def test_training_again_gives_the_same_vocabulary_in_every_process():
    command = [sys.executable, "-m", "tests.data.trained_vocabulary"]
    told = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    assert told[0] == told[1] == told[2]
    assert "circle" in told[0]


def test_letters_are_no_special_tokens(folder):
    tokenizer = tokenizers.load(folder)
    tokens, *_ = tokenizer.encode("a d ##o", 10)
    assert len(set(tokenizer.ordinary_ids.tolist())) == tokenizer.vocab_size - 5
    assert tokenizer.decode(tokens) == "a d o"  # no caption has a "#"


def test_long_captions_are_cut_and_still_end_with_the_end_token(folder):
    tokenizer = tokenizers.load(folder)
    tokens, word_ids, _ = tokenizer.encode("two dogs running in the snow " * 5, 8)
    assert len(tokens) == 8 and tokens[-1] == tokenizer.end_id
    assert (word_ids >= 0).sum() == 6


def test_pieces_of_a_word_share_its_number(folder):
    tokenizer = tokenizers.load(folder)
    _, word_ids, _ = tokenizer.encode("snowdogs a", 16)
    pieces = word_ids[word_ids >= 0]
    assert (pieces == 0).sum() > 1 and (pieces == 1).sum() == 1


def test_ordinary_ids_hold_no_special_token(folder):
    tokenizer = tokenizers.load(folder)
    special = {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id}
    assert not special & set(tokenizer.ordinary_ids.tolist())


def test_a_tokenizer_can_be_sent_to_a_worker(folder):
    tokenizer = tokenizers.load(folder)
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode("a dog", 6)[0], tokenizer.encode("a dog", 6)[0])


def write_roberta(folder):
    """vocab.json and merges.txt, as roberta-base is published: <s>, </s>, <pad>, <mask>."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "Ġ", "d", "o", "g", "do", "dog", "Ġdog", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\ndo g\nĠ dog\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))


def test_a_byte_level_roberta_folder_works(tmp_path):
    write_roberta(tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    tokens, word_ids, _ = tokenizer.encode("a dog", 6)
    assert tokens.tolist() == [0, 4, 11, 2, 1, 1]
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.mask_id) == (0, 2, 1, 12)
    assert word_ids.tolist() == [-1, 0, 1, -1, -1, -1]


def test_the_mask_token_that_pictures_share_is_the_tokenizers(folder, tmp_path):
    write_roberta(tmp_path)
    for given, number in (("", tokenizers.load(folder).mask_id), (str(tmp_path), 12)):
        config = toy_config("recipe=mlim", data__tokenizer=given)
        run_tokenizer.check(config)
        run_tokenizer.resolve_mask_id(config)
        assert config.model.text.mask_id == number
        run_tokenizer.check(config)
    config.model.text.mask_id = 4
    with pytest.raises(UserError, match=r"set --config\.model\.text\.mask_id=12"):
        run_tokenizer.check(config)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; set --config\.data\.tokenizer"):
        tokenizers.load(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="no Hugging Face tokenizer can be read from"):
        tokenizers.load(tmp_path)
