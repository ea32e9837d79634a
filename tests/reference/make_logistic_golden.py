"""Writes golden/logistic.npz: what scikit-learn's logistic regression makes of some examples.

python tests/reference/make_logistic_golden.py    # in an environment with scikit-learn
"""

from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

STRENGTHS = (1e-3, 0.316, 10.0)


def main() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 3, 6)
    feature_IF = (rng.normal(size=(120, 6)) * scale + 2).astype(np.float32)
    label_I = ((feature_IF - 2) @ rng.normal(size=(6, 3)) + rng.normal(size=(120, 3))).argmax(axis=1)
    golden = {"features": feature_IF, "labels": label_I, "strengths": np.array(STRENGTHS)}
    for number, strength in enumerate(STRENGTHS):
        fitted = LogisticRegression(C=strength, max_iter=20_000, tol=1e-9).fit(feature_IF.astype(float), label_I)
        golden |= {f"weight_{number}": fitted.coef_.T, f"bias_{number}": fitted.intercept_}
    np.savez(Path(__file__).parent / "golden" / "logistic.npz", **golden)


if __name__ == "__main__":
    main()
