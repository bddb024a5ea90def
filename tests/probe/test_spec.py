"""ProbeSpec: what is refused, where results go, what decides a fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from diffssl.probe import C_GRID, HEADS, ProbeSpec
from diffssl.probe.spec import LEARNING_RATES, STEPS

STORE = Path("a/feats.zarr")


def test_the_grid_of_c_is_one_value_a_decade() -> None:
    assert list(C_GRID) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5]


def test_every_known_head_is_accepted() -> None:
    assert set(HEADS) >= {"linear", "mlp", "logreg"}
    assert ProbeSpec(STORE, HEADS).heads == HEADS


def test_an_unknown_head_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match=r"'forest'.*linear, mlp, logreg"):
        ProbeSpec(STORE, ["linear", "forest"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": []},
        {"seeds": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"limit": 0},
        {"limit": -5},
        {"learning_rates": []},
        {"learning_rates": [1e-3, 0.0]},
        {"weight_decays": [0.0, -0.1]},
        {"weight_decays": []},
        {"hidden": [64, 0]},
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|must be positive|must not be negative|unknown heads"):
        ProbeSpec(**{"store": STORE, "heads": ["linear"], **wrong})


def test_an_error_names_the_option_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"--batch-size must be at least 1, got -3"):
        ProbeSpec(STORE, ["linear"], batch_size=-3)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ProbeSpec(STORE, ["linear"]).steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("store", "folder"),
    [
        ("feats.zarr", "feats.results"),
        ("a/feats.zarr", "a/feats.results"),
        ("feats", "feats.results"),
        ("x.y.zarr", "x.y.results"),
        ("s3://bucket/deep/feats.zarr", "feats.results"),
    ],
)
def test_results_lie_beside_the_store(store: str, folder: str) -> None:
    assert ProbeSpec(store, ["linear"]).results == Path(folder)
    if "://" not in store:
        assert ProbeSpec(Path(store), ["linear"]).results == Path(folder)


def test_results_lie_where_they_are_wanted() -> None:
    assert ProbeSpec(STORE, ["linear"], out=Path("elsewhere")).results == Path("elsewhere")


@pytest.mark.parametrize(
    ("change", "heads"),
    [
        ({"steps": 17}, ["linear", "mlp"]),
        ({"batch_size": 17}, ["linear", "mlp"]),
        ({"weight_decays": [0.5]}, ["linear", "mlp"]),
        ({"learning_rates": [1e-2]}, ["linear", "mlp"]),
        ({"hidden": [8, 8]}, ["mlp"]),
        ({"device": "cpu"}, []),
        ({"seeds": 9}, []),
        ({"blocks": {1: set()}}, []),
        ({"out": Path("elsewhere")}, []),
    ],
    ids=str,
)
def test_options_of_a_head_are_what_changes_its_fits_and_nothing_else(change: dict[str, Any], heads: list[str]) -> None:
    before, after = ProbeSpec(STORE, HEADS), ProbeSpec(STORE, HEADS, **change)
    assert [head for head in HEADS if before.head_options(head) != after.head_options(head)] == heads


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_head_has_rates_and_steps_of_its_own_unless_told(head: str) -> None:
    options = ProbeSpec(STORE, [head]).head_options(head)
    assert options["learning_rates"] == list(LEARNING_RATES[head])
    assert options["steps"] == STEPS[head]
    options = ProbeSpec(STORE, [head], learning_rates=(0.5,), steps=7).head_options(head)
    assert (options["learning_rates"], options["steps"]) == ([0.5], 7)


@pytest.mark.parametrize("head", HEADS)
def test_options_of_a_head_are_json(head: str) -> None:
    options = ProbeSpec(STORE, [head]).head_options(head)
    assert json.loads(json.dumps(options)) == options
