"""Mean average precision, R2 and RMSE against scikit-learn, with what is unknown, constant or not a number."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from diffssl.probe.bootstrap import RESAMPLES, resample_counts
from diffssl.probe.errors import TooFewRows
from diffssl.probe.target_metrics import _add_up, multilabel_metrics, regression_metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, r2_score, root_mean_squared_error


@st.composite
def labelled(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores with many ties, and labels some of which are all or never there."""
    n, labels = draw(st.integers(2, 30)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    scores = rng.integers(draw(st.integers(1, 12)), size=(n, labels)).astype(float)
    targets = (rng.random((n, labels)) < rng.choice([0, 0.1, 0.5, 1], size=labels)).astype(np.int64)
    targets[0, 0] = 1
    return scores, targets


@settings(max_examples=60, deadline=None)
@given(labelled())
def test_average_precision_is_that_of_scikit_learn(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, targets = data
    expected = [average_precision_score(y, s) for y, s in zip(targets.T, scores.T, strict=True) if y.any()]
    result = multilabel_metrics(scores, targets, np.random.default_rng(0))
    assert result["map"] == pytest.approx(np.mean(expected))
    assert result["map_labels"] == len(expected)
    assert 0 <= result["map_low"] <= result["map_high"] <= 1


def test_the_interval_of_map_is_that_of_resampling_rows() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((150, 3)) < 0.3).astype(int)
    scores = np.round(rng.normal(size=(150, 3)) + targets, 1)
    result = multilabel_metrics(scores, targets, rng)
    drawn = []
    for _ in range(1000):
        rows = rng.integers(150, size=150)
        drawn.append(average_precision_score(targets[rows], scores[rows], average="macro"))
    for end, quantile in (("low", 0.025), ("high", 0.975)):
        assert result[f"map_{end}"] == pytest.approx(np.quantile(drawn, quantile), abs=0.3 * float(np.std(drawn)))


def written_out(scores: NDArray[np.float64], targets: NDArray[Any], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(b,) mean average precision by its definition, of (n, b) counts of the rows."""
    each = []
    for s, y in zip(scores.T, targets.T, strict=True):
        above = (s[:, None] >= np.unique(s)[::-1]).T.astype(float)  # of each threshold, descending
        shown, found = above @ counts, above @ (counts * (y > 0)[:, None])
        gained = np.diff(found, axis=0, prepend=0)
        with np.errstate(invalid="ignore"):
            each.append(np.nansum(gained * (found / shown), axis=0) / found[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resamples without any positive
        mean: NDArray[np.float64] = np.nanmean(each, axis=0)
    return mean


@settings(max_examples=25, deadline=None)
@given(labelled())
def test_intervals_of_map_are_those_of_the_definition(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, targets = data
    result = multilabel_metrics(scores, targets, np.random.default_rng(1))
    counts = np.hstack(list(resample_counts(len(scores), RESAMPLES, np.random.default_rng(1))))
    drawn = written_out(scores, targets, counts)
    low, high = np.quantile(drawn[~np.isnan(drawn)], [0.025, 0.975])
    assert result["map"] == pytest.approx(written_out(scores, targets, np.ones((len(scores), 1)))[0], abs=1e-12)
    assert (result["map_low"], result["map_high"]) == pytest.approx((low, high), abs=1e-12)


def test_many_rows_are_counted_without_overflow() -> None:
    n, rng = 32_768, np.random.default_rng(0)  # one more than 16 bits hold
    targets = (rng.random((n, 1)) < 0.002).astype(int)
    scores = -rng.random((n, 1))
    scores[np.flatnonzero(targets)[:3]] = -2.0  # below all others
    result = multilabel_metrics(scores, targets, rng)
    assert result["map"] == pytest.approx(average_precision_score(targets, scores), abs=1e-12)
    assert 0 < result["map_low"] < result["map_high"] < 0.02


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 32, 100])
def test_running_sums_are_those_of_numpy(rows: int) -> None:
    values = np.random.default_rng(rows).integers(100, size=(rows, 7)).astype(np.int16)
    expected = np.cumsum(values, axis=0, dtype=np.int16)
    _add_up(values)
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("unknown", [-1.0, np.nan])
def test_unknown_labels_are_left_out_for_that_label_only(unknown: float) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((100, 2)) < 0.4).astype(float)
    scores = rng.normal(size=(100, 2))
    hidden = targets.copy()
    hidden[:30, 1] = unknown
    expected = [average_precision_score(targets[:, 0], scores[:, 0]), average_precision_score(targets[30:, 1], scores[30:, 1])]
    assert multilabel_metrics(scores, hidden, rng)["map"] == pytest.approx(np.mean(expected))


def test_a_score_that_is_not_a_number_ranks_last() -> None:
    targets = np.array([[1], [1], [0], [0]])
    scores = np.array([[2.0], [np.nan], [1.0], [0.0]])
    assert multilabel_metrics(scores, targets, np.random.default_rng(0))["map"] == pytest.approx((1 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), r"\(3, 2\) and \(3, 1\)"),
        (np.zeros(3), np.zeros(3), r"\(3,\)"),
        (np.zeros((3, 1)), np.array([[0], [1], [2]]), r"0 or 1, got \[2\]"),
    ],
    ids=["shapes", "no columns", "a third value"],
)
def test_wrong_labels_are_refused(scores: NDArray[np.float64], targets: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(scores, targets, np.random.default_rng(0))


def test_labels_without_any_positive_are_told() -> None:
    with pytest.raises(TooFewRows, match="none of the 2 labels has a positive among the 5 rows"):
        multilabel_metrics(np.zeros((5, 2)), np.zeros((5, 2)), np.random.default_rng(0))


def regression_data() -> tuple[NDArray[np.float64], NDArray[np.float64], np.random.Generator]:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(200, 3)) * [1, 10, 0.1] + [0, 1e6, -5]
    return targets + rng.normal(size=(200, 3)) * [0.5, 1, 0.1], targets, rng


def test_r2_and_rmse_are_those_of_scikit_learn() -> None:
    predictions, targets, rng = regression_data()
    result = regression_metrics(predictions, targets, rng)
    assert result["r2"] == pytest.approx(r2_score(targets, predictions))
    assert result["r2_targets"] == pytest.approx(r2_score(targets, predictions, multioutput="raw_values"))
    assert result["rmse_targets"] == pytest.approx(root_mean_squared_error(targets, predictions, multioutput="raw_values"))
    assert result["rmse"] == pytest.approx(np.sqrt(((predictions - targets) ** 2).mean()))
    json.dumps(result, allow_nan=False)


def test_intervals_of_r2_are_those_of_resampling_rows() -> None:
    predictions, targets, rng = regression_data()
    result = regression_metrics(predictions, targets, rng)
    resamples = [rng.integers(200, size=200) for _ in range(1000)]
    drawn = np.array([r2_score(targets[rows], predictions[rows], multioutput="raw_values") for rows in resamples])
    for end, quantile in (("low", 0.025), ("high", 0.975)):
        found = [*result[f"r2_targets_{end}"], result[f"r2_{end}"]]
        for value, values in zip(found, [*drawn.T, drawn.mean(axis=1)], strict=True):
            assert value == pytest.approx(np.quantile(values, quantile), abs=0.3 * float(values.std()))


def test_a_constant_target_has_no_r2_and_is_left_out_of_the_mean() -> None:
    predictions, targets, rng = regression_data()
    targets[:, 1] = 0.1
    result = regression_metrics(predictions, targets, rng)
    assert result["r2_targets"][1] is None
    assert result["r2_targets_low"][1] is None
    assert result["r2"] == pytest.approx(r2_score(targets[:, [0, 2]], predictions[:, [0, 2]]))
    assert result["rmse_targets"][1] is not None
    assert regression_metrics(predictions[:, [1]], targets[:, [1]], rng)["r2"] is None


def test_unknown_targets_are_left_out_for_that_target_only() -> None:
    predictions, targets, rng = regression_data()
    hidden = targets.copy()
    hidden[:50, 2] = np.nan
    result = regression_metrics(predictions, hidden, rng)
    assert result["r2_targets"][2] == pytest.approx(r2_score(targets[50:, 2], predictions[50:, 2]))
    assert result["r2_targets"][0] == pytest.approx(r2_score(targets[:, 0], predictions[:, 0]))
    hidden[:, 2] = np.nan
    with pytest.raises(TooFewRows, match="target 2 has no value in any of the 200 rows"):
        regression_metrics(predictions, hidden, rng)


def test_predictions_that_are_not_finite_have_no_value() -> None:
    predictions, targets, rng = regression_data()
    predictions[3, 0] = np.inf
    result = regression_metrics(predictions, targets, rng)
    assert (result["r2"], result["rmse"], result["r2_high"]) == (None, None, None)
    assert result["r2_targets"][0] is None
    assert result["r2_targets"][1] == pytest.approx(r2_score(targets[:, 1], predictions[:, 1]))
