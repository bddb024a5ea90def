"""Heads on disk: what is read back scores as what was fitted, and nothing else is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.probe import ProbeError, ProbeSpec
from diffssl.probe.data import ProbeData
from diffssl.probe.metrics import hits
from diffssl.probe.predictions import read_probabilities, unpack_hits
from diffssl.probe.saved import SavedHead, load_heads
from diffssl.probe.study import prepare
from diffssl.store import FeatureKey, FeatureStore
from safetensors import safe_open
from scipy.special import softmax

MakeStore = Callable[..., FeatureStore]
Fits = Callable[..., list[dict[str, Any]]]

KEYS = [FeatureKey(1, 10, 4), FeatureKey(2, 10, 4)]
CPU = torch.device("cpu")

OWN = """
from torch import nn
class Head(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(shape[0] * shape[1] ** 2, outputs))
        self.register_buffer("scale", __import__("torch").tensor(0.5))
    def forward(self, maps):
        return self.layers(maps[0]) * self.scale
def make(shapes, outputs):
    return Head(shapes[0], outputs)
"""


@pytest.fixture
def store(make_maps: MakeStore) -> FeatureStore:
    return make_maps(KEYS)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("own_head.py").write_text(OWN)
    return "own_head.py:make"


def scores(head: SavedHead, store: FeatureStore) -> tuple[Any, Any]:
    """Of the test rows by the protocol."""
    study = prepare(ProbeSpec(store.path, ["linear"]), lambda _: None)
    return head.scores(ProbeData(store, head.keys, study.targets), study.groups[0].protocol.test, CPU)


@pytest.mark.parametrize("head", ["linear", "mlp", "cnn", "attention", "attnpool", "difformer", "own", "logreg", "ridge"])
def test_what_is_read_back_scores_exactly_as_the_fit(
    store: FeatureStore, fits: Fits, tmp_path: Path, own: str, head: str
) -> None:
    options: dict[str, Any] = {"blocks": {1: set()}} if head != "difformer" else {}
    if head == "logreg":
        options["C"] = [0.01]
    name = own if head == "own" else head
    folder = tmp_path / "heads"
    (result,) = fits(store, name, save_heads=folder, save_probabilities=True, **options)
    (saved,) = load_heads(folder)
    assert saved.path == folder / f"{result['key']}.safetensors"
    assert saved.keys == (KEYS if head == "difformer" else KEYS[:1])
    found, labels = scores(saved, store)
    assert hits(found, labels, 1).tolist() == unpack_hits(result["test_hits"], 120).tolist()
    assert hits(found, labels, 1).mean() == result["test_top1"] > 0.5
    if head != "ridge":  # whose scores are no log-odds
        kept = read_probabilities(ProbeSpec(store.path, ["linear"]).results, result["key"])
        np.testing.assert_array_equal(softmax(found, axis=1).astype(np.float16), kept)
    assert saved.identity.feature_id == store.feature_id
    assert list(saved.about["names"]) == store.classes
    assert saved.about["task"] == "classify"
    assert saved.about["result"] == {name: value for name, value in result.items() if name != "test_hits"}


def test_side_by_side_and_batch_norm(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """Several settings as one vector; the running mean of a batch normalisation is a weight too."""
    (result,) = fits(store, "linear", concat=True, save_heads=tmp_path / "concat")
    (saved,) = load_heads(tmp_path / "concat")
    found, labels = scores(saved, store)
    assert (saved.keys, hits(found, labels, 1).mean()) == (KEYS, result["test_top1"])
    paper = {"protocol": "paper-text", "blocks": {1: set()}, "save_heads": tmp_path / "norm"}
    (result,) = fits(store, "linear", **paper)
    (saved,) = load_heads(tmp_path / "norm")
    assert "norm.running_mean" in saved.weights
    assert not saved.moments.mean.any()
    found, labels = scores(saved, store)
    assert hits(found, labels, 1).tolist() == unpack_hits(result["test_hits"], 120).tolist()


def test_of_all_trials_the_chosen_one_is_kept(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """Without refit, weights are of one copy of several."""
    options: dict[str, Any] = {"blocks": {1: set()}, "learning_rates": [1e-6, 0.01], "refit": False}
    results = fits(store, "linear,cnn", save_heads=tmp_path / "heads", **options)
    for saved in load_heads(tmp_path / "heads"):
        (result,) = (one for one in results if one["key"] == saved.path.stem)
        found, labels = scores(saved, store)
        assert hits(found, labels, 1).mean() == result["test_top1"] > 0.5


def test_a_file_is_safetensors_and_json(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """People can open it without us."""
    (result,) = fits(store, "linear", blocks={1: set()}, save_heads=tmp_path / "heads")
    assert [path.name for path in (tmp_path / "heads").iterdir()] == [f"{result['key']}.safetensors"]
    with safe_open(tmp_path / "heads" / f"{result['key']}.safetensors", framework="numpy") as file:
        about = json.loads(file.metadata()["diffssl"])
        weight, bias = file.get_tensor("weights.0")[0], file.get_tensor("biases.0")[0]
        mean, scale = file.get_tensor("moments.mean"), file.get_tensor("moments.scale")
    x, y = store.xy(KEYS[0], "test")
    predicted = ((x - mean) / scale @ weight + bias).argmax(axis=1)
    assert (predicted == y).mean() == result["test_top1"]
    assert about["names"] == store.classes
    assert about["shapes"] == [[8, 4, 4]]


@pytest.mark.parametrize("damage", ["cut short", "no metadata", "pickled", "no mean"])
def test_a_damaged_file_is_named(store: FeatureStore, fits: Fits, tmp_path: Path, damage: str) -> None:
    fits(store, "linear", blocks={1: set()}, save_heads=tmp_path / "heads", steps=3)
    (path,) = (tmp_path / "heads").iterdir()
    content = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no metadata":
        path.write_bytes(content.replace(b"diffssl", b"another", 1))
    elif damage == "no mean":
        path.write_bytes(content.replace(b"moments.mean", b"moments.mode", 1))
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ProbeError, match=r"\.safetensors: cannot be read as a saved head .*; fit it again with --save-head"):
        load_heads(tmp_path / "heads")


class Bomb:
    """Something that must not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


def test_a_head_of_ones_own_wants_its_source(store: FeatureStore, fits: Fits, own: str) -> None:
    fits(store, own, blocks={1: set()}, save_heads=Path("heads"), steps=3)
    (saved,) = load_heads(Path("heads"))
    Path("own_head.py").write_text(OWN.replace("0.5", "0.25"))
    with pytest.raises(ProbeError, match=r"safetensors: own_head\.py is not what it was fitted with; fit it again"):
        scores(saved, store)
    Path("own_head.py").unlink()
    with pytest.raises(ProbeError, match=r"its code is not here \(.*there is no file own_head\.py\); run this where"):
        scores(saved, store)


def test_neighbours_have_nothing_to_keep(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    fits(store, "knn", blocks={1: set()}, save_heads=tmp_path / "heads")
    assert not (tmp_path / "heads").exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"there are no saved heads; diffssl-probe --save-head .* keeps them"):
        load_heads(tmp_path)
