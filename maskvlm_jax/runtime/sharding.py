"""The mesh and where every array lives on it: the only file with a PartitionSpec.

Axes: "data" and "fsdp" split the batch; "fsdp" also splits parameters; "model" splits heads, the hidden layer of
feed-forwards, and experts. Axis types are Auto: the compiler places intermediates.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import VECTORS, map_by_path

AXES = ("data", "fsdp", "model")
BATCH = P(("data", "fsdp"))

# (path, spec): the first match wins. Kernels of stacked blocks have a leading layer axis, which is never split.
RULES = (
    (r"/block/experts/(up|down)/kernel$", P(None, "model", "fsdp", None)),
    (r"/block/experts/(up|down)/bias$", P(None, "model")),
    (r"/block/router/kernel$", P()),
    (r"/block/.*/(query|key|value|up)/kernel$", P(None, "fsdp", "model")),
    (r"/block/.*/(query|key|value|up)/bias$", P(None, "model")),
    (r"/block/.*/(out|down)/kernel$", P(None, "model", "fsdp")),
    (r"/text_encoder/embedding$", P("model", "fsdp")),
    (r"/to_words/kernel$", P("fsdp", "model")),
    (r"/kernel$", P("fsdp", None)),
    (rf"/({'|'.join(VECTORS)})$", P()),
)


def make_mesh(*, data: int, fsdp: int, model: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all if None); `data` = -1 takes what the other axes leave.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and count % (fsdp * model) == 0:
        data = count // (fsdp * model)
    if data * fsdp * model != count:
        raise UserError(f"mesh data={data} x fsdp={fsdp} x model={model} does not cover {count} device(s)")
    return Mesh(_arrange((data, fsdp, model), devices), AXES, axis_types=(AxisType.Auto,) * 3)


def _arrange(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices by mesh position, neighbours on the chips' own network; several slices one after the other along "data".

    Raises:
        UserError: an axis other than "data" would reach from slice to slice.
    """
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        # A GPU's "slice" is its node, which parameters may well be split across.
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        slices.setdefault(number, []).append(device)
    data, fsdp, model = shape
    if data % len(slices):
        raise UserError(
            f"mesh data={data} is not divisible by the {len(slices)} slices: fsdp={fsdp} and model={model} must lie "
            "within one"
        )
    inner = (data // len(slices), fsdp, model)
    parts = [mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True) for part in slices.values()]
    return np.concatenate(parts)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UserError where the global batch cannot be split evenly."""
    shares = shares_of(mesh)
    if batch_size % (shares * accumulate):
        raise UserError(
            f"batch_size {batch_size} is not divisible by {shares} device share(s) x {accumulate} accumulation step(s)"
        )


def batch_shares() -> int:
    """Into how many parts the batch is split over the devices of the mesh that is set; 1 where none is."""
    return shares_of(jax.sharding.get_abstract_mesh())


def shares_of(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts a mesh splits the batch."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH[0])


def split_rows(x: jax.Array) -> jax.Array:
    """x with its rows pinned to the axes that split the batch, where a mesh is set and they divide.

    Left to itself the compiler gives rows the placement of "data" alone where a kernel is split over "fsdp", and then
    computes every row in all devices along that axis.
    """
    shares = batch_shares()
    if shares == 1 or x.shape[0] % shares:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH[0], *[P.UNCONSTRAINED] * (x.ndim - 1)))


def by_own_rows(function: Callable[..., jax.Array], rows: Sequence[jax.Array], whole: Sequence[jax.Array]) -> jax.Array:
    """function(*rows, *whole), whose result has the rows of `rows`, on the rows of each device by themselves.

    For what the compiler would gather all rows for, such as sorting them; `whole` is gathered instead. Where no mesh is
    set, or its axes do not divide the rows, all of them go together.
    """
    shares = batch_shares()
    if shares == 1 or rows[0].shape[0] % shares:
        return function(*rows, *whole)
    specs = (*[P(BATCH[0])] * len(rows), *[P()] * len(whole))
    return jax.shard_map(function, in_specs=specs, out_specs=P(BATCH[0]), check_vma=False)(*rows, *whole)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter by `RULES`; an axis that does not divide its dimension is dropped.

    Raises:
        ValueError: a parameter that no rule covers.
    """

    def place(path: str, leaf: Any) -> NamedSharding:
        spec = next((spec for pattern, spec in RULES if re.search(pattern, "/" + path)), None)
        if spec is None:
            raise ValueError(f"no sharding rule covers the parameter {path}")
        fitting = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*fitting))

    return map_by_path(place, params)


def optimizer_shardings(tx: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of the optimizer's state: moments follow their parameter, the rest is replicated."""
    placed = None

    def has_none(moment: Any) -> bool:
        """Whether a frozen parameter's moment stands here."""
        return isinstance(moment, optax.MaskedNode)

    def place() -> None:
        nonlocal placed
        placed = optax.tree_map_params(
            tx,
            lambda moment, sharding: moment if has_none(moment) else sharding,
            tx.init(params),
            shardings,
            transform_non_params=lambda _: replicated(mesh),
            is_leaf=has_none,
        )

    # Optax calls `init` once more: traced, it asks nothing of devices that may be described only.
    jax.eval_shape(place)
    return placed


def rows_of_process(mesh: Mesh, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a global batch this process's devices hold, in order, and which of them it is the first to hold.

    Processes along the "model" axis hold the same rows.
    """
    first: dict[int, int] = {}  # row -> lowest process that holds it
    own: set[int] = set()
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        held = range(*rows.indices(batch_size))
        if device.process_index == jax.process_index():
            own.update(held)
        for row in held:
            first[row] = min(first.get(row, device.process_index), device.process_index)
    rows = np.array(sorted(own))
    return rows, np.array([first[row] == jax.process_index() for row in rows.tolist()])


def abstract_batch(shapes: Mapping[str, tuple[tuple[int, ...], type]], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The same global arrays as `put` makes, by (shape, type), described only."""
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for name, (shape, kind) in shapes.items()}


def put(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's rows."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def put_whole(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from all rows, which every process has."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__) for name, value in batch.items()
    }
