"""ProbeSpec: what is refused, where results go, what decides a fit."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from diffssl.probe import C_GRID, HEADS, ProbeSpec
from diffssl.probe.presets import load_preset
from diffssl.probe.spec import has_randomness

STORE = Path("a/feats.zarr")
TORCH = ["linear", "mlp", "cnn", "attention", "attnpool", "difformer"]


def test_the_grid_of_c_is_one_value_a_decade() -> None:
    assert list(C_GRID) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5]


def test_every_known_head_is_accepted() -> None:
    assert set(HEADS) >= {"linear", "mlp", "logreg", "cnn", "attention", "attnpool", "difformer", "ridge", "knn"}
    assert ProbeSpec(STORE, HEADS).heads == HEADS


def test_an_unknown_head_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match=r"'forest'.*linear, mlp, .*logreg, .*FILE\.py:FUNCTION"):
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
        {"heads": ["mlp"], "hidden": [64, 0]},
        {"heads": ["mlp"], "hidden": []},
        {"heads": ["cnn"], "width": 0},
        {"heads": ["attention"], "depth": 0},
        {"heads": ["logreg"], "C": [0.0, 1.0]},
        {"heads": ["logreg"], "C": []},
        {"repeats": 0},
        {"threads": 0},
        {"shots": [5, 0]},
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|must be positive|must not be negative|unknown heads"):
        ProbeSpec(**{"store": STORE, "heads": ["linear"], **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": [0.0]}, "--fraction must be above 0 and at most 1"),
        ({"fraction": [0.5, 1.5]}, "--fraction must be above 0 and at most 1"),
        ({"part": (2, 2)}, "a part is I/N with 0 <= I < N, got 2/2"),
        ({"part": (-1, 2)}, "a part is I/N"),
        ({"part": (0, 0)}, "a part is I/N"),
        ({"task": "guess"}, "unknown task 'guess'; known are classify, multilabel, regress"),
        ({"task": "regress"}, "--task regress needs --labels"),
        ({"protocol": "mine"}, "unknown protocol 'mine'; known are default, "),
        ({"heads": ["logreg"], "task": "regress", "labels": Path("l.csv")}, "--head logreg can classify, not regress"),
        ({"heads": ["knn"], "task": "multilabel", "labels": Path("l.csv")}, "--head knn can classify, not multilabel"),
        ({"task": "regress", "labels": Path("l.csv"), "shots": [2]}, "--shots and --fraction are per class"),
        ({"task": "multilabel", "labels": Path("l.csv"), "fraction": [0.5]}, "use --train-ids"),
        ({"protocol": "dinov2-linear", "heads": ["mlp"]}, "--protocol dinov2-linear says nothing of mlp; it is for linear"),
        ({"heads": ["none.py:head"]}, "there is no file none.py"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ProbeSpec(**{"store": STORE, "heads": ["linear"], **wrong})


@pytest.mark.parametrize(
    ("option", "heads"),
    [
        ({"hidden": [8]}, ["linear", "logreg"]),
        ({"steps": 8}, ["logreg"]),
        ({"learning_rates": [0.1]}, ["logreg", "ridge", "knn"]),
        ({"width": 8}, ["linear", "attnpool"]),
        ({"tokenizer": "norm"}, ["difformer"]),
        ({"C": [1.0]}, ["linear"]),
    ],
    ids=["hidden", "steps", "learning rates", "width", "tokenizer", "C"],
)
def test_an_option_that_means_nothing_to_any_head_is_refused(option: dict[str, Any], heads: list[str]) -> None:
    with pytest.raises(ValueError, match=f"means nothing to {', '.join(heads)} by the protocol default"):
        ProbeSpec(STORE, heads, **option)


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
        ({"steps": 17}, TORCH),
        ({"batch_size": 17}, TORCH),
        ({"weight_decays": [0.5]}, TORCH),
        ({"learning_rates": [1e-2]}, TORCH),
        ({"hidden": [8, 8]}, ["mlp"]),
        ({"width": 48}, ["cnn", "attention", "difformer"]),
        ({"tokenizer": "norm"}, ["attention"]),
        ({"C": [0.5]}, ["logreg"]),
        ({"device": "cpu"}, []),
        ({"seeds": 9}, []),
        ({"blocks": {1: set()}}, []),
        ({"out": Path("elsewhere")}, []),
        ({"threads": 1}, []),
        ({"part": (1, 2)}, []),
    ],
    ids=[
        "steps",
        "batch size",
        "weight decays",
        "learning rates",
        "hidden",
        "width",
        "tokenizer",
        "C",
        "device",
        "seeds",
        "blocks",
        "out",
        "threads",
        "part",
    ],
)
def test_options_of_a_head_are_what_changes_its_fits_and_nothing_else(change: dict[str, Any], heads: list[str]) -> None:
    before, after = ProbeSpec(STORE, HEADS), ProbeSpec(STORE, HEADS, **change)
    assert [head for head in HEADS if before.head_options(head) != after.head_options(head)] == heads


def test_what_is_done_to_numbers_is_said_of_the_heads_and_the_task_that_it_is_done_for() -> None:
    heads = ["linear", "mlp", "attention", "ridge"]
    numbers, labels = (ProbeSpec(STORE, heads, labels=Path("l.csv"), task=task) for task in ("regress", "multilabel"))
    assert {head: numbers.head_options(head).get("answers") for head in heads} == dict.fromkeys(heads[:3], "standardised") | {
        "ridge": None
    }
    for head in heads:
        assert labels.head_options(head) == ProbeSpec(STORE, heads).head_options(head)
        assert "answers" not in labels.head_options(head)


@pytest.mark.parametrize("head", TORCH)
def test_a_head_has_rates_and_steps_of_its_own_unless_told(head: str) -> None:
    options = ProbeSpec(STORE, [head]).head_options(head)
    assert options == load_preset("default").options(head)
    options = ProbeSpec(STORE, [head], learning_rates=(0.5,), steps=7).head_options(head)
    assert (options["learning_rates"], options["steps"]) == ([0.5], 7)


@pytest.mark.parametrize("head", HEADS)
def test_options_of_a_head_are_json(head: str) -> None:
    options = ProbeSpec(STORE, [head]).head_options(head)
    assert json.loads(json.dumps(options)) == options


def test_steps_stand_in_for_epochs() -> None:
    options = ProbeSpec(STORE, ["mlp"], protocol="paper-code", steps=9, hidden=(3,)).head_options("mlp")
    assert (options["steps"], options["epochs"], options["hidden"]) == (9, 28, [3])


def test_a_head_of_one_s_own_is_known_by_its_code(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    digests = set()
    for code in ("a = 1", "a = 2", "a = 1"):
        file.write_text(code)
        options = ProbeSpec(STORE, [f"{file}:make"]).head_options(f"{file}:make")
        digests.add(options.pop("code_sha256"))
        assert options == load_preset("default").options("own")
    assert len(digests) == 2


@pytest.mark.parametrize("head", HEADS)
def test_seeds_matter_to_heads_that_are_trained(head: str) -> None:
    assert has_randomness(head) == (head in TORCH)
