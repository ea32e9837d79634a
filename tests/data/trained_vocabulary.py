"""Prints the vocabulary of a WordPiece tokenizer that is trained on 200 generated scenes."""

from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.tokenizer import train_wordpiece

source = Scenes(split="train")
trained = train_wordpiece((caption for i in range(200) for caption in source.captions(i)), 150)
print(sorted(trained.get_vocab().items()))
