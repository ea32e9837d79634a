"""Logistic regression of many classes by L-BFGS, with its regularisation chosen on other examples.

    min over W, b:  1/n · Σ_i −log softmax(W x_i + b)_{y_i}  +  1/(2 C n) · ‖W‖²

which is what scikit-learn's LogisticRegression minimises, divided by C n, and by the same solver, SciPy's. The loss and
its gradient are computed on the device. Features are centred first, which changes b alone and takes fewer steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

MEMORY, TOLERANCE = 10, 1e-5  # earlier gradients that are held; largest entry of the gradient at the end

# log10 of C that are tried: these, then between them around the best, down to an eighth of a decade (CLIP, arXiv
# 2103.00020, A.3).
COARSE, FINER = (-6, -4, -2, 0, 2, 4, 6), (1.0, 0.5, 0.25, 0.125)


class Fit(NamedTuple):
    """What is learned: weight_FC and bias_C, float64, and how many steps it took."""

    weight_FC: np.ndarray
    bias_C: np.ndarray
    steps: int

    def logits(self, feature_IF: np.ndarray) -> np.ndarray:
        """logits_IC of the classes."""
        return feature_IF @ self.weight_FC + self.bias_C


def fit(feature_IF: np.ndarray, label_I: np.ndarray, classes: int, strength: float, *, steps: int = 1_000) -> Fit:
    """The classes of examples from their features; gradients are of float32.

    Args:
        feature_IF: features; label_I: numbers of the classes.
        strength: C, the smaller the stronger W is held near zero.
        steps: at most.
    """
    centre_F = feature_IF.mean(axis=0, dtype=np.float64)
    centred_IF = jnp.asarray(feature_IF - centre_F, jnp.float32)
    label_I, decay = jnp.asarray(label_I, jnp.int32), jnp.float32(1 / (strength * len(label_I)))
    shape = feature_IF.shape[1] + 1, classes

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        params = jnp.asarray(flat.reshape(shape), jnp.float32)
        value, gradient = _value_and_gradient(params, centred_IF, label_I, decay)
        return float(value), np.asarray(gradient, np.float64).ravel()

    options = {"maxiter": steps, "maxfun": 20 * steps, "maxcor": MEMORY, "gtol": TOLERANCE, "ftol": 0.0}
    start = np.zeros(shape[0] * classes)
    found = optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    weight_FC, bias_C = np.split(found.x.reshape(shape), [shape[0] - 1])
    return Fit(weight_FC, bias_C[0] - centre_F @ weight_FC, int(found.nit))


@jax.jit
@jax.value_and_grad
def _value_and_gradient(params: jax.Array, feature_IF: jax.Array, label_I: jax.Array, decay: jax.Array) -> jax.Array:
    """The loss of W and, in the last row, b."""
    weight_FC, bias_C = params[:-1], params[-1]
    logits_IC = jnp.matmul(feature_IF, weight_FC, precision=jax.lax.Precision.HIGHEST) + bias_C
    nll_I = optax.softmax_cross_entropy_with_integer_labels(logits_IC, label_I)
    return jnp.mean(nll_I) + decay / 2 * jnp.sum(jnp.square(weight_FC))


def choose(accuracy: Callable[[float], float]) -> float:
    """The C of the largest accuracy, of several the smallest.

    Args:
        accuracy: of other examples, with a C.
    """
    found = {float(exponent): accuracy(10.0**exponent) for exponent in COARSE}
    best = _best(found)
    for step in FINER:
        for exponent in (best - step, best + step):
            if exponent not in found and COARSE[0] <= exponent <= COARSE[-1]:
                found[exponent] = accuracy(10.0**exponent)
        best = _best(found)
    return 10.0**best


def _best(found: dict[float, float]) -> float:
    return max(sorted(found), key=found.get)
