"""A tokenizer and a transformation to examples for small sources."""

from maskvlm_jax.data import training_stream
from maskvlm_jax.data.examples import own_fields
from maskvlm_jax.data.fields.base import Fields, Sizes
from maskvlm_jax.data.tokenizer import END, MASK, PAD, START, Tokenizer, train_wordpiece

OPTIONS = {
    "image_ratio": 0.6,
    "image_cell": 2,
    "text_ratio": 0.3,
    "policy": "independent",
    "light_ratio": 0.15,
    "text_corruption": "mask",
    "whole_word": False,
}


PLAIN = {"crop_scale": (1.0, 1.0), "flip": False, "randaugment_ops": 0, "randaugment_magnitude": 0}


STRONG = {"crop_scale": (0.2, 1.0), "flip": True, "randaugment_ops": 2, "randaugment_magnitude": 7}


def make_tokenizer(source) -> Tokenizer:
    backend = train_wordpiece((c for i in range(min(100, len(source))) for c in source.captions(i)), 200)
    special = {"pad": PAD, "start": START, "end": END, "mask": MASK}
    ids = {name: backend.token_to_id(token) for name, token in special.items()}
    return Tokenizer(backend, ids, ids.values())


def fields(tokenizer) -> Fields:
    return Fields(own_fields(Sizes(image_size=32, patch=8, max_length=20), tokenizer))


def make_example(source, tokenizer, augment=PLAIN):
    return training_stream.MakeExample(
        source, fields(tokenizer), image_size=32, augment=augment, masking_options=OPTIONS
    )
