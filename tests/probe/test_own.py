"""Heads of one's own: what they are given, that their numbers are theirs alone, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffssl.probe import ProbeError, ProbeSpec
from diffssl.probe.own import load_maker
from diffssl.probe.saved import load_heads
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]
Fits = Callable[..., list[dict[str, Any]]]

DOCS = Path(__file__).parents[2] / "docs" / "heads.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
OWN = next(source for source in EXAMPLES if "def gated" in source)

DROPOUT = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, shapes, outputs):
        super().__init__()
        self.shapes = shapes
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, outputs))
        self.layers(torch.zeros(1, sum(c * h * w for c, h, w in shapes)))

    def forward(self, maps):
        assert [tuple(values.shape[1:]) for values in maps] == [tuple(shape) for shape in self.shapes]
        assert all(values.dtype == torch.float32 for values in maps)
        return self.layers(torch.cat([values.flatten(1) for values in maps], dim=1))

def make(shapes, outputs):
    return Head(shapes, outputs)
"""


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The option that names a head with dropout."""
    monkeypatch.chdir(tmp_path)
    Path("my_head.py").write_text(DROPOUT)
    return "my_head.py:make"


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What two fits of the same must share."""
    return {name: value for name, value in result.items() if name not in ("seconds", "key")}


def test_a_head_with_dropout_gives_the_same_numbers_bit_for_bit(make_maps: MakeStore, fits: Fits, head: str) -> None:
    """Alone, again, and beside others; and nobody's random numbers change by it."""
    store = make_maps([FeatureKey(1, 10, 2)])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    (alone,) = fits(store, head, out=Path("one"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    (again,) = fits(store, head, out=Path("two"), save_heads=Path("two"))
    beside = fits(store, f"linear,{head},attnpool", out=Path("three"), save_heads=Path("three"))
    assert numbers(alone) == numbers(again) == numbers(beside[1])
    assert alone["test_top1"] > 0.6
    (kept,) = load_heads(Path("two"))
    (same,) = (one for one in load_heads(Path("three")) if one.path.name == kept.path.name)
    assert kept.weights.keys() == same.weights.keys()
    assert all((kept.weights[name] == same.weights[name]).all() for name in kept.weights)


def test_seeds_are_other_starts_and_other_dropout(make_maps: MakeStore, fits: Fits, head: str) -> None:
    one, other = fits(make_maps([FeatureKey(1, 10, 2)]), head, seeds=2, steps=10)
    assert one["seed"] != other["seed"]
    assert one["test_nll"] != other["test_nll"]


def test_several_settings_are_one_input(make_maps: MakeStore, fits: Fits, head: str) -> None:
    """The module checks what it gets."""
    store = make_maps([FeatureKey(1, 10, 4), FeatureKey(2, 90, 2)])
    own, linear = fits(store, f"{head},linear", concat=True, steps=20)
    assert (own["block"], own["pool"]) == (linear["block"], linear["pool"]) == ([1, 2], [4, 2])
    assert min(own["test_top1"], linear["test_top1"]) > 0.6


def test_another_source_is_another_fit(make_maps: MakeStore, fits: Fits, head: str) -> None:
    store = make_maps([FeatureKey(1, 10, 1)])
    first = fits(store, head, steps=3)
    assert fits(store, head, steps=3) == first
    Path("my_head.py").write_text(DROPOUT.replace("0.3", "0.1"))
    assert fits(store, head, steps=3)[0]["key"] != first[0]["key"]


def test_what_lies_beside_the_file_can_be_imported(head: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    Path("other.py").write_text("from my_head import make\n")
    assert load_maker(Path("other.py"), "make")([(2, 1, 1)], 3)([torch.zeros(4, 2, 1, 1)]).shape == (4, 3)
    assert __import__("sys").path[0] == "/nowhere"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def other(shapes, outputs): ...", "my_head.py: has no function 'make'"),
        ("make = 3", "my_head.py: has no function 'make'"),
        ("def make(shapes, outputs): return 3", "my_head.py:make returned int, expected a torch.nn.Module"),
        ("from torch import nn\ndef make(shapes, outputs): return nn.ReLU()", "a module without parameters to train"),
    ],
    ids=["another name", "no function", "no module", "no parameters"],
)
def test_what_is_no_head_is_refused(make_maps: MakeStore, fits: Fits, head: str, source: str, message: str) -> None:
    Path("my_head.py").write_text(source)
    with pytest.raises(ProbeError, match=re.escape(message)):
        fits(make_maps([FeatureKey(1, 10, 1)]), head, steps=3)


def test_a_file_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"--head nowhere\.py:make: there is no file nowhere\.py"):
        ProbeSpec("feats.zarr", ["nowhere.py:make"])


def test_the_example_of_the_docs(make_maps: MakeStore, fits: Fits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(OWN.splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    Path("my_head.py").write_text(OWN)
    store = make_maps([FeatureKey(1, 10, 4), FeatureKey(2, 10, 2)])
    (result,) = fits(store, "my_head.py:gated", concat=True)
    assert result["test_top1"] > 0.6
    assert len(fits(store, "my_head.py:gated", steps=3)) == 2  # and of one setting
