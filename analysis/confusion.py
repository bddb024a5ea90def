"""What a fit takes for what: confusions of classes, from one result line and the labels of its test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probe.predictions import NO_CLASS, unpack_hits, unpack_missed
from .table import NoResults


@dataclass(frozen=True)
class ConfusedPair:
    """One class that is taken for another.

    Attributes:
        label: number of the class.
        predicted: number of the class that it is taken for.
        rows: (m,) which of the test rows, ascending; see ``test_set.find_test_set`` for their ids.
    """

    label: int
    predicted: int
    rows: NDArray[np.int64]


def predicted_classes(line: Mapping[str, Any], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """(n,) class that a fit predicts for each test row, ``NO_CLASS`` where it has none (its scores are not numbers).

    Args:
        line: as probing writes it.
        labels: (n,) class numbers of its test rows, in order, as of ``test_set.find_test_set``.

    Raises:
        ValueError: the labels are not of these rows.
        NoResults: the line has no predictions.
        ProbeError: they are damaged.
    """
    if "test_missed" not in line:
        raise NoResults(
            f"{line['head']} on {line['specification']['setting']} has no predictions: it was written by an older version, "
            "or its labels are not classes; run diffssl-probe again into a new --out"
        )
    if labels.shape != (line["n_test"],):
        raise ValueError(f"labels are ({line['n_test']},), one a test row, got {labels.shape}")
    hit = unpack_hits(line["test_hits"], len(labels))
    predicted = labels.astype(np.int64)
    predicted[~hit] = unpack_missed(line["test_missed"], int((~hit).sum()), line["classes"])
    if (predicted == labels)[~hit].any() or labels.min() < 0 or labels.max() >= line["classes"]:
        raise ValueError("labels are not those of the test rows: a row that was missed has the label that was predicted for it")
    return predicted


def confusion(line: Mapping[str, Any], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """(C, C) number of test rows of class i that are taken for class j, hits on the diagonal.

    A row of the matrix sums to the test rows of the class, less those without a prediction. Arguments and errors are those
    of :func:`predicted_classes`.
    """
    predicted, classes = predicted_classes(line, labels), line["classes"]
    there = predicted != NO_CLASS
    counts = np.bincount(labels[there].astype(np.int64) * classes + predicted[there], minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.int64)


def most_confused(line: Mapping[str, Any], labels: NDArray[np.integer], count: int = 10) -> list[ConfusedPair]:
    """The pairs (label, predicted) with most test rows, at most ``count``; of equals, those of lower numbers first.

    Arguments and errors are otherwise those of :func:`predicted_classes`.
    """
    predicted, classes = predicted_classes(line, labels), line["classes"]
    wrong = np.flatnonzero((predicted != labels) & (predicted != NO_CLASS))
    pairs = labels[wrong].astype(np.int64) * classes + predicted[wrong]
    found, numbers = np.unique(pairs, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:count]
    return [ConfusedPair(pair // classes, pair % classes, wrong[pairs == pair]) for pair in found[order].tolist()]
