"""Losses and gradients of one batch, to be compared between devices and precisions.

    JAX_PLATFORMS=cpu python benchmarks/numerics.py --write FILE
    python benchmarks/numerics.py --against FILE --dtype bfloat16
    python benchmarks/numerics.py --against FILE --dtype float32 --precision highest

FILE holds parameters, losses and gradients; the second command starts from its parameters. Errors are told of each
group of parameters. Negatives are drawn uniformly: by similarity, a difference in the last bit
could draw another one.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from benchmarks.command import finish
from benchmarks.train_step import TOWERS, set_values, synthetic_batch
from configs import common, pretrain
from maskvlm_jax.runtime import host, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.settings import run_length
from maskvlm_jax.training import build

# Kinds of parameters whose gradients are sums over all positions of a batch.
KINDS = {
    "kernels": r"/kernel$",
    "biases of dense layers": r"(?<!norm)(?<!norm\d)/bias$",
    "norms": r"norm\d?/(scale|bias)$",
    "tokens and positions": r"/(position|class_token|mask_token)$",
    "word embedding": r"/embedding$",
}


def gradients(config: ConfigDict, params: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Parameters, losses and gradients of a made-up batch by path: param/..., loss/..., grad/...

    Args:
        params: by path; those of the config's seed if None.
    """
    configs.check(config)
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state = built.init()
        start = map_by_path(lambda path, leaf: params[path] if params else np.asarray(leaf), state.params)

        def loss(params: Any, batch: dict[str, jax.Array]):
            output = nnx.merge(built.graphdef, params)(batch, jax.random.key(0), teacher=None, queue=None, progress=1.0)
            return output.loss, output.metrics

        batch = sharding.put(synthetic_batch(config), mesh)
        (total, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(start, batch)
    found = {"loss/all": np.asarray(total)}
    found |= {f"loss/{name[:-5]}": np.asarray(value) for name, value in metrics.items() if name.endswith("/loss")}
    for kind, tree in (("param", start), ("grad", grads)):
        map_by_path(lambda path, leaf, k=kind: found.update({f"{k}/{path}": np.asarray(leaf)}), tree)
    return found


def errors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Relative errors of losses, and of the gradient by tower and by kind of parameter.

    gradients: the distance, ‖g − g*‖ / ‖g*‖, which rounding makes whatever its sign; gradient_norms: ‖g‖ / ‖g*‖ − 1,
    which only an error with a direction moves, such as a sum that loses its small terms.
    """
    losses = {name[5:]: float(found[name] / expected[name] - 1) for name in expected if name.startswith("loss/")}
    paths = [name for name in expected if name.startswith("grad/")]

    def norm(arrays: Iterable[np.ndarray]) -> float:
        return math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in arrays))

    def distance(chosen: list[str]) -> float:
        return norm(found[p] - expected[p] for p in chosen) / norm(expected[p] for p in chosen)

    def longer(chosen: list[str]) -> float:
        return norm(found[p] for p in chosen) / norm(expected[p] for p in chosen) - 1

    towers: dict[str, list[str]] = {name: [] for name in TOWERS}
    for path in paths:
        towers[next(name for name, parts in TOWERS.items() if any(part in f"{path}/" for part in parts))].append(path)
    kinds = {kind: [path for path in paths if re.search(pattern, path)] for kind, pattern in KINDS.items()}
    groups = {name: chosen for name, chosen in {"all": paths, **towers, **kinds}.items() if chosen}
    distances, norms = ({name: of(chosen) for name, chosen in groups.items()} for of in (distance, longer))
    return {"losses": losses, "gradients": distances, "gradient_norms": norms}


def table(result: dict[str, Any]) -> str:
    """Errors in percent."""
    lines = [f"{result['device']}, {result['dtype']}, precision {result['precision']}"]
    for title in ("losses", "gradients", "gradient_norms"):
        lines += [
            f"{title.replace('_', ' ')}:",
            *(f"  {name:26}{value:10.4%}" for name, value in result.get(title, {}).items()),
        ]
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    file = parser.add_mutually_exclusive_group(required=True)
    file.add_argument("--write", metavar="FILE", help="computes in float32 and writes FILE")
    file.add_argument("--against", metavar="FILE", help="compares with FILE")
    parser.add_argument("--size", choices=common.WHOLE_SIZES, default="mini", help="of the model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--precision", choices=("default", "highest"), default="default", help="of float32 products")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config value; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    host.quiet_libraries()
    host.prepare_accelerator()
    config = pretrain.get_config(f"size={args.size}")
    config.objectives.matching.hardness = 0.0
    config.model.shared.dtype = args.dtype
    jax.config.update("jax_default_matmul_precision", None if args.precision == "default" else args.precision)

    if args.write and (args.dtype, args.precision) != ("float32", "default"):
        parser.error("--write computes in float32; leave --dtype and --precision out")

    def measure() -> dict[str, Any]:
        set_values(config, args.set)
        run_length.resolve_steps(config, 100_000)
        result = {"device": jax.devices()[0].device_kind, "dtype": args.dtype, "precision": args.precision}
        if args.write:
            np.savez(args.write, **gradients(config, None))
            return result
        if not Path(args.against).is_file():
            raise UserError(f"there is no file {args.against}; write it with --write")
        with np.load(args.against) as stored:
            expected = dict(stored)
        params = {name.removeprefix("param/"): x for name, x in expected.items() if name.startswith("param/")}
        return result | errors(gradients(config, params), expected)

    return finish(measure, table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
