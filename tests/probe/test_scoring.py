"""The number that a fit is chosen by, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffssl.probe.scoring import score, score_name, score_title
from diffssl.probe.targets import TASKS
from sklearn.metrics import average_precision_score, r2_score


def test_every_task_has_a_name_and_a_title() -> None:
    assert [score_name(task) for task in TASKS] == ["top1", "map", "r2"]
    assert [score_title(task) for task in TASKS] == ["top-1", "mAP", "R2"]


def test_classes_are_scored_by_accuracy() -> None:
    outputs = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [np.nan, 1.0]])
    assert score("classify", outputs, np.array([0, 1, 1, 1])) == 0.5  # not a number is no hit


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_others_are_scored_by_the_mean_over_what_is_known(task: str) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(50, 3)), (rng.random((50, 3)) < 0.4).astype(np.float64)
    known = rng.random((50, 3)) < 0.7
    measure = average_precision_score if task == "multilabel" else r2_score
    expected = [measure(targets[own, k], outputs[own, k]) for k, own in enumerate(known.T)]
    targets[~known] = np.nan
    assert score(task, outputs, targets) == pytest.approx(np.mean(expected), rel=1e-12)


def test_labels_without_a_positive_do_not_count() -> None:
    outputs, targets = np.random.default_rng(0).normal(size=(20, 2)), np.zeros((20, 2))
    targets[::3, 0] = 1
    assert score("multilabel", outputs, targets) == average_precision_score(targets[:, 0], outputs[:, 0])


@pytest.mark.parametrize("task", ["multilabel", "regress"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_the_worst(task: str, bad: float) -> None:
    outputs = np.zeros((4, 1))
    outputs[2] = bad
    assert score(task, outputs, np.array([[0.0], [1.0], [1.0], [0.0]])) == -math.inf
