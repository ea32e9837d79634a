"""Words in captions that look like control tokens stay text."""

import json

import numpy as np
import pytest

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.fields import words
from maskvlm_jax.data.fields.base import Drawn, Sizes

WORDS = "[MASK] [SEP] [PAD] [CLS] [UNK] </s> <pad> <mask> dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizer folders: our own, and one that pads with its end token."""
    own, shared = tmp_path_factory.mktemp("own") / "t", tmp_path_factory.mktemp("shared") / "t"
    backend = tokenizers.train_wordpiece(["a dog", "[MASK] </s> <pad>"], 60)
    for folder in (own, shared):
        tokenizers.save(backend, folder)
    told = json.loads((shared / "tokenizer_config.json").read_text()) | {"pad_token": "[SEP]"}
    (shared / "tokenizer_config.json").write_text(json.dumps(told))
    return {"own": own, "pad is end": shared}


@pytest.mark.parametrize("which", ["own", "pad is end"])
def test_text_is_text_and_valid_is_a_length(folders, which):
    tokenizer = tokenizers.load(folders[which])
    tokens, _, valid = tokenizer.encode(WORDS, 64)
    length = int(valid.sum())
    assert valid[:length].all() and not valid[length:].any() and length > 20
    special = {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id}
    assert not special & set(tokens[1 : length - 1].tolist())
    assert (tokens[0], tokens[length - 1]) == (tokenizer.start_id, tokenizer.end_id)
    options = {"text_ratio": 0.5, "whole_word": False, "text_corruption": "mask"}
    for seed in range(20):
        field = words.Field("words", Sizes(image_size=32, patch=8, max_length=64), tokenizer)
        drawn = field.make(Drawn({}, None, WORDS, options, None), np.random.default_rng(seed))
        assert not (drawn["text_masked"] & ~drawn["token_valid"]).any()
        assert not drawn["text_masked"][[0, length - 1]].any()
    _, _, cut = tokenizer.encode(WORDS, 8)
    assert cut.all()


SPECIAL = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]


PIECES = [*SPECIAL, "a", "dog", "<", ">", "m", "s", "k", "/", "p", "d", "▁", "▁a", "▁dog", "▁<mask>"]


@pytest.mark.parametrize("kind", ["unigram", "words", "pieces"])
def test_special_words_are_text_whatever_the_model_is(kind, tmp_path):
    import tokenizers as hugging_face
    from tokenizers import models, normalizers, pre_tokenizers

    if kind == "unigram":
        backend = hugging_face.Tokenizer(models.Unigram([(word, -1.0) for word in PIECES], unk_id=4))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        model = models.WordLevel if kind == "words" else models.WordPiece
        backend = hugging_face.Tokenizer(model({word: i for i, word in enumerate(PIECES)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens(SPECIAL)
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    loaded = tokenizers.load(tmp_path)
    caption = "a dog <mask> </s> <s> <pad> \uff1cmask\uff1e"  # the last is a mask token to a normaliser alone
    tokens, _, valid = loaded.encode(caption, 40)
    control = {loaded.pad_id, loaded.start_id, loaded.end_id, loaded.mask_id}
    assert not control & set(tokens[1 : valid.sum() - 1].tolist())


def test_a_workdir_in_the_tokenizers_folder_is_not_copied_into_itself(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizers.copy(tmp_path, tmp_path / "run" / "tokenizer")
    assert [path.name for path in (tmp_path / "run" / "tokenizer").iterdir()] == ["tokenizer.json"]
