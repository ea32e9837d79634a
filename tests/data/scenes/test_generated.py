"""What generated examples share: the same in any order, other in every split and seed, and texts that are not cut."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from maskvlm_jax.data.scenes.hypotheses import Hypotheses
from maskvlm_jax.data.scenes.products import Products
from maskvlm_jax.data.scenes.source import SPLIT_LENGTHS, STREAMS, Scenes, bits_of
from maskvlm_jax.data.scenes.statements import Statements
from maskvlm_jax.data.sources.opening import existing_splits, open_source
from maskvlm_jax.data.tokenizer import Tokenizer, train_wordpiece
from maskvlm_jax.runtime.errors import UserError

# Of the first examples of `test`; whoever changes what is generated changes its version too.
GOLDEN = {
    "hypotheses": "37f307a548f836caa457a8979347ae9cd078a854f3f38b8c48118340ade3cc91",
    "statements": "b53ec40dafb6c0e68aafd9f0962fb5c2a9259a6d52fc4d85ff3c315044447790",
    "products": "5f255921caaf8cb549c196b5f4405886654090cb3a3891750b2a725d87be7e66",
    "expressions": "4224bd71791037bc7ffa71d464ed2b4b4027373078d9e493f288c893067d14d0",
    "singles": "e95521b882b9e4f16e6a03d9ac0c9c3dcf9ad2da09704891ca53c418be8dee99",
    "questions": "aac13d45772de4584b4e972a2e8badd753b2a46365a170ec21d23fd970bafaf3",
    "swaps": "e52223419c3f4b72b12bc67f566873b7a6351c76715092d019744791a2d5932b",
}

KINDS = {"hypotheses": Hypotheses, "statements": Statements, "products": Products}
DATA = {"scenes_seed": 3, "mixture": {}, "clean": "none"}


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_a_function_of_seed_split_and_number(name):
    source = KINDS[name](split="val")
    again = pickle.loads(pickle.dumps(source))
    for index in (7, 3, 998):
        one, two = source[index], again[index]
        assert one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
        assert one["captions"] == source.captions(index) and one["id"] == source.id(index)
    others = [{"split": "test"}, {"split": "novel"}, {"seed": 1}, {"image_size": 96}, {"length": 10}]
    different = [source, *(KINDS[name](**{"split": "val"} | change) for change in others)]
    assert len({one.fingerprint for one in different} | {Scenes(split="val").fingerprint}) == 7
    assert len({str(one.captions(1)) + str(one[1]["image"][:, :, 0].sum()) for one in different[:4]}) == 4


@pytest.mark.parametrize("name", KINDS)
def test_a_config_names_them_as_a_source(name):
    data = DATA | {"source": f"maskvlm_jax.data.scenes.{name}"}
    source = open_source(data, "test", 48)
    assert len(source) == 1_000 and source[0]["image"].shape == (48, 48, 3)
    assert set(existing_splits(data)) == set(SPLIT_LENGTHS)
    with pytest.raises(UserError, match="no split 'dev'"):
        open_source(data, "dev", 48)


@pytest.mark.parametrize("name", KINDS)
def test_no_text_is_cut_by_the_first_runs_tokenizer(name):
    scenes = Scenes(split="train")
    backend = train_wordpiece((text for i in range(1_000) for text in scenes.captions(i)), 256)
    tokenizer = Tokenizer(backend, {"pad": 0, "unknown": 1, "start": 2, "end": 3, "mask": 4}, range(5))
    for split in ("train", "novel"):
        source = KINDS[name](split=split)
        texts = [text for i in range(500) for text in source.captions(i)]
        if name == "products":
            texts += [source.pair(i).texts[1] for i in range(500)]
        lengths = [int(tokenizer.encode(text, 64)[2].sum()) for text in texts]
        assert max(lengths) <= 20 or name == "products", max(zip(lengths, texts, strict=True))
        assert np.mean(np.array(lengths) > 20) < 0.01
        assert not any(backend.token_to_id("[UNK]") in tokenizer.encode(text, 64)[0] for text in texts)


def digest(name: str) -> str:
    source, found = open_source(DATA | {"source": f"maskvlm_jax.data.scenes.{name}"}, "test", 48), hashlib.sha256()
    for index in range(20):
        example = source[index]
        known = {key: value for key, value in example.items() if not isinstance(value, np.ndarray)}
        found.update(json.dumps(known, sort_keys=True).encode())
        found.update(b"".join(value.tobytes() for value in example.values() if isinstance(value, np.ndarray)))
    return found.hexdigest()


@pytest.mark.parametrize("name", STREAMS)
def test_examples_are_the_same_on_every_machine_until_their_version_is_raised(name):
    assert digest(name) == GOLDEN[name]


def test_no_two_kinds_of_examples_share_a_stream_of_bits():
    starts = {
        bits_of(0, "val", 7, stream=stream, part=part).random_raw() for stream in ("", *STREAMS) for part in (0, 1)
    }
    assert len(starts) == 2 * (1 + len(STREAMS))
