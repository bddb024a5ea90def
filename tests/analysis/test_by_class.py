"""The best setting of each class: chosen on one half of the test rows and measured on the other."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.by_class import ByClass, best_by_class, describe, write_csv
from diffssl.analysis.paired import paired_settings
from diffssl.analysis.test_set import TestSet
from numpy.typing import NDArray

Tested = Callable[..., dict[str, Any]]

LABELS = np.repeat(np.arange(200) % 4, 2)  # each class has as many rows on either half


def by_class(lines: list[dict[str, Any]], labels: NDArray[np.int64] = LABELS, classes: int = 4) -> ByClass:
    n = len(labels)
    ids = np.array([f"{row}" for row in range(n)], dtype=object)
    tested = TestSet("test", np.arange(n), ids, labels, [f"c{i}" for i in range(classes)])
    return best_by_class(paired_settings(lines), tested, np.random.default_rng(0))


def test_every_class_has_the_setting_that_knows_it(tested: Tested) -> None:
    lines = [
        tested(np.isin(LABELS, known), block, val) for block, val, known in ((7, 0.9, [0, 1]), (9, 0.5, [2]), (11, 0.4, []))
    ]
    found = by_class(lines)
    assert [(one.name, one.block, one.timestep) for one in found.classes] == [
        ("c0", "7", "10"),
        ("c1", "7", "10"),
        ("c2", "9", "10"),
        ("c3", "7", "10"),
    ]
    assert [one.accuracy for one in found.classes] == [1, 1, 1, 0]
    assert [one.difference for one in found.classes] == [0, 0, 1, 0]
    assert [(one.won, one.lost, one.rows) for one in found.classes] == [(0, 0, 50), (0, 0, 50), (50, 0, 50), (0, 0, 50)]
    assert found.gain == pytest.approx(0.25)
    assert found.left_out == 0
    assert found.gain_low == pytest.approx(0.25)  # the classes' accuracies are what they are in every resample
    text = describe(found)
    assert text[3].startswith("c2     linear on block 9, timestep 10, pool 1")
    assert "+0.2500 [+0.2500, +0.2500] above the best by val" in text[-1]


def test_choosing_by_class_among_equals_gains_nothing_where_it_is_measured(tested: Tested) -> None:
    rng = np.random.default_rng(2)
    found = by_class([tested(rng.random(400) < 0.6, block, 0.5) for block in range(1, 21)])
    luck = np.mean([one.chosen - one.best for one in found.classes])
    assert luck > 0.1
    assert found.gain_low is not None
    assert found.gain_high is not None
    assert found.gain_low < 0 < found.gain_high


def test_classes_without_rows_on_a_half_are_left_out_and_counted(tested: Tested) -> None:
    labels = LABELS.copy()
    labels[0] = 4  # on the half that is chosen on
    hits = labels == 0
    found = by_class([tested(hits, 1, 0.5), tested(hits, 2, 0.4)], labels, classes=6)
    assert ([one.name for one in found.classes], found.left_out) == (["c0", "c1", "c2", "c3"], 1)
    assert any("1 classes have no row on one half" in line for line in describe(found))


def test_many_classes_are_cut_in_the_table_and_whole_in_the_csv(tested: Tested, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(100), 4)
    hits = labels < 50
    found = by_class([tested(hits, 1, 0.5), tested(~hits, 2, 0.4)], labels, classes=100)
    assert "… and 60 more" in describe(found)
    write_csv(found, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["block"] for row in rows] == ["1"] * 50 + ["2"] * 50
    assert {row["difference"] for row in rows} == {"0.0", "1.0"}
