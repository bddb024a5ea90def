"""Fits of heads that have no randomness: logistic regression, ridge regression, nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .fit import Fit, Material, at_edge, choice
from .knn import knn_scores
from .linear import LinearFit, Stream
from .logistic import fit_path
from .logreg import accuracy_path, fit_regression
from .protocol import RowSet, size
from .ridge import fit_ridge
from .scoring import score, score_name


def fit_logreg(material: Material, options: Mapping[str, Any], device: torch.device) -> Fit:
    """Fit logistic regression, choosing C: by scikit-learn where the rows fit in memory, else streaming."""
    if material.data.fits_in_memory(material.protocol.refit):
        return _fit_logreg_in_memory(material, options["C"])
    return fit_logreg_streaming(material, options, device)


def fit_logreg_streaming(material: Material, options: Mapping[str, Any], device: torch.device) -> Fit:
    """Fit logistic regression for all C at once over streamed rows, choosing C."""
    protocol, grid = material.protocol, options["C"]
    copies = len(material.data.copies(next(iter(protocol.fit))))
    # Each copy of a row weighs so much less, or C would mean something else.
    fits = fit_path(_stream(material, protocol.fit), material.outputs, [c / copies for c in grid], device=str(device))
    held_out, labels = _held_out(material)
    accuracies = [score("classify", _linear_scores(fit, held_out), labels) for fit in fits]
    best = int(np.argmax(accuracies))
    fitted = fits[best]
    if material.refit:
        stream = _stream(material, protocol.refit)
        (fitted,) = fit_path(stream, material.outputs, [grid[best] / copies], device=str(device), start=[fitted])
    chosen = {"C": grid[best], "solver": "streaming L-BFGS", "converged": fitted.converged}
    chosen |= {"converged_grid": [fit.converged for fit in fits], "passes": sum(fit.passes for fit in (*fits[-1:], fitted))}
    chosen |= choice(accuracies, best, "top1", at_edge(grid[best], grid))
    return Fit(chosen, _tested(material, fitted.scores), material.test_labels(), True, _weights(fitted))


def fit_ridge_head(material: Material, options: Mapping[str, Any], device: torch.device) -> Fit:  # noqa: ARG001
    """Fit ridge regression in closed form, choosing the penalty; classes and labels are targets of 1 and -1."""
    protocol, task, grid = material.protocol, material.data.targets.task, options["alphas"]
    classes = material.outputs if task == "classify" else None
    fits = fit_ridge(_answered(material, protocol.fit), grid, classes)
    held_out, labels = _held_out(material)
    scores = [score(task, _linear_scores(fit, held_out), labels) for fit in fits]
    best = int(np.argmax(scores))
    fitted = fits[best]
    if material.refit:
        (fitted,) = fit_ridge(_answered(material, protocol.refit), [grid[best]], classes)
    chosen = {"alpha": grid[best]} | choice(scores, best, score_name(task), at_edge(grid[best], grid))
    return Fit(chosen, _tested(material, fitted.scores), material.test_labels(), False, _weights(fitted))


def fit_knn(material: Material, options: Mapping[str, Any], device: torch.device) -> Fit:  # noqa: ARG001
    """Score by nearest neighbours, choosing their number and the temperature; numbers above that of the rows are left out."""
    protocol, classes = material.protocol, material.outputs
    temperatures = options["temperatures"]
    rows = size(protocol.fit) * len(material.data.copies(next(iter(protocol.fit))))
    numbers = [k for k in options["k"] if k <= rows] or [rows]
    grid = [(k, temperature) for k in numbers for temperature in temperatures]
    select = _stream(material, protocol.select, every=False)
    found = knn_scores(_stream(material, protocol.fit), select, classes, numbers, temperatures)
    labels = np.concatenate([own for _, own in select()])
    accuracies = [score("classify", own, labels) for own in found]
    best = int(np.argmax(accuracies))
    k, temperature = grid[best]
    train = _stream(material, protocol.refit if material.refit else protocol.fit)
    split = next(iter(protocol.test))
    tests = [
        partial(material.test.in_order, protocol.test, material.moments, copy) for copy in material.test.scored_copies(split)
    ]
    scores = [knn_scores(train, test, classes, [k], [temperature])[0] for test in tests]
    chosen: dict[str, Any] = {"k": k, "temperature": temperature, "k_grid": numbers}
    return Fit(chosen | choice(accuracies, best, "top1", at_edge(k, numbers)), scores, material.test_labels(), False)


FITTERS: Mapping[str, Callable[[Material, Mapping[str, Any], torch.device], Fit]] = {
    "logreg": fit_logreg,
    "ridge": fit_ridge_head,
    "knn": fit_knn,
}


def _fit_logreg_in_memory(material: Material, grid: list[float]) -> Fit:
    data, moments, protocol = material.data, material.moments, material.protocol
    features, labels = data.load(protocol.fit, moments, every=True)
    held_out, held_out_labels = data.load(protocol.select, moments)
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


def _stream(material: Material, rows: RowSet, every: bool = True) -> Stream:
    return partial(material.data.in_order, rows, material.moments, every=every)


def _answered(material: Material, rows: RowSet) -> Stream:
    """Rows all of whose answers are known: one solution serves all targets."""

    def stream() -> Iterable[tuple[NDArray[np.float32], NDArray[Any]]]:
        for features, targets in material.data.in_order(rows, material.moments, every=True):
            if material.data.targets.task == "classify":
                yield features, targets
            else:
                known = ~np.isnan(targets).any(axis=1)
                sides = 2 * targets[known] - 1 if material.data.targets.task == "multilabel" else targets[known]
                yield features[known], sides

    return stream


def _held_out(material: Material) -> tuple[list[NDArray[np.float32]], NDArray[Any]]:
    parts = list(material.data.in_order(material.protocol.select, material.moments))
    return [features for features, _ in parts], np.concatenate([labels for _, labels in parts])


def _linear_scores(fit: LinearFit, parts: list[NDArray[np.float32]]) -> NDArray[np.floating]:
    return np.concatenate([fit.scores(part) for part in parts])


def _tested(material: Material, scores_of: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> list[NDArray[np.floating]]:
    """Scores of the test rows, of each of their noise draws."""
    rows = material.protocol.test
    copies = material.test.scored_copies(next(iter(rows)))
    streams = [material.test.in_order(rows, material.moments, copy) for copy in copies]
    return [np.concatenate([scores_of(values) for values, _ in stream]) for stream in streams]


def _weights(fit: LinearFit) -> dict[str, NDArray[np.float64]]:
    return {"weight": fit.weights, "bias": fit.intercept}
