from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import ExtractSpec

MINIMAL: dict[str, Any] = {"blocks": {18: set(), 24: set()}, "timesteps": [10, 90]}


def test_defaults() -> None:
    spec = ExtractSpec(**MINIMAL)
    assert spec.pools == (1,)
    assert spec.data == ("digits",)
    assert spec.only == ()
    assert spec.store == Path("feats.zarr")
    assert spec.draws == 1
    unset = ("labels", "model", "checkpoint", "condition", "seed", "noise", "limit", "batch_size", "dtype", "row_block")
    assert all(getattr(spec, name) is None for name in unset)


def test_is_a_value() -> None:
    assert ExtractSpec(**MINIMAL) == ExtractSpec(**MINIMAL)
    assert ExtractSpec(**MINIMAL) != ExtractSpec(**MINIMAL, seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExtractSpec(**MINIMAL).seed = 3  # type: ignore[misc]


def test_the_command_is_no_part_of_what_was_asked() -> None:
    assert ExtractSpec(**MINIMAL, command="a") == ExtractSpec(**MINIMAL, command="b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": {}}, "at least one block"),
        ({"pools": ()}, "pool"),
        ({"data": ()}, "images"),
        ({"checkpoint": Path("a.pt")}, "go together"),
        ({"model_config": Path("a.json")}, "go together"),
        ({"model": "adm64", "checkpoint": Path("a.pt"), "model_config": Path("a.json")}, "exclude"),
        ({"model": "timm:resnet50", "model_config": Path("a.json")}, "--model is timm:resnet50"),
        ({"model": "diffusers:a", "checkpoint": Path("a.pt")}, "go together"),
        ({"backbone": "a.py:make", "model": "adm64"}, "--backbone excludes"),
        ({"backbone": "a.py:make", "checkpoint": Path("a.pt"), "model_config": Path("a.json")}, "--backbone excludes"),
        ({"row_block": 100}, "power of two, got 100"),
        ({"row_block": 0}, "power of two"),
        ({"row_block": -4}, "power of two"),
        ({"noise": "none", "draws": 2}, "--draws 2"),
        ({"draws": 0}, "--draws must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"limit": -5}, "--limit"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"max_bad": -1}, "--max-bad must be at least 0"),
        ({"noise": "clean"}, "clean"),
        ({"dtype": "float64"}, "float64"),
        ({"store_dtype": "bfloat16"}, "bfloat16"),
    ],
    ids=str,
)
def test_wrong_calls(change: dict[str, Any], message: str) -> None:
    """Before any image or weight is touched, and naming what was given."""
    with pytest.raises(ValueError, match=message):
        ExtractSpec(**{**MINIMAL, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"row_block": 1},
        {"row_block": 2048},
        {"max_bad": 0},
        {"limit": 1},
        {"noise": "none"},
        {"noise": "gaussian", "draws": 3},
        {"dtype": "bfloat16", "store_dtype": "float32"},
        {"checkpoint": Path("a.pt"), "model_config": Path("a.json")},
        {"model": "timm:resnet50", "checkpoint": Path("a.pt")},
        {"backbone": "a.py:make", "timesteps": ()},
    ],
    ids=str,
)
def test_right_calls(change: dict[str, Any]) -> None:
    spec = ExtractSpec(**{**MINIMAL, **change})
    assert all(getattr(spec, name) == value for name, value in change.items())


def test_touches_no_file() -> None:
    """Validation is about the call alone: files that are not there are somebody else's error."""
    ExtractSpec(**MINIMAL, checkpoint=Path("/nowhere/a.pt"), model_config=Path("/nowhere/a.json"), data=("/nowhere",))


def test_the_package_imports_without_torch() -> None:
    code = "import sys, diffssl.extract, diffssl.extract.cli; print(sorted({'torch', 'guided_diffusion'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
