"""The norm of each loss's own gradient, by part of the model: what weights of losses are chosen by.

    python benchmarks/loss_gradients.py --size tiny
    python benchmarks/loss_gradients.py --size mini --data flickr8k --set data.root=FOLDER --set batch_size=32
    python benchmarks/loss_gradients.py --run runs/NAME

Of the first batches of a run's stream, with every loss by itself, unweighted: at the start, or at the newest checkpoint
of a run. Where one loss's gradient is many times another's, the step and the clipping of its norm are the first one's.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from benchmarks.command import finish
from benchmarks.train_step import add_model_flags, chosen_config, set_values
from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import examples, run_tokenizer, training_stream
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.runtime import host, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.settings import upgrade
from maskvlm_jax.training import build, checkpoint

PARTS = {"image encoder": "vlm/image_encoder/", "text encoder": "vlm/text_encoder/", "fusion": "vlm/fusion/"}
PARTS |= {"heads": "objectives/", "all": ""}


def run(config: ConfigDict, workdir: Path | None, count: int) -> dict[str, Any]:
    """Norms by loss and part, in the mean over `count` batches."""
    configs.check(config)
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    if workdir:
        tokenizer = tokenizers.load(workdir / "tokenizer")
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = run_tokenizer.tokenizer_of(config, source, Path(folder))
    mesh = sharding.make_mesh(**config.mesh)
    example = examples.make_example(config, source, tokenizer)
    stream = training_stream.train_stream(
        source,
        example,
        batch_size=config.batch_size,
        seed=config.seed,
        start=0,
        stop=count,
        workers=0,
        threads=1,
    )
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        params, step = built.init().params, 0
        if workdir:
            checkpoints, step = checkpoint.open_run(workdir, "latest")
            params = checkpoints.load_params(step, jax.tree.map(jnp.asarray, params))
            checkpoints.close()
        weights = dict(nnx.merge(built.graphdef, params).weights)

        def norms(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, dict[str, jax.Array]]:
            def loss(params: Any, label: str) -> jax.Array:
                model = nnx.merge(built.graphdef, params)
                teacher = nnx.merge(built.graphdef, jax.lax.stop_gradient(params)) if config.optim.ema_decay else None
                progress = step / config.steps
                output = model(
                    batch, key, teacher=teacher, queue=model.make_queue(), kept=model.first_kept(), progress=progress
                )
                return output.metrics[f"{label}/loss"]

            return {label: by_part(jax.grad(loss)(params, label)) for label in weights}

        function, found = jax.jit(norms), []
        for number, batch in enumerate(stream):
            arrays = {name: value for name, value in batch.items() if name not in batches.HOST_KEYS}
            found.append(jax.device_get(function(params, sharding.put(arrays, mesh), jax.random.key(number))))
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *found)
    return {"run": config.name, "step": step, "batches": count, "weights": weights, "norms": mean}


def by_part(grads: Any) -> dict[str, jax.Array]:
    """The norm of a gradient in each of the `PARTS`."""
    found: dict[str, jax.Array] = {}
    for name, prefix in PARTS.items():
        kept = map_by_path(lambda path, g, p=prefix: jnp.sum(g * g) if path.startswith(p) else 0.0, grads)
        found[name] = jnp.sqrt(sum(jax.tree.leaves(kept)))
    return found


def table(result: dict[str, Any]) -> str:
    """The norms as a table in Markdown."""
    lines = [f"{result['run']}, step {result['step']}, {result['batches']} batch(es)", ""]
    lines += ["| loss | weight | " + " | ".join(PARTS) + " |", "|---" * (len(PARTS) + 2) + "|"]
    for label, norms in result["norms"].items():
        cells = " | ".join(f"{norms[part]:.3g}" for part in PARTS)
        lines.append(f"| {label} | {result['weights'][label]:g} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the config")
    parser.add_argument("--run", default="", help="workdir of a run, whose config and newest checkpoint are taken")
    parser.add_argument("--batches", type=int, default=2, help="the mean is over these")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.batches < 1:
        parser.error("--batches must be 1 or more")
    host.quiet_libraries()
    host.prepare_accelerator()

    def measure() -> dict[str, Any]:
        workdir = Path(args.run) if args.run else None
        if workdir and not workdir.is_dir():
            raise UserError(f"there is no workdir {args.run!r}; give --run the folder of a run")
        config = ConfigDict(upgrade.read(workdir / "config.json")) if workdir else chosen_config(args)
        set_values(config, args.set)
        return run(config, workdir, args.batches)

    return finish(measure, table, as_json=args.json)


if __name__ == "__main__":
    host.use_huge_pages()
    sys.exit(main())
