"""Worlds for the launch scripts: an empty one, and one with an installed slice."""

import shutil

import pytest

from tests.launch.world import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.end()


@pytest.fixture
def slice(world):
    """A world with an installed slice."""
    world.set(slice={"queued": ["ACTIVE"], "node": "READY"})
    for worker in ("0", "1"):
        tree = world.folder / "workers" / worker / "maskvlm_jax"
        shutil.copytree(world.repository, tree)
        (tree / ".venv" / "bin").mkdir(parents=True)
        for tool in ("python", "pip"):
            (tree / ".venv" / "bin" / tool).symlink_to(world.bin / "stand_in")
    return world
