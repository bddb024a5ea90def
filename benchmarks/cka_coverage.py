"""Coverage of CKA's intervals: how many of them, from samples of a population whose CKA is known, contain it.

    OMP_NUM_THREADS=1 python benchmarks/cka_coverage.py [--samples 500]

Features are linear maps of 8 hidden numbers, the second with independent noise added; all numbers are Gaussian, or Student's t
with 6 degrees of freedom. CKA of the population is that of its covariances. Intervals are meant to contain it in 95 %.
"""

from __future__ import annotations

import argparse

import numpy as np
from diffssl.analysis.cka import cka
from numpy.typing import NDArray

HIDDEN = 8
FREEDOM = 6


def draw(rng: np.random.Generator, shape: tuple[int, int], heavy: bool) -> NDArray[np.float64]:
    """Independent numbers of variance 1."""
    return rng.standard_t(FREEDOM, size=shape) * np.sqrt(1 - 2 / FREEDOM) if heavy else rng.standard_normal(shape)


def coverage(noise: float, n: int, heavy: bool, samples: int) -> tuple[float, float]:
    """CKA of the population, and the share of samples of n rows whose interval contains it."""
    rng = np.random.default_rng(0)
    a = np.diag(0.7 ** np.arange(HIDDEN))
    b = a @ np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN)))[0]
    own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b + noise**2 * np.eye(HIDDEN))
    truth = np.linalg.norm(a.T @ b) ** 2 / own
    held = 0
    for _ in range(samples):
        hidden = draw(rng, (n, HIDDEN), heavy)
        found = cka([hidden @ a, hidden @ b + noise * draw(rng, (n, HIDDEN), heavy)])
        held += bool(found.low[0, 1] <= truth <= found.high[0, 1])
    return float(truth), held / samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    samples = parser.parse_args().samples
    for heavy in (False, True):
        for n in (100, 400):
            for noise in (0.1, 0.6, 3.0):
                truth, share = coverage(noise, n, heavy, samples)
                print(f"{'t(6)' if heavy else 'Gaussian':8} {n} rows, CKA {truth:.3f}: {100 * share:.1f} %", flush=True)


if __name__ == "__main__":
    main()
