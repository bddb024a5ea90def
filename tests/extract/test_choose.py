from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import ExtractError, ExtractSpec, UnknownModel
from diffssl.extract.choose import describe_choice, pick_model
from diffssl.extract.zoo import BUNDLED
from diffssl.store import Block, Identity, StoreHeader


def spec(**changes: Any) -> ExtractSpec:
    return ExtractSpec(blocks={1: set()}, **changes)


def header(model: str) -> StoreHeader:
    """Of a store that was made with a model of that name."""
    return StoreHeader(Identity({}), [], 64, 8, "float16", "contiguous", [Block(1, "Conv", 4, 4, 0.1, 1.0)], model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, f"{BUNDLED} (bundled; --model for another)"),
        ({"model": "adm64"}, "adm64"),
        ({"model": "timm:resnet50"}, "timm:resnet50"),
        ({"model": "timm:resnet50", "checkpoint": Path("a.pt")}, "timm:resnet50 with a.pt"),
        ({"checkpoint": Path("a.pt"), "model_config": Path("a.json")}, "a.pt"),
        ({"backbone": "a.py:make"}, "a.py:make"),
    ],
    ids=str,
)
def test_the_choice_in_words(change: dict[str, Any], text: str) -> None:
    assert describe_choice(spec(**change), None) == text
    stored = "adm256 (the store's)" if not change else text
    assert describe_choice(spec(**change), header("adm256")) == stored


@pytest.mark.parametrize("name", ["adm-256", "", "resnet50", "torchvision:resnet50"])
def test_unknown_models_list_the_known(name: str) -> None:
    with pytest.raises(UnknownModel, match=f"{BUNDLED}, adm64.*timm:NAME"):
        pick_model(spec(model=name), None)


def test_a_stores_model_whose_files_are_the_users() -> None:
    with pytest.raises(ExtractError, match=r"made with timm:resnet50 with a\.pt; give --model and --checkpoint again"):
        pick_model(spec(), header("timm:resnet50 with a.pt"))
    with pytest.raises(ExtractError, match=r"made with the checkpoint a\.pt; give --checkpoint and --model-config again"):
        pick_model(spec(), header("a.pt"))


@pytest.mark.parametrize("library", ["timm"])
def test_a_library_that_is_not_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install, asked for or of the store."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"diffssl.extract.{library}_models", raising=False)
    for asked, there in [(f"{library}:resnet50", None), (None, header(f"{library}:resnet50"))]:
        with pytest.raises(ExtractError, match=rf"{library} cannot be used here.*pip install 'diffssl\[{library}\]'"):
            pick_model(spec(model=asked), there)
