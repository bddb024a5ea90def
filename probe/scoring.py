"""The one number that a fit is chosen by, for each task."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, r2_score

from .metrics import hits

_NAMES = {"classify": "top1", "multilabel": "map", "regress": "r2"}
_TITLES = {"classify": "top-1", "multilabel": "mAP", "regress": "R2"}


def score_name(task: str) -> str:
    """``top1`` (accuracy), ``map`` (mean average precision) or ``r2`` (coefficient of determination, mean over numbers)."""
    return _NAMES[task]


def score_title(task: str) -> str:
    """The same, for people."""
    return _TITLES[task]


def score(task: str, outputs: NDArray[np.floating], targets: NDArray[Any]) -> float:
    """The score of (n, K) outputs; the worst there is for outputs that are not finite."""
    if task == "classify":
        return float(hits(outputs, targets, 1).mean())
    if not np.isfinite(outputs).all():
        return float("-inf")
    known = ~np.isnan(targets)
    if task == "regress":
        return float(np.mean([r2_score(targets[own, k], outputs[own, k]) for k, own in enumerate(known.T)]))
    places = [k for k, own in enumerate(known.T) if (targets[own, k] > 0).any()]
    return float(np.mean([average_precision_score(targets[known[:, k], k], outputs[known[:, k], k]) for k in places]))
