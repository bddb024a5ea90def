"""The conventions of scikit-learn, by its own checks, and agreement with its estimators."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from diffssl.probe.estimators import KNNProbe, LogisticProbe, RidgeProbeClassifier, RidgeProbeRegressor
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

ESTIMATORS = [RidgeProbeClassifier(), RidgeProbeRegressor(), KNNProbe(n_neighbors=3), LogisticProbe()]


@parametrize_with_checks(ESTIMATORS)  # type: ignore[untyped-decorator]
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def standardised(load: Any) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x), np.array(["one", "two", "three"])[y]


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (RidgeProbeClassifier(2.0), RidgeClassifier(alpha=2.0), 1e-5),
        (LogisticProbe(0.1), LogisticRegression(C=0.1, tol=1e-8), 2e-2),
    ],
    ids=["ridge", "logistic"],
)
def test_linear_classifiers_are_those_of_scikit_learn(load: Any, ours: Any, theirs: Any, tolerance: float) -> None:
    x, y = standardised(load)
    ours, theirs = clone(ours).fit(x, y), theirs.fit(x, y)
    assert ours.coef_.shape == np.atleast_2d(theirs.coef_).shape  # RidgeClassifier's is flat in some versions
    assert ours.decision_function(x).shape == theirs.decision_function(x).shape
    assert np.abs(ours.decision_function(x) - theirs.decision_function(x)).max() < tolerance
    assert np.array_equal(ours.predict(x), theirs.predict(x))


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_probabilities_are_those_of_scikit_learn(load: Any) -> None:
    x, y = standardised(load)
    theirs = LogisticRegression(C=0.1, tol=1e-8).fit(x, y).predict_proba(x)
    assert np.abs(LogisticProbe(0.1).fit(x, y).predict_proba(x) - theirs).max() < 5e-3


@pytest.mark.parametrize("targets", [(), (1,), (3,)])
def test_the_regressor_is_that_of_scikit_learn(targets: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)), rng.normal(size=(50, *targets))
    ours, theirs = RidgeProbeRegressor(2.0).fit(x, y), Ridge(2.0).fit(x, y)
    assert ours.predict(x).shape == y.shape
    assert np.abs(ours.predict(x).ravel() - theirs.predict(x).ravel()).max() < 1e-5


def test_they_work_in_pipelines_and_searches() -> None:
    x, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), KNNProbe())
    search = GridSearchCV(pipeline, {"knnprobe__n_neighbors": [5, 20], "knnprobe__temperature": [0.07, 1.0]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.9


def test_too_many_neighbours_are_told() -> None:
    x, y = load_wine(return_X_y=True)
    with pytest.raises(ValueError, match="n_neighbors=300 must not be more than the rows, got n_samples=178"):
        KNNProbe(300).fit(x, y)


def test_only_the_logistic_probe_imports_torch() -> None:
    code = "import sys, diffssl.probe.estimators; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
