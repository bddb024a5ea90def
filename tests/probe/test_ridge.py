"""Ridge regression against scikit-learn's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diffssl.probe.errors import ProbeError, TooFewRows
from diffssl.probe.linear import Stream
from diffssl.probe.ridge import fit_ridge
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LinearRegression, Ridge, RidgeClassifier

ALPHAS = [1e-3, 1.0, 1e3, 1e6]


def stream(x: NDArray[Any], y: NDArray[Any], size: int = 100) -> Stream:
    def pieces() -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        for i in range(0, len(y), size):
            yield x[i : i + size].astype(np.float32), y[i : i + size]

    return pieces


def regression(n: int, dimension: int, targets: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, dimension)).astype(np.float32).astype(np.float64)
    return x, x @ rng.normal(size=(dimension, targets)) + rng.normal(size=(n, targets)) + 7


@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_classification_is_that_of_scikit_learn(load: Any) -> None:
    x, y = load(return_X_y=True)
    x = x.astype(np.float32).astype(np.float64)
    classes = int(y.max()) + 1
    for fit in fit_ridge(stream(x, y), ALPHAS, classes):
        model = RidgeClassifier(alpha=fit.alpha, solver="svd").fit(x, y)
        theirs = model.decision_function(x)
        if classes == 2:
            theirs = np.stack([-theirs, theirs], axis=1)
        assert np.abs(fit.scores(x) - theirs).max() < 1e-6
        assert np.array_equal(fit.scores(x).argmax(axis=1), model.predict(x))


@pytest.mark.parametrize(("n", "dimension"), [(200, 10), (20, 60), (30, 30)])
def test_regression_is_that_of_scikit_learn(n: int, dimension: int) -> None:
    """With fewer rows than features too."""
    x, y = regression(n, dimension)
    for fit in fit_ridge(stream(x, y, 7), ALPHAS):
        model = Ridge(alpha=fit.alpha, solver="svd").fit(x, y)
        assert np.abs(fit.weights - model.coef_.T).max() < 1e-6
        assert np.abs(fit.intercept - model.intercept_).max() < 1e-6


@pytest.mark.parametrize(("n", "dimension"), [(200, 10), (20, 60)])
def test_without_a_penalty_it_is_the_shortest_least_squares(n: int, dimension: int) -> None:
    x, y = regression(n, dimension)
    (fit,) = fit_ridge(stream(x, y), [0.0])
    model = LinearRegression().fit(x, y)
    assert np.abs(fit.weights - model.coef_.T).max() < 1e-8


def test_a_gradient_of_zero() -> None:
    """The written-out condition of the optimum, without another implementation."""
    x, y = regression(80, 6)
    (fit,) = fit_ridge(stream(x, y), [3.0])
    residuals = y - fit.scores(x)
    assert np.abs(residuals.sum(axis=0)).max() < 1e-9
    assert np.abs(x.T @ residuals - 3.0 * fit.weights).max() < 1e-9


def test_the_size_of_pieces_does_not_matter_and_one_pass_is_enough() -> None:
    x, y = regression(80, 6)
    read = 0

    def counted() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
        nonlocal read
        read += 1
        yield np.empty((0, 6), np.float32), np.empty((0, 3))
        yield from stream(x, y, 1)()

    for one, other in zip(fit_ridge(counted, ALPHAS), fit_ridge(stream(x, y), ALPHAS), strict=True):
        assert np.allclose(one.weights, other.weights, rtol=1e-9, atol=1e-12)
    assert read == 1


def test_features_far_from_zero_lose_nothing() -> None:
    x, y = regression(80, 6)
    x = np.round(x * 16) / 16  # exact in float32 after the shift
    near, far = (fit_ridge(stream(one, y), [1.0])[0] for one in (x, x + 4096))
    assert np.abs(near.weights - far.weights).max() < 1e-9


def test_a_constant_feature_gets_no_weight() -> None:
    x, y = regression(80, 6)
    x[:, 2] = 5
    for fit in fit_ridge(stream(x, y), [0.0, 1.0]):
        assert np.abs(fit.weights[2]).max() < 1e-12


def test_a_class_without_rows_is_never_predicted() -> None:
    x, y = load_wine(return_X_y=True)
    places = np.array([1, 4, 6])[y]
    (fit,), (dense,) = fit_ridge(stream(x, places), [1.0], 8), fit_ridge(stream(x, y), [1.0], 3)
    scores = fit.scores(x)
    assert np.isneginf(scores[:, [0, 2, 3, 5, 7]]).all()
    assert np.allclose(scores[:, [1, 4, 6]], dense.scores(x))


def test_what_cannot_be_fitted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = regression(80, 6)
    with pytest.raises(ValueError, match="must not be negative"):
        fit_ridge(stream(x, y), [1.0, -1.0])
    with pytest.raises(TooFewRows, match="got none"):
        fit_ridge(lambda: [], [1.0])
    with pytest.raises(TooFewRows, match="two classes at least, got rows of 1"):
        fit_ridge(stream(x, np.zeros(80, dtype=np.int64)), [1.0], 3)
    monkeypatch.setattr(os, "sysconf", lambda name: 1000 if name == "SC_PHYS_PAGES" else 1)
    with pytest.raises(ProbeError, match=r"needs 1.15e-06 GB for the moments of 6 features, and the machine has 1e-06 GB"):
        fit_ridge(stream(x, y), [1.0])
