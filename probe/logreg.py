"""Logistic regression by scikit-learn, in memory, over a path of C."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

PATH_ITERATIONS = 100
FINAL_ITERATIONS = 1000


@dataclass(frozen=True)
class FittedRegression:
    """A fitted model and whether the solver converged."""

    model: LogisticRegression
    converged: bool

    def scores(self, features: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
        """(n, classes) log-odds; -inf for classes that were not trained on."""
        values = self.model.decision_function(features)
        if values.ndim == 1:  # two classes: the log-odds of the second against the first
            values = np.stack([-values / 2, values / 2], axis=1)
        scores = np.full((len(features), classes), -np.inf)
        scores[:, self.model.classes_] = values
        return scores

    def weights(self, classes: int) -> dict[str, NDArray[np.float64]]:
        """``weight`` (D, classes) and ``bias`` (classes,) that give the scores of standardised features."""
        weight, bias = self.model.coef_.T, self.model.intercept_
        if weight.shape[1] == 1:
            weight, bias = np.hstack([-weight / 2, weight / 2]), np.hstack([-bias / 2, bias / 2])
        whole, offsets = np.zeros((len(weight), classes)), np.full(classes, -np.inf)
        whole[:, self.model.classes_], offsets[self.model.classes_] = weight, bias
        return {"weight": whole, "bias": offsets}


def fit_regression(features: NDArray[np.float64], labels: NDArray[np.int64], c: float, copies: int = 1) -> FittedRegression:
    """``LogisticRegression(C=c, max_iter=1000)`` from zero, as a plain script would.

    Args:
        features: (n, D) float64, standardised.
        labels: (n,) class numbers.
        c: inverse strength of the L2 penalty.
        copies: how often each sample is there; each copy weighs so much less.
    """
    return _fit(LogisticRegression(C=c, max_iter=FINAL_ITERATIONS), features, labels, copies)


def accuracy_path(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    held_out: NDArray[np.float64],
    held_out_labels: NDArray[np.int64],
    grid: Sequence[float],
    copies: int = 1,
) -> tuple[list[float], list[bool]]:
    """Held-out accuracy of each C, smallest first, each fit starting from the one before; and whether it converged."""
    model = LogisticRegression(max_iter=PATH_ITERATIONS, warm_start=True)
    accuracies, converged = [], []
    for c in grid:
        fitted = _fit(model.set_params(C=c), features, labels, copies)
        accuracies.append(float((fitted.model.predict(held_out) == held_out_labels).mean()))
        converged.append(fitted.converged)
    return accuracies, converged


def _fit(model: LogisticRegression, features: NDArray[np.float64], labels: NDArray[np.int64], copies: int) -> FittedRegression:
    # One thread: a fit that stops at its iteration limit would depend on the number of cores, and these products are small.
    with threadpool_limits(1), warnings.catch_warnings():
        # Not silent: a fit that did not converge is recorded in its result and flagged in the table.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels, None if copies == 1 else np.full(len(labels), 1 / copies))
    return FittedRegression(model, bool(np.max(model.n_iter_) < model.max_iter))
