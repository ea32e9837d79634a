"""A process that reads a stream with workers, for tests that send signals: prints a line when it has a batch."""

import signal
import sys
import threading

from maskvlm_jax.data import examples, training_stream
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.runtime import host
from tests.conftest import toy_config

if __name__ == "__main__":
    host.quiet_libraries()
    config = toy_config()
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    example = examples.make_example(config, source, tokenizers.load(sys.argv[1]))
    options = {"batch_size": 8, "seed": 0, "start": 0, "stop": 100_000, "workers": 2, "threads": 1}
    stream = training_stream.train_stream(source, example, **options)
    next(stream)
    told = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: told.set())  # as a run that first saves
    print("ready", flush=True)
    while not told.wait(0.05):
        pass
    for _ in range(50):
        next(stream)
    print("went on", flush=True)
    signal.pause()
