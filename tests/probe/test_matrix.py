"""Study files: what they may say, what is refused, and a paper's numbers beside ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from diffssl.probe import ProbeError
from diffssl.probe.cli import command
from diffssl.probe.matrix import Expected, compare_expected, read_study
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]

GRID = [FeatureKey(block, timestep, 1) for block in (1, 2) for timestep in (10, 90)]


def write(folder: Path, content: Any) -> Path:
    path = folder / "study.json"
    path.write_text(json.dumps(content))
    return path


def test_runs_are_options_as_on_the_command_line(tmp_path: Path) -> None:
    runs = [
        {"head": "linear,mlp", "blocks": "1@2,3-4", "timesteps": "10-50:20", "pools": "1,full", "seeds": 2, "shots": [5]},
        {"head": "ridge", "labels": "a.csv", "task": "regress"},
    ]
    study = read_study(write(tmp_path, {"runs": runs, "stores": ["a.zarr", "b.zarr"]}), [], {"device": "cpu"})
    assert [(spec.store, *spec.heads) for spec in study.specs] == [
        ("a.zarr", "linear", "mlp"),
        ("a.zarr", "ridge"),
        ("b.zarr", "linear", "mlp"),
        ("b.zarr", "ridge"),
    ]
    first = study.specs[0]
    assert (first.blocks, first.timesteps, first.pools) == ({1: {2}, 3: set(), 4: set()}, [10, 30, 50], [1, "full"])
    assert (first.seeds, first.shots, first.device) == (2, [5], "cpu")
    assert study.specs[1].labels == Path("a.csv")


def test_stores_of_the_command_line_take_the_place_of_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, {"runs": [{"head": "linear"}], "stores": ["a.zarr"]})
    assert [spec.store for spec in read_study(path, ["c.zarr"], {}).specs] == ["c.zarr"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], "cannot be read as a study"),
        ({"stores": ["a"]}, "cannot be read as a study"),
        ({"runs": [{"head": "linear"}]}, "has 0 stores and 1 runs"),
        ({"runs": [], "stores": ["a"]}, "has 1 stores and 0 runs"),
        ({"runs": [{"head": "linear", "blokcs": "1"}], "stores": ["a"]}, r"knows no blokcs; options are C, .*blocks"),
        ({"runs": [{"blocks": "1"}], "stores": ["a"]}, "lacks the head"),
        ({"runs": [{"head": "forest"}], "stores": ["a"]}, "unknown heads"),
        ({"runs": [{"head": "linear", "blocks": "x"}], "stores": ["a"]}, "is not a number or a range"),
        ({"runs": [{"head": "linear"}], "stores": ["a"], "expected": [{"value": 1}]}, "cannot be read as a study"),
    ],
)
def test_what_a_study_cannot_be(tmp_path: Path, content: Any, text: str) -> None:
    with pytest.raises(ProbeError, match=text):
        read_study(write(tmp_path, content), [], {})


def test_ours_beside_theirs() -> None:
    results = [{"head": "linear", "block": 1, "test_top1": 0.5}, {"head": "linear", "block": 1, "test_top1": 0.52}]
    expected = [
        Expected({"head": "linear", "block": 1}, "test_top1", 0.52, 0.02, "a paper"),
        Expected({"head": "linear", "block": 1}, "test_top1", 0.55, 0.02, "a paper"),
        Expected({"head": "linear", "block": 2}, "test_top1", 0.55, 0.02, "a paper"),
    ]
    lines = compare_expected(expected, results)
    assert [line.split("  a paper")[0].split()[-1] for line in lines[1:]] == ["yes", "NO", "fit"]
    assert "0.5100   0.5200" in lines[1]
    assert compare_expected([], results) == []


def test_a_study_from_beginning_to_end(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"train": 150, "test": 100}, GRID, separation=6.0)
    match = {"head": "ridge", "block": 1, "timestep": 10}
    content = {
        "about": "what it is",
        "runs": [{"head": "ridge"}, {"head": "linear", "blocks": "1", "steps": 20}, {"head": "ridge", "blocks": "1"}],
        "expected": [{"match": match, "metric": "test_top1", "value": 0.99, "tolerance": 0.05, "source": "nowhere"}],
    }
    arguments = ["--study", str(write(tmp_path, content)), "--store", store.path, "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "what it is"
    table = [line for line in lines if line.startswith(("ridge ", "linear "))]
    assert len(table) == 6  # fits that two runs share are there once
    assert lines[-1].split("  nowhere")[0].split()[-1] == "yes"
