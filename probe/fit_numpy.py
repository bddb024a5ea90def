"""Fits of heads that have no randomness: logistic regression, ridge regression, nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .fit import Fit, Material, at_edge, choice
from .logreg import accuracy_path, fit_regression
from .protocol import size


def fit_logreg(material: Material, options: Mapping[str, Any], device: torch.device) -> Fit:  # noqa: ARG001
    """Fit logistic regression by scikit-learn, choosing C."""
    data, moments, protocol = material.data, material.moments, material.protocol
    features, labels = data.load(protocol.fit, moments, every=True)
    held_out, held_out_labels = data.load(protocol.select, moments)
    grid = options["C"]
    copies = len(features) // size(protocol.fit)
    accuracies, converged = accuracy_path(features, labels, held_out, held_out_labels, grid, copies)
    best = int(np.argmax(accuracies))
    if material.refit:
        features, labels = data.load(protocol.refit, moments, every=True)
    fitted = fit_regression(features, labels, grid[best], copies)
    scores = _tested(material, lambda values: fitted.scores(values.astype(np.float64), material.outputs))
    chosen = {"C": grid[best], "solver": "scikit-learn", "converged": fitted.converged, "converged_grid": converged}
    chosen |= choice(accuracies, best, "top1", at_edge(grid[best], grid))
    return Fit(chosen, scores, material.test_labels(), True, fitted.weights(material.outputs))


def _tested(material: Material, score: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> list[NDArray[np.floating]]:
    """Scores of the test rows, of each of their noise draws."""
    rows = material.protocol.test
    copies = material.test.copies(next(iter(rows)))
    streams = [material.test.in_order(rows, material.moments, copy) for copy in copies]
    return [np.concatenate([score(values) for values, _ in stream]) for stream in streams]


FITTERS: Mapping[str, Callable[[Material, Mapping[str, Any], torch.device], Fit]] = {"logreg": fit_logreg}
