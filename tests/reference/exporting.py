"""Workdirs of random models, and their exports in tests/reference/exports, which PyTorch has computed from.

python -m tests.reference.exporting          # writes the exports anew
python tests/reference/make_export_goldens.py    # in an environment with torch: what it computes from them
"""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.serving.exports import exporting
from maskvlm_jax.settings import plain_values, upgrade
from maskvlm_jax.training import build, train_step
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.training.progress import Progress
from tests.conftest import toy_config
from tests.reference import toy

FOLDER = Path(__file__).parent / "exports"
SMALL = {f"model__{part}__width": 16 for part in ("image", "text", "fusion")}
SMALL |= {"model__text__vocab_size": 64, "model__text__max_length": 12}
DECODER = {"objectives__masked_image__decoder__width": 16}
# name -> structure and values; between them every part of torch_model.py.
MODELS = {
    "maskvlm": ("recipe=maskvlm", {"model__text__norm": "post", "model__text__activation": "gelu_tanh"} | DECODER),
    "albef": (
        "recipe=albef",
        {
            "model__text__norm": "post",
            "model__fusion__norm": "post",
            "model__image__class_token": True,
            "model__image__registers": 2,
            "model__image__norm_before": True,
            "model__image__activation": "quick_gelu",
            "model__pooling__image": "both",
            "model__pooling__text": "mean",
            "model__pooling__layers": 2,
        },
    ),
    "mamo": (
        "recipe=mamo",
        {
            "model__image__distillation_token": True,
            "objectives__masked_text__tie": True,
            "model__pooling__image": "first+attention",
            "model__pooling__text": "attention",
            "model__pooling__centred": True,
        },
    ),
    "mlim": ("recipe=mlim", {"model__fusion__depth": 2}),
}
CAPTIONS = ["a red square above a blue circle", "two people ride a horse on the beach", "the end of a long road"]


def config_of(name: str):
    """The config of one of `MODELS`."""
    structure, values = MODELS[name]
    return toy_config(structure, **SMALL | values)


def make_workdir(folder: Path, config) -> None:
    """A workdir with one checkpoint, of step 3, of random parameters."""
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    upgrade.write(folder / "config.json", plain_values.to_json(config))
    tokenizers.save(tokenizers.train_wordpiece(CAPTIONS, config.model.text.vocab_size), folder / "tokenizer")
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        model = toy.randomised(lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0)))
        params = train_step.split_model(model)[1]
        # Zeros for the rest of it: making it properly would be compiled.
        state = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(built.init))
        state = state._replace(params=params, step=jnp.int32(3))
        checkpoints = Checkpoints(folder / "checkpoints")
        checkpoints.save(state, Progress(stream={"rows": "0" * 64}))
        checkpoints.close()


def main() -> None:
    """Writes all exports anew."""
    workdir = Path("/tmp") / "maskvlm_jax-exports"
    for name in MODELS:
        for folder in (workdir, FOLDER / name):
            shutil.rmtree(folder, ignore_errors=True)
        workdir.mkdir()
        make_workdir(workdir, config_of(name))
        exporting.export(str(workdir), str(FOLDER / name))
        for copy in ("torch_model.py", "README.md"):  # the same for all, and of no use to the tests
            (FOLDER / name / copy).unlink()
    shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
