"""Fine-tuning for any task: alike on eight devices, bit for bit after a restart, the same run after a kill."""

import json

import jax
import numpy as np
import pytest

from configs import finetune
from maskvlm_jax.data import examples, run_tokenizer, training_stream
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.batch import HOST_KEYS
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.runtime import sharding
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build, train_step
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.training.progress import Progress
from tests.conftest import toy_config, toy_flags
from tests.reference import exporting as exports
from tests.training.resuming import finish, is_the_same_when_killed, start
from tests.training.steps import mesh_of, one_device, share_apart

TASKS = ("pairs", "classification", "entailment", "nlvr", "text_assignment", "vqa", "vqa_text")


def batches(config, tmp_path, count: int):
    """The first batches of the stream, as they are put on devices."""
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    captions = run_tokenizer.training_captions(source, 100)
    tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), tmp_path / "tokenizer")
    make = examples.make_example(config, source, tokenizers.load(tmp_path / "tokenizer"))
    options = {"batch_size": config.batch_size, "seed": 0, "start": 0, "stop": count}
    for batch in training_stream.train_stream(source, make, **options, workers=0, threads=1):
        yield {name: value for name, value in batch.items() if name not in HOST_KEYS}


def trained(config, mesh, stream, restarted=None):
    """The final state on the host and the losses, of a run that is saved and read back in its middle if there is a
    folder for that."""
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, losses = built.init(), []
        step = built.step.lower(state, sharding.put(stream[0], mesh)).compile({"xla_backend_optimization_level": 0})
        for number, batch in enumerate(stream):
            if number == len(stream) // 2 and restarted:
                saved = Checkpoints(restarted)
                saved.save(state, Progress(seen=number))
                saved.wait()
                state, _ = saved.restore_newest(train_step.abstract_state(built.init, built.shardings))
                saved.close()
            state, metrics = step(state, sharding.put(batch, mesh))
            losses.append(float(metrics["loss"]))
        return jax.device_get(state), losses


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_trained_alike_on_eight_devices_and_bit_for_bit_after_a_restart(task, tmp_path):
    decoder = {f"objectives__answers__decoder__{key}": value for key, value in (("width", 32), ("heads", 2))}
    config = toy_config(f"task={task}", of=finetune, **(decoder if task == "vqa_text" else {}))
    rules.check(config)
    stream = list(batches(config, tmp_path, 4))
    state, losses = trained(config, one_device(), stream)
    again, _ = trained(config, one_device(), stream, restarted=tmp_path / "checkpoints")
    for straight, resumed in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(straight, resumed)
    split, other_losses = trained(config, mesh_of(2, 2, 2), stream)
    assert losses == pytest.approx(other_losses, rel=2e-4) and len(set(losses)) > 1
    assert share_apart(state.params, split.params) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "pairs"])
def test_a_task_that_is_killed_goes_on_to_the_same_result(cli_environment, tmp_path, task):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    flags = [flag for flag in toy_flags(steps=6, evaluation__limit=8) if "decoder" not in flag]
    flags = [f"--config=configs/finetune.py:task={task}", *flags, f"--config.checkpoint={tmp_path / 'trained'}"]
    is_the_same_when_killed(tmp_path, cli_environment, flags, "step 3/")
    # Devices change no more than the last digits of what is scored.
    several = cli_environment | {"JAX_NUM_CPU_DEVICES": "8"}
    scoring = ["--config=configs/evaluate.py", f"--config.checkpoint={tmp_path / 'straight'}"]
    assert finish(start(tmp_path / "scored", several, *scoring)) == 0
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("straight", "scored"))
    assert theirs["metrics"] == pytest.approx(ours["metrics"])
