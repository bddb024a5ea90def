"""What every linear head is once it is fitted, and the stream of rows it is fitted from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Called once a pass: pieces of (n, D) float32 features and (n,) labels, or (n, T) targets, the rows always in the same order.
Stream = Callable[[], Iterable[tuple[NDArray[np.float32], NDArray[Any]]]]


@dataclass(frozen=True)
class LinearFit:
    """A linear model.

    Attributes:
        weights: (D, K) float64; zero for a class without training rows.
        intercept: (K,) float64; -inf for a class without training rows, so that it is never predicted.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, K) decision values of (n, D) features."""
        return features.astype(np.float64, copy=False) @ self.weights + self.intercept


def spread(fit: NDArray[np.float64], present: NDArray[np.int64], classes: int, absent: float) -> NDArray[np.float64]:
    """(..., K) from (..., present classes), the other classes filled with ``absent``."""
    result = np.full((*fit.shape[:-1], classes), absent)
    result[..., present] = fit
    return result
