"""Accuracies against their formulas written out, intervals against simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from diffssl.probe import classification_metrics, hits
from diffssl.probe.metrics import log_probabilities, predictions
from diffssl.probe.predictions import NO_CLASS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score, log_loss

NAMES = {"top1", "top5", "mean_per_class", "macro_f1"}
OF_LOG_ODDS = {"nll", "ece"}


@st.composite
def scored(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of few distinct values, so that ties are common, and labels that leave classes out."""
    n, classes = draw(st.integers(1, 30)), draw(st.integers(2, 9))
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])
    scores = draw(st.lists(st.lists(values, min_size=classes, max_size=classes), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return np.array(scores), np.array(labels)


def written_out_hit(scores: NDArray[np.float64], label: int, k: int) -> bool:
    """Sort the classes by score, the lower number first among equals, and look whether the label is among the first k."""
    ranked = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    return label in ranked[:k]


@given(scored(), st.integers(1, 6))
def test_hits_are_those_of_sorting(data: tuple[NDArray[np.float64], NDArray[np.int64]], k: int) -> None:
    scores, labels = data
    expected = [written_out_hit(row, int(label), k) for row, label in zip(scores, labels, strict=True)]
    assert hits(scores, labels, k).tolist() == expected


@given(scored())
def test_the_first_hit_is_argmax(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, labels = data
    assert hits(scores, labels, 1).tolist() == (scores.argmax(axis=1) == labels).tolist()
    assert hits(scores, labels, 1).tolist() == (predictions(scores) == labels).tolist()


@settings(max_examples=60)
@given(scored())
def test_metrics_are_their_formulas(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, labels = data
    first = [written_out_hit(row, int(label), 1) for row, label in zip(scores, labels, strict=True)]
    fifth = [written_out_hit(row, int(label), 5) for row, label in zip(scores, labels, strict=True)]
    by_class = [
        np.mean([hit for hit, label in zip(first, labels, strict=True) if label == c]) for c in sorted(set(labels.tolist()))
    ]
    result = classification_metrics(scores, labels, np.random.default_rng(0))
    assert set(result) == NAMES | {f"{name}_{end}" for name in NAMES for end in ("low", "high")}
    assert result["top1"] == pytest.approx(sum(first) / len(labels), abs=1e-12)
    assert result["top5"] == pytest.approx(sum(fifth) / len(labels), abs=1e-12)
    assert result["mean_per_class"] == pytest.approx(float(np.mean(by_class)), abs=1e-12)
    f1 = f1_score(labels, scores.argmax(axis=1), average="macro", zero_division=0)
    assert result["macro_f1"] == pytest.approx(f1, abs=1e-12)
    for name in NAMES:
        assert 0 <= result[f"{name}_low"] <= result[f"{name}_high"] <= 1


@pytest.mark.parametrize("k", [1, 5, 9, 20])
def test_a_score_that_is_not_a_number_is_no_hit(k: int) -> None:
    """Or a head that diverged would be the best of all."""
    labels = np.arange(9)
    assert not hits(np.full((9, 9), np.nan), labels, k).any()
    assert (predictions(np.full((9, 9), np.nan)) == NO_CLASS).all()
    scores = np.eye(9)
    scores[3, 3] = np.nan
    assert hits(scores, labels, k).tolist() == [label != 3 for label in labels]
    result = classification_metrics(np.full((9, 9), np.nan), labels, np.random.default_rng(0))
    assert all(value == 0 for value in result.values())


def test_fewer_than_five_classes_are_all_among_the_first_five() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 3))
    result = classification_metrics(scores, np.arange(50) % 3, np.random.default_rng(0))
    assert (result["top5"], result["top5_low"], result["top5_high"]) == (1, 1, 1)
    assert 0 < result["top1"] < 1


def test_rare_classes_weigh_as_much_as_common_ones() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    scores = np.eye(2)[np.zeros(100, dtype=int)]  # always the first class
    result = classification_metrics(scores, labels, np.random.default_rng(0))
    assert (result["top1"], result["mean_per_class"]) == (0.9, 0.5)


def test_perfect_scores_have_an_interval_of_no_width() -> None:
    labels = np.arange(40) % 8
    result = classification_metrics(np.eye(8)[labels], labels, np.random.default_rng(0))
    assert all(value == 1 for value in result.values())


def test_the_same_generator_gives_the_same_interval() -> None:
    scores = np.random.default_rng(0).normal(size=(97, 7))
    labels = np.arange(97) % 7
    one, same, other = (classification_metrics(scores, labels, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def simulated(rng: np.random.Generator, n: int, accuracy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of a classifier with a known accuracy for each class."""
    labels = rng.integers(len(accuracy), size=n)
    right = rng.random(n) < accuracy[labels]
    predicted = np.where(right, labels, (labels + 1) % len(accuracy))
    return np.eye(len(accuracy))[predicted], labels


def test_the_interval_covers_the_true_accuracy_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    accuracy = np.array([0.9, 0.7, 0.5])
    covered = {"top1": 0, "mean_per_class": 0}
    for _ in range(250):
        result = classification_metrics(*simulated(rng, 200, accuracy), rng)
        for name in covered:
            covered[name] += result[f"{name}_low"] <= accuracy.mean() <= result[f"{name}_high"]
    for times in covered.values():
        assert 0.91 <= times / 250 <= 0.985


def test_the_interval_is_that_of_resampling_rows() -> None:
    rng = np.random.default_rng(0)
    n, classes = 250, 8
    labels = rng.integers(classes, size=n)
    scores = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    result = classification_metrics(scores, labels, rng)
    first, fifth = hits(scores, labels, 1), hits(scores, labels, 5)
    drawn: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(2000):
        rows = rng.integers(n, size=n)
        own = labels[rows]
        drawn["top1"].append(first[rows].mean())
        drawn["top5"].append(fifth[rows].mean())
        predicted = scores[rows].argmax(axis=1)
        drawn["macro_f1"].append(
            float(
                np.mean([2 * first[rows][own == c].sum() / ((own == c).sum() + (predicted == c).sum()) for c in range(classes)])
            )
        )
        drawn["mean_per_class"].append(float(np.mean([first[rows][own == c].mean() for c in np.unique(own)])))
    for name, values in drawn.items():
        # The 2.5 % quantile of 2000 normal draws has a deviation of 0.06 sigma, and accuracies are multiples of 1 / n.
        tolerance = 0.25 * float(np.std(values)) + 1 / n
        low, high = np.quantile(values, [0.025, 0.975])
        assert result[f"{name}_low"] == pytest.approx(low, abs=tolerance)
        assert result[f"{name}_high"] == pytest.approx(high, abs=tolerance)
        assert high - low > 3 * tolerance  # or the comparison would show nothing


def calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Guo et al. (2017), equations 2 to 5, written out."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            total += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return total


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("classes", [2, 7])
def test_likelihood_and_calibration_are_their_formulas(classes: int, spread: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=300)
    scores = spread * rng.normal(size=(300, classes))
    result = classification_metrics(scores, labels, rng, log_odds=True)
    assert set(result) == {f"{name}{end}" for name in NAMES | OF_LOG_ODDS for end in ("", "_low", "_high")} | {"nll_not_finite"}
    probabilities = softmax(scores)
    expected = log_loss(labels, probabilities) if spread < 10 else -np.log(probabilities[np.arange(300), labels]).mean()
    assert result["nll"] == pytest.approx(expected)
    assert result["ece"] == pytest.approx(calibration_error(probabilities, labels))
    assert result["nll_low"] < result["nll"] < result["nll_high"]
    assert result["ece_low"] < result["ece_high"]
    assert result["nll_not_finite"] == 0
    np.testing.assert_allclose(np.exp(log_probabilities(scores)), probabilities, atol=1e-12)


def test_intervals_of_likelihood_and_calibration_are_those_of_resampling_rows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=200)
    scores = 3 * rng.normal(size=(200, 4)) + np.eye(4)[labels]
    result = classification_metrics(scores, labels, rng, log_odds=True)
    drawn: dict[str, list[float]] = {"nll": [], "ece": []}
    for _ in range(2000):
        rows = rng.integers(200, size=200)
        drawn["nll"].append(-log_probabilities(scores[rows])[np.arange(200), labels[rows]].mean())
        drawn["ece"].append(calibration_error(softmax(scores[rows]), labels[rows]))
    for name, values in drawn.items():
        for end, quantile in (("low", 0.025), ("high", 0.975)):
            tolerance = 0.25 * float(np.std(values))
            assert result[f"{name}_{end}"] == pytest.approx(np.quantile(values, quantile), abs=tolerance)


def test_scores_that_are_no_log_odds_have_no_likelihood() -> None:
    result = classification_metrics(np.eye(3), np.arange(3), np.random.default_rng(0))
    assert not {name for name in result if name.startswith(("nll", "ece"))}


def test_a_class_never_trained_on_makes_the_likelihood_infinite_and_is_counted() -> None:
    scores = np.random.default_rng(0).normal(size=(60, 4))
    scores[:, 2] = -np.inf
    labels = np.arange(60) % 4
    result = classification_metrics(scores, labels, np.random.default_rng(0), log_odds=True)
    assert (result["nll"], result["nll_low"], result["nll_high"], result["nll_not_finite"]) == (None, None, None, 15)
    assert result["ece"] == pytest.approx(calibration_error(softmax(scores), labels))
    json.dumps(result, allow_nan=False)
    without = classification_metrics(scores[labels != 2], labels[labels != 2], np.random.default_rng(0), log_odds=True)
    kept = scores[labels != 2][:, [0, 1, 3]]
    assert without["nll"] == pytest.approx(log_loss(np.searchsorted([0, 1, 3], labels[labels != 2]), softmax(kept)))


def test_a_head_that_diverged_has_neither_likelihood_nor_calibration() -> None:
    scores = np.eye(5)
    scores[0, 0], scores[1, 1] = np.nan, np.inf
    result = classification_metrics(scores, np.arange(5), np.random.default_rng(0), log_odds=True)
    assert (result["nll"], result["ece"], result["ece_high"], result["nll_not_finite"]) == (None, None, None, 2)
    assert result["top1"] == 0.8


def test_many_classes_and_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(9, size=100)
    scores = rng.normal(size=(100, 9)).astype(np.float32)
    whole = classification_metrics(scores, labels, np.random.default_rng(1), log_odds=True)
    monkeypatch.setattr("diffssl.probe.metrics._BLOCK_VALUES", 64)
    assert classification_metrics(scores, labels, np.random.default_rng(1), log_odds=True) == whole
