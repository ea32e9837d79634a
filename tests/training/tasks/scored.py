"""Toy models that a task scores at once, in this process."""

from pathlib import Path

import jax
from flax import nnx

from configs import finetune
from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.evaluators.evaluation import Evaluation
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.settings import plain_values
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import toy


def without_contrast(config):
    """A config whose model has matching alone."""
    with config.unlocked():
        del config.objectives.contrastive
        config.model.embed, config.objectives.matching.negatives = 0, "random"
    return config


def evaluation_of(task: str, folder: Path, trained=None, **values):
    """(evaluation, params) of random parameters under `configs/finetune.py:task=TASK`; keyword names write dots as two
    underscores."""
    trained = toy_config(data__tokenizer_captions=100) if trained is None else trained
    source = open_training_source(trained.data.to_dict(), trained.model.image.image_size)
    captions = run_tokenizer.training_captions(source, 100)
    tokenizers.save(tokenizers.train_wordpiece(captions, trained.model.text.vocab_size), folder / "tokenizer")
    config = finetune.get_config(f"task={task}")
    with config.unlocked():
        for name, value in values.items():
            block = config
            *path, last = name.split("__")
            for key in path:
                block = block[key]
            block[last] = value
    config = plain_values.merge_evaluation(trained, config)
    graphdef, params = split_model(toy.randomised(lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0))))
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    return Evaluation(ScoredRun(config, tokenizers.load(folder / "tokenizer")), graphdef, mesh), params
