"""What this machine's matrix products can reach, against which a step is held."""

import statistics
import time

import jax
import jax.numpy as jnp


class Matmul:
    """Speed of square matrix products on the first device."""

    def __init__(self, dtype: str):
        # An accelerator needs larger matrices, and several products in a row, to be busy.
        sides, self._calls = ((1024, 2048), 1) if jax.default_backend() == "cpu" else ((4096, 8192), 20)
        self._multiply = jax.jit(jnp.matmul)
        # Random: a GPU takes more power, and runs slower, where many bits change.
        self._inputs = {side: jax.random.normal(jax.random.key(0), (side, side), dtype) for side in sides}
        self._gflops: dict[int, list[float]] = {side: [] for side in sides}
        for x in self._inputs.values():
            jax.block_until_ready(self._multiply(x, x))

    def measure(self) -> None:
        """Takes one sample of every size."""
        for side, x in self._inputs.items():
            start = time.perf_counter()
            jax.block_until_ready([self._multiply(x, x) for _ in range(self._calls)])
            seconds = time.perf_counter() - start
            self._gflops[side].append(2 * side**3 * self._calls / seconds / 1e9)

    def best(self) -> tuple[int, float]:
        """The size whose median is the highest, and that median in GFLOP/s."""
        medians = {side: statistics.median(values) for side, values in self._gflops.items()}
        side = max(medians, key=medians.get)
        return side, medians[side]
