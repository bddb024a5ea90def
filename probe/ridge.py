"""Ridge regression in closed form: one pass, one eigendecomposition, any number of penalties.

    min over W, b of  sum_i |y_i - W' x_i - b|^2 + alpha |W|^2

has, for centred X and Y with X'X = Q diag(s) Q', the solution W = Q diag(1 / (s + alpha)) Q' X'Y.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from .errors import ProbeError, TooFewRows
from .linear import LinearFit, Stream


@dataclass(frozen=True)
class RidgeFit(LinearFit):
    """The fit of one penalty.

    Attributes:
        alpha: factor of |W|^2.
    """

    alpha: float


def fit_ridge(stream: Stream, alphas: Sequence[float], classes: int | None = None) -> list[RidgeFit]:
    """Ridge regression for every penalty, as ``sklearn.linear_model.Ridge`` and ``RidgeClassifier`` define it.

    Moments and solution are float64. Memory is some 4 D^2 float64 numbers, whatever the number of rows; directions in
    which the rows do not vary get no weight.

    Args:
        stream: (n, D) features, and (n, T) targets, or (n,) class numbers if ``classes`` is given.
        alphas: penalties, none negative.
        classes: number of classes K; the targets are then +1 for the row's class and -1 for the others.

    Raises:
        ProbeError: the machine has too little memory for D x D moments.
        TooFewRows: there are no rows, or for classes, fewer than two have some.
    """
    if not alphas or min(alphas) < 0:
        raise ValueError(f"penalties must not be negative, and there must be one, got {list(alphas)}")
    moments = _Moments()
    for features, given in stream():
        moments.add(features, given if classes is None else 2.0 * (given[:, None] == np.arange(classes)) - 1)
    if moments.count == 0:
        raise TooFewRows("ridge regression needs rows, got none")
    mean, target_mean, gram, cross = moments.centred()
    absent = np.zeros(len(target_mean), dtype=bool) if classes is None else target_mean == -1
    if classes is not None and classes - absent.sum() < 2:
        raise TooFewRows(f"ridge classification needs rows of two classes at least, got rows of {classes - absent.sum()}")
    variances, basis = scipy.linalg.eigh(
        gram.T, driver="evd", overwrite_a=True, check_finite=False
    )  # .T: as LAPACK wants it, no copy
    # Below this, an eigenvalue is rounding of the largest.
    least = max(variances[-1], 0.0) * len(mean) * np.finfo(np.float64).eps
    projected = basis.T @ cross
    fits = []
    for alpha in alphas:
        damped = np.maximum(variances, 0.0) + alpha
        scale = np.divide(1.0, damped, out=np.zeros_like(damped), where=damped > least)
        weights = basis @ (scale[:, None] * projected)
        intercept = target_mean - mean @ weights
        fits.append(RidgeFit(np.where(absent, 0.0, weights), np.where(absent, -np.inf, intercept), float(alpha)))
    return fits


class _Moments:
    """Sums of x, y, x x' and x y' in float64, of differences to the first piece's mean, so that nothing cancels."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: NDArray[np.float32], targets: NDArray[Any]) -> None:
        """Take (n, D) features and (n, T) targets."""
        if len(features) == 0:
            return
        x, y = features.astype(np.float64), targets.astype(np.float64)
        if self.count == 0:
            _require_memory(x.shape[1])
            self._shift, self._target_shift = x.mean(axis=0), y.mean(axis=0)
            self._sum, self._target_sum = np.zeros(x.shape[1]), np.zeros(y.shape[1])
            self._gram, self._cross = np.zeros((x.shape[1], x.shape[1])), np.zeros((x.shape[1], y.shape[1]))
        x -= self._shift
        y -= self._target_shift
        self.count += len(x)
        self._sum += x.sum(axis=0)
        self._target_sum += y.sum(axis=0)
        self._gram += x.T @ x
        self._cross += x.T @ y

    def centred(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Means of x (D,) and y (T,), and X'X (D, D) and X'Y (D, T) of centred rows. Once only: it works in place."""
        off, target_off = self._sum / self.count, self._target_sum / self.count
        self._gram -= self.count * np.outer(off, off)
        self._cross -= self.count * np.outer(off, target_off)
        return self._shift + off, self._target_shift + target_off, self._gram, self._cross


def _require_memory(dimension: int) -> None:
    needed = 4 * 8 * dimension**2
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ProbeError(
            f"ridge needs {needed / 1e9:.3g} GB for the moments of {dimension} features, and the machine has "
            f"{memory / 1e9:.3g} GB; use a smaller pool, or --head linear, which needs no moments"
        )
