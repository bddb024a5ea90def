from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.cka import Similarity
from diffssl.analysis.page import Heat, Table, Words
from diffssl.analysis.store_sections import (
    cost_section,
    identity_section,
    run_section,
    similarity_section,
    statistics_section,
)
from diffssl.analysis.stored_rows import select
from diffssl.store import FeatureKey, FeatureStore
from diffssl.store.choice import Choice

Build = Callable[..., FeatureStore]

KEYS = [FeatureKey(1, 10, 1), FeatureKey(2, 10, 1), FeatureKey(2, 10, 4), FeatureKey(2, 10, 4, draw=1)]


@pytest.fixture
def store(make_store: Build) -> FeatureStore:
    return make_store({"train": 60, "test": 40}, KEYS)


def test_what_was_run_names_the_commands_that_run_it_again(store: FeatureStore) -> None:
    about: dict[str, Any] = {
        "feature_id": store.feature_id,
        "data_id": {split: store.data_id(split) for split in store.splits},
        "n_train": 60,
        "n_test": 40,
        "task": "classify",
        "seconds": 1.5,
        "draw": 0,
        "crop": 0,
    }
    ridge = [about | {"head": "ridge", "block": b, "timestep": 10, "pool": p} for b, p in ((1, 1), (2, 1), (2, 4))]
    knn = [{**ridge[0], "head": "knn"}]
    joined = [about | {"head": "ridge", "block": [1, 2], "timestep": [10, 10], "pool": [1, 4]}]
    section = run_section([store], {"a b.results": ridge + knn + joined}, "diffssl-analyze report", ["a note"])
    features, fits, note, _, commands = section.parts
    assert isinstance(features, Table)
    assert isinstance(fits, Table)
    assert isinstance(commands, Words)
    assert note == Words("a note", "note")
    assert [row[2:4] for row in features.rows] == [["test", "40 of 40"], ["train", "60 of 60"]]
    shared = [60, 40, "classify"]
    assert fits.rows == [["a b.results", "ridge", *shared, 4, 6.0], ["a b.results", "knn", *shared, 1, 1.5]]
    extract, *probes, report = commands.text.splitlines()
    assert extract.startswith("diffssl-extract")
    start = f"diffssl-probe --store {store.path} --head"
    assert probes == [
        f"{start} ridge --blocks 1@1,2@4 --timesteps 10 --concat --out 'a b.results'",
        f"{start} ridge --out 'a b.results'",
        f"{start} knn --blocks 1@1 --timesteps 10 --out 'a b.results'",
    ]
    assert report == "diffssl-analyze report"


def test_costs_are_those_of_the_store(store: FeatureStore) -> None:
    (table,) = cost_section(store).parts
    assert isinstance(table, Table)
    blocks = {block.number: block for block in store.header.blocks}
    assert [(row[0], row[3], row[4], row[6]) for row in table.rows] == [
        (number, pool, blocks[number].gflop, 2 * 8 * pool**2) for number, pool in ((1, 1), (2, 1), (2, 4))
    ]


@pytest.mark.parametrize(("settings", "digits"), [(4, 2), (30, None)])
def test_similarity_has_numbers_where_they_can_be_read(store: FeatureStore, settings: int, digits: int | None) -> None:
    selected = select([store], [Choice()], "train", None)
    several = type(selected)((selected.settings * 10)[:settings], selected.labels, ["a note"])
    values = np.full((settings, settings), 0.25)
    section = similarity_section(several, Similarity(values, values - 0.01, values + 0.02), "unbiased")
    note, heat = section.parts
    assert note == Words("a note")
    assert isinstance(heat, Heat)
    assert heat.digits == digits
    assert heat.hover[0][1].endswith(": 0.250 [0.240, 0.270]")
    assert (heat.low, heat.high) == (0, 1)


def test_statistics_without_a_value_anywhere_are_no_column() -> None:
    rows: list[dict[str, Any]] = [
        {"block": 1, "fisher_ratio": None, "noise_share": None},
        {"block": 2, "fisher_ratio": 0.5, "noise_share": None},
    ]
    (table,) = statistics_section(rows).parts
    assert isinstance(table, Table)
    assert table.header == ["block", "fisher ratio"]
    assert table.rows == [[1, None], [2, 0.5]]


def test_identity_has_all_that_decides_the_numbers(store: FeatureStore) -> None:
    line = {"versions": {"torch": "2", "numpy": "3"}}
    (table,) = identity_section([store], {"r": [line, line]}).parts
    assert isinstance(table, Table)
    found = {(row[1], row[2]) for row in table.rows}
    assert ("feature_id", store.feature_id) in found
    assert ("data_id of train", store.data_id("train")) in found
    assert ("seed", str(store.header.identity.fields["seed"])) in found
    assert [row for row in table.rows if row[0] == "r"] == [["r", "fitted with", "torch 2, numpy 3"]]
