"""What one process reads of a toy run's stream, for tests that share it among several.

python -m tests.data.ledger_reading OPTIONS
"""

import json
import sys

import numpy as np

from maskvlm_jax.data import examples, ledger, training_stream
from maskvlm_jax.data.sources.opening import open_training_source
from tests.conftest import toy_config
from tests.data.streaming import make_tokenizer

BATCH = 8


def read(options: dict) -> dict[str, int]:
    """What one process reads of a toy run's stream."""

    config = toy_config(f"data={options['data']}")
    if options["data"] != "scenes":
        with config.unlocked():
            for seed, part in enumerate(config.data.mixture.values()):
                part.scenes_seed, part.source, part.weight, part.limit = seed, "scenes", 1.0 + seed, 10 + seed
    source = open_training_source(config.data.to_dict(), 32)
    own = np.array(options.get("rows", range(BATCH)))
    counts = ledger.Ledger(source.fingerprint, batch_size=BATCH, rows=own, counted=np.ones(len(own), bool))
    start, stop = options.get("steps", (0, 8))
    stream = training_stream.train_stream(
        source,
        examples.make_example(config, source, make_tokenizer(source)),
        batch_size=BATCH,
        seed=3,
        start=start,
        stop=stop,
        workers=options.get("workers", 0),
        threads=1,
        rows=own.tolist(),
    )
    for step, batch in enumerate(stream, start=start + 1):
        counts.add(step, batch["index"])
    stream.close()
    return counts.take()


if __name__ == "__main__":
    print(json.dumps(read(json.loads(sys.argv[1]))))
