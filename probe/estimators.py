"""The streamed heads as scikit-learn estimators, for arrays in memory: pipelines, grid searches, notebooks.

They take features as they come: put ``StandardScaler`` before them, as the protocol does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .knn import knn_scores
from .linear import LinearFit, Stream
from .ridge import fit_ridge


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Validation, and classes as the numbers that the heads know."""

    classes_: NDArray[Any]

    def _validated(self, X: Any, y: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs two classes at least, got {len(self.classes_)} class")
        return X, numbers.astype(np.int64)

    def _features(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        features: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        return features


class _LinearClassifier(_Classifier):
    """A classifier whose state is ``coef_`` (K, D) and ``intercept_`` (K,); one row for two classes, as in scikit-learn."""

    def _keep(self, fit: LinearFit) -> Self:
        weights, intercept = fit.weights, fit.intercept
        if len(self.classes_) == 2:
            weights, intercept = self._of_two(weights), self._of_two(intercept[None])[0]
        self.coef_, self.intercept_ = weights.T, intercept
        return self

    def _of_two(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The decision for the second class, from those for both."""
        return values[:, 1:]

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """(n_samples, n_classes) scores; (n_samples,) for two classes, positive for the second."""
        scores: NDArray[np.float64] = self._features(X) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """(n_samples,) classes."""
        scores = self.decision_function(X)
        predicted: NDArray[Any] = self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
        return predicted


class RidgeProbeClassifier(_LinearClassifier):
    """Ridge regression to +1 and -1, as ``sklearn.linear_model.RidgeClassifier``.

    Args:
        alpha: factor of the squared weights.

    Attributes:
        classes_: (n_classes,).
        coef_: (n_classes, n_features); one row for two classes.
        intercept_: (n_classes,).
        n_features_in_: number of features.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to (n_samples, n_features) and (n_samples,) classes."""
        X, numbers = self._validated(X, y)
        return self._keep(fit_ridge(_pieces(X, numbers), [self.alpha], len(self.classes_))[0])


class RidgeProbeRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge regression, as ``sklearn.linear_model.Ridge``.

    Args:
        alpha: factor of the squared weights.

    Attributes:
        coef_: (n_targets, n_features), or (n_features,) for targets of one axis.
        intercept_: (n_targets,), or one number.
        n_features_in_: number of features.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to (n_samples, n_features) and (n_samples,) or (n_samples, n_targets) numbers."""
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True, y_numeric=True)
        (fit,) = fit_ridge(_pieces(X, y.reshape(len(y), -1)), [self.alpha])
        self.coef_, self.intercept_ = fit.weights.T, fit.intercept
        if y.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0]
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """(n_samples,) or (n_samples, n_targets) numbers."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        predicted: NDArray[np.float64] = X @ self.coef_.T + self.intercept_
        return predicted


class KNNProbe(_Classifier):
    """Nearest neighbours by cosine, weighted by exp(similarity / temperature), as DINO evaluates features.

    Args:
        n_neighbors: number of neighbours.
        temperature: the smaller, the more the nearest count.

    Attributes:
        classes_: (n_classes,).
        n_features_in_: number of features.
    """

    def __init__(self, n_neighbors: int = 20, temperature: float = 0.07) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature

    def fit(self, X: Any, y: Any) -> Self:
        """Keep (n_samples, n_features) and (n_samples,) classes."""
        X, numbers = self._validated(X, y)
        if self.n_neighbors > len(X):
            raise ValueError(f"n_neighbors={self.n_neighbors} must not be more than the rows, got n_samples={len(X)}")
        self._train = X, numbers
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """(n_samples, n_classes) normalised votes."""
        X = self._features(X)
        test = _pieces(X, np.zeros(len(X), dtype=np.int64))
        train = _pieces(*self._train)
        scores = knn_scores(train, test, len(self.classes_), [self.n_neighbors], [self.temperature])
        votes: NDArray[np.float32] = scores[0]
        return votes

    def predict(self, X: Any) -> NDArray[Any]:
        """(n_samples,) classes."""
        nearest = self.predict_proba(X).argmax(axis=1)  # refuses before a fit, when there are no classes either
        predicted: NDArray[Any] = self.classes_[nearest]
        return predicted


class LogisticProbe(_LinearClassifier):
    """Logistic regression with scikit-learn's objective, fitted by torch on any device.

    Args:
        C: inverse strength of the L2 penalty.
        device: as torch names it.
        tol: stop where the predicted decrease is below this part of the objective.
        max_iter: passes over the rows at most.

    Attributes:
        classes_: (n_classes,).
        coef_: (n_classes, n_features); one row for two classes.
        intercept_: (n_classes,).
        n_iter_: passes over the rows.
        converged_: whether the tolerance was reached.
        n_features_in_: number of features.
    """

    def __init__(self, C: float = 1.0, device: str = "cpu", tol: float = 5e-7, max_iter: int = 1000) -> None:
        self.C = C
        self.device = device
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to (n_samples, n_features) and (n_samples,) classes."""
        from .logistic import fit_path  # imports torch, which the others can do without

        X, numbers = self._validated(X, y)
        options: dict[str, Any] = {"device": self.device, "tolerance": self.tol, "max_passes": self.max_iter}
        (fit,) = fit_path(_pieces(X, numbers), len(self.classes_), [self.C], **options)
        self.n_iter_, self.converged_ = fit.passes, fit.converged
        return self._keep(fit)

    def _of_two(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values[:, 1:] - values[:, :1]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(n_samples, n_classes) probabilities."""
        scores = self.decision_function(X)
        logits = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
        return probabilities


def _pieces(X: NDArray[np.float32], y: NDArray[Any]) -> Stream:
    whole: Sequence[tuple[NDArray[np.float32], NDArray[Any]]] = [(X, y)]
    return lambda: whole
