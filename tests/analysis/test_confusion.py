"""Confusions: what the matrix counts, and results and labels that do not belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.confusion import confusion, most_confused, predicted_classes
from diffssl.analysis.table import NoResults
from diffssl.analysis.test_set import find_test_set
from diffssl.probe import ProbeSpec
from diffssl.probe.predictions import NO_CLASS, pack_hits, pack_missed
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

Line = Callable[..., dict[str, Any]]

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 1, 1, 1, 0, 2, 0, NO_CLASS])


@pytest.fixture
def kept(line: Line) -> dict[str, Any]:
    hits = PREDICTED == LABELS
    more = {"n_test": 8, "classes": 3, "test_hits": pack_hits(hits), "test_missed": pack_missed(PREDICTED[~hits], 3)}
    return line(1, 10, 0.5, 0.5, **more)


def test_hits_are_on_the_diagonal_and_rows_without_a_prediction_nowhere(kept: dict[str, Any]) -> None:
    assert predicted_classes(kept, LABELS).tolist() == PREDICTED.tolist()
    found = confusion(kept, LABELS)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 2, 0], [1, 1, 0], [1, 0, 1]]


def test_pairs_are_those_of_most_rows_first(kept: dict[str, Any]) -> None:
    found = most_confused(kept, LABELS)
    assert [(one.label, one.predicted, one.rows.tolist()) for one in found] == [(0, 1, [1, 2]), (1, 0, [4]), (2, 0, [6])]
    assert [(one.label, one.predicted) for one in most_confused(kept, LABELS, 1)] == [(0, 1)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:-1], r"\(8,\)"),
        (np.array([0, 1, 0, 1, 1, 2, 2, 2]), "not those of the test rows"),
        (LABELS + 1, "not those of the test rows"),
        (LABELS - 1, "not those of the test rows"),
    ],
    ids=["fewer", "label that was predicted", "too high", "negative"],
)
def test_labels_of_other_rows_are_refused(kept: dict[str, Any], labels: NDArray[np.int64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(kept, labels)


def test_a_line_of_an_older_version_says_to_probe_again(kept: dict[str, Any]) -> None:
    del kept["test_missed"]
    with pytest.raises(NoResults, match="run diffssl-probe again"):
        confusion(kept, LABELS)


def test_confusions_of_a_fit_are_those_of_its_predictions(make_store: Callable[..., FeatureStore]) -> None:
    store = make_store({"train": 100, "test": 60}, [FeatureKey(1, 10, 1)])
    spec = ProbeSpec(Path(store.path), ["linear"], steps=5, device="cpu", save_probabilities=True)
    (result,) = probe(spec, lambda _: None)
    tested = find_test_set(result, store)
    predicted = np.load(spec.results / "probabilities" / f"{result['key']}.npy").argmax(axis=1)
    expected = confusion_matrix(tested.labels, predicted, labels=range(result["classes"]))
    assert confusion(result, tested.labels).tolist() == expected.tolist()
    assert np.trace(expected) < 60
