"""Runs whose batches hold examples that are alike by what an earlier run makes of them."""

import json
import signal

import jax
import numpy as np
import pytest

import maskvlm_jax
from maskvlm_jax.data.grouping import whole_numbers
from maskvlm_jax.data.sources.base import Listed
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import grouping_features
from tests.conftest import toy_config, toy_flags
from tests.reference import exporting
from tests.training.resuming import finish, result, same_as_straight, start, wait_for

CAPTIONS = exporting.CAPTIONS
SYNCMASK = "--config=configs/pretrain.py:recipe=syncmask"


class Pictures(Listed):
    """Twelve pictures of noise with one to three captions; number 5 cannot be read."""

    def __init__(self):
        super().__init__([f"{n}" for n in range(12)], [CAPTIONS[: 1 + n % 3] for n in range(12)])

    def image(self, index):
        return b"" if index == 5 else np.random.default_rng(index).integers(0, 256, (32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The workdir of a model of random parameters."""
    folder = tmp_path_factory.mktemp("earlier")
    sizes = {name: value for name, value in exporting.SMALL.items() if "fusion" not in name}
    sizes["model__text__max_length"] = 20
    exporting.make_workdir(folder, toy_config("recipe=clip", **sizes))
    return folder


def config_of(checkpoint):
    config = toy_config("recipe=syncmask", batch_size=4, data__grouping__part=8)
    config.data.grouping.checkpoint = str(checkpoint)
    return config


def one_device():
    return sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])


def grouped(config, workdir):
    mesh = one_device()
    with jax.set_mesh(mesh):
        return grouping_features.grouped(config, workdir, Limited(Pictures(), 10), mesh)


def test_parts_of_less_than_two_batches_are_refused(earlier, tmp_path):
    config = config_of(earlier)
    grouping_features.check(config, tmp_path, begun=False)
    config.data.grouping.part = 7
    with pytest.raises(UserError, match=r"part 7 holds fewer than two batches of 4: .* set .*grouping\.part=32"):
        grouping_features.check(config, tmp_path, begun=False)


@pytest.fixture(scope="module")
def workdir(earlier, tmp_path_factory):
    """A workdir whose features are made."""
    folder = tmp_path_factory.mktemp("run")
    grouped(config_of(earlier), folder)
    return folder


def test_features_are_those_of_the_earlier_model_of_each_picture_and_of_all_its_captions(workdir, earlier):
    model, source = maskvlm_jax.load(str(earlier)), Pictures()
    image, text = np.load(workdir / grouping_features.FEATURES)
    assert image.shape == text.shape == (10, 16) and not image[5].any() and not text[5].any()
    for index in (0, 4, 8):
        ours = whole_numbers(model.encode_images([source.image(index)])), model.encode_texts(source.captions(index))
        assert np.abs(ours[0][0].astype(int) - image[index]).max() <= 1
        assert np.abs(whole_numbers(ours[1].sum(axis=0, keepdims=True))[0].astype(int) - text[index]).max() <= 1


def test_they_are_made_once_and_the_order_is_read_from_them(workdir, earlier):
    before = (workdir / grouping_features.FEATURES).stat().st_mtime_ns
    source = grouped(config_of(earlier), workdir)
    assert (workdir / grouping_features.FEATURES).stat().st_mtime_ns == before
    first = [source.grouping[position][1] for position in range(8)]
    assert len(set(first)) == 8 and set(first) <= set(range(10))
    told = grouping_features.record(workdir)
    assert told["examples"] == 10 and told["step"] == 3 and told["checkpoint"] == str(earlier)
    assert source.fingerprint != Limited(Pictures(), 10).fingerprint


def test_of_a_run_that_began_they_stay_and_of_one_that_did_not_they_are_those_that_are_asked_for(earlier, tmp_path):
    grouped(config_of(earlier), tmp_path)
    before = grouping_features.record(tmp_path)
    assert len(np.load(tmp_path / grouping_features.FEATURES)[0]) == 10
    mesh = one_device()
    with jax.set_mesh(mesh):
        grouping_features.grouped(config_of(earlier), tmp_path, Limited(Pictures(), 7), mesh)
    assert len(np.load(tmp_path / grouping_features.FEATURES)[0]) == 7
    assert grouping_features.record(tmp_path)["sha256"] != before["sha256"]
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    config = config_of(earlier / "gone")  # nothing is read of it any more
    grouping_features.check(config, tmp_path, begun=True)
    assert grouped(config, tmp_path).grouping[0][1] < 7


def test_without_a_checkpoint_the_set_stays_as_it_is(tmp_path):
    assert type(grouped(config_of(""), tmp_path)) is Limited
    assert grouping_features.record(tmp_path) is None


def test_damaged_features_are_told(workdir, earlier, tmp_path):
    for name in (grouping_features.FEATURES, grouping_features.RECORD):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    content = bytearray((tmp_path / grouping_features.FEATURES).read_bytes())
    content[-1] ^= 1
    (tmp_path / grouping_features.FEATURES).write_bytes(content)
    with pytest.raises(UserError, match=r"grouping\.npy is damaged: its sha256 is not that of grouping\.json"):
        grouped(config_of(earlier), tmp_path)
    (tmp_path / grouping_features.FEATURES).unlink()
    with pytest.raises(UserError, match=r"grouping\.npy cannot be read: No such file"):
        grouped(config_of(earlier), tmp_path)


def test_what_examples_cannot_be_grouped_by_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no workdir '.*nothing' to group examples by; set --config\.data"):
        grouping_features.check(config_of(tmp_path / "nothing"), tmp_path, begun=False)
    config = config_of(tmp_path / "nothing")
    with config.unlocked():
        config.data.mixture = {"a": {}}
    with pytest.raises(UserError, match=r"data\.grouping is for a single set"):
        grouping_features.check(config, tmp_path, begun=False)
    (tmp_path / "m3ae").mkdir()
    exporting.make_workdir(tmp_path / "m3ae", toy_config("recipe=m3ae", masking__image_cell=1))
    with pytest.raises(UserError, match="m3ae has no contrastive space to group examples in"):
        grouped(config_of(tmp_path / "m3ae"), tmp_path)


@pytest.mark.slow
def test_a_grouped_run_that_was_stopped_goes_on_bit_for_bit(earlier, cli, cli_environment, tmp_path):
    flags = toy_flags(data__limit=40, evaluation__extra_splits="()", data__grouping__checkpoint=earlier)
    process = cli(SYNCMASK, f"--workdir={tmp_path / 'straight'}", *flags)
    assert process.returncode == 0, process.stderr
    stopped = start(tmp_path / "stopped", cli_environment, SYNCMASK, *flags)
    wait_for(stopped, "step ")
    stopped.send_signal(signal.SIGKILL)
    finish(stopped)
    assert finish(start(tmp_path / "stopped", cli_environment, SYNCMASK, *flags)) == 0
    same_as_straight(tmp_path / "stopped", tmp_path / "straight")
    told = result(tmp_path / "straight")["protocol"]["grouped_by"]
    assert told == json.loads((tmp_path / "straight" / grouping_features.RECORD).read_text())
    assert told["examples"] == 40
    process = cli("--config=configs/evaluate.py", f"--config.checkpoint={tmp_path / 'straight'}")
    assert process.returncode == 0, process.stderr
