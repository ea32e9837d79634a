"""Reads an example of a pickled set and of one opened anew; both are the same, and TensorFlow is not imported."""

import pickle
import sys
from pathlib import Path

from maskvlm_jax.data.sources.tfds import Tfds

pickled = pickle.loads(Path(sys.argv[1]).read_bytes())
opened = Tfds(root=sys.argv[2], split="train")
assert pickled[5] == opened[5] and pickled.fingerprint == opened.fingerprint
assert "tensorflow" not in sys.modules
print(opened.id(5), *opened.captions(5), sep="|")
