"""Heads that were kept, on other stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffssl.probe import ProbeSpec, TooFewRows
from diffssl.probe.apply import apply_heads
from diffssl.probe.cli import main
from diffssl.probe.errors import OtherFeatures
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]
Fits = Callable[..., list[dict[str, Any]]]

KEYS = [FeatureKey(1, 10, 1), FeatureKey(2, 10, 1)]
METRICS = ("top1", "top5", "mean_per_class", "macro_f1", "nll", "ece")


def identity(seed: int = 0, **other: Any) -> dict[str, Any]:
    return {"weights_sha256": "aa", "noise": {"scheme": 1, "seed": seed}, **other}


@pytest.fixture
def store(make_maps: MakeStore) -> FeatureStore:
    return make_maps(KEYS, identity=identity())


def applied(folder: Path, *stores: FeatureStore, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    lines: list[str] = []
    spec = ProbeSpec(stores[0].path, ["linear"], device="cpu", **options)
    return apply_heads(folder, [store.path for store in stores], spec, lines.append), lines


def test_on_the_same_rows_the_metrics_are_those_of_the_fits(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    results = {result["key"]: result for result in fits(store, "linear,mlp", save_heads=tmp_path / "heads", hidden=[16])}
    found, lines = applied(tmp_path / "heads", store)
    assert {one["key"] for one in found} == results.keys()
    for one in found:
        result = results[one["key"]]
        assert {name: one[f"test_{name}"] for name in METRICS} == {name: result[f"test_{name}"] for name in METRICS}
        assert one["test_hits"] == result["test_hits"]
        assert (one["head"], one["block"], one["n_test"]) == (result["head"], result["block"], 120)
        assert one["test_top1_low"] <= one["test_top1"] <= one["test_top1_high"]
    assert sum(line.startswith(("linear ", "mlp ")) for line in lines) == 4
    assert not any("best by val" in line for line in lines)  # nothing is chosen


def test_every_head_on_every_store(make_maps: MakeStore, store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    fits(store, "linear", save_heads=tmp_path / "heads")
    other = make_maps(KEYS, identity=identity(1), rows={"test": 80}, name="other.zarr")
    found, _ = applied(tmp_path / "heads", store, other)
    assert [(one["store"], one["n_test"]) for one in found] == [(store.path, 120)] * 2 + [(other.path, 80)] * 2
    assert min(one["test_top1"] for one in found) > 0.6
    limited, _ = applied(tmp_path / "heads", other, limit=30)
    assert [one["n_test"] for one in limited] == [30, 30]


def test_other_features_are_refused(make_maps: MakeStore, store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    fits(store, "linear", save_heads=tmp_path / "heads", steps=3)
    other = make_maps(KEYS, identity=identity(weights_sha256="bb"), rows={"test": 80}, name="other.zarr")
    with pytest.raises(OtherFeatures, match=r"are not those of .*\.safetensors.*\(weights_sha256: 'aa' there, 'bb' here\)"):
        applied(tmp_path / "heads", other)


def test_classes_are_matched_by_name(make_maps: MakeStore, store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """The other store numbers its classes otherwise, and has one that the heads do not know."""
    fits(store, "linear", save_heads=tmp_path / "heads", blocks={1: set()})
    names = [f"c{number % 4:02d}/{number}.png" for number in range(60)]
    same = make_maps(KEYS, identity=identity(), rows={"test": names}, name="same.zarr")
    more = make_maps(
        KEYS, identity=identity(), rows={"test": [*names, "a/1.png", "b/2.png"]}, name="more.zarr", features=by_name
    )
    (one,), _ = applied(tmp_path / "heads", same)
    (two,), lines = applied(tmp_path / "heads", more)
    assert (one["n_test"], two["n_test"]) == (60, 60)
    assert "test: 2 rows without a label are left out" in lines
    assert two["test_mean_per_class"] == pytest.approx(0.25)  # each row is said to be of one class


def by_name(key: FeatureKey, split: str, labels: Any) -> Any:  # noqa: ARG001
    """Features that are all the same."""
    import numpy as np

    return np.full((len(labels), 8, 1, 1), 0.5)


def test_samples_that_were_trained_on(make_maps: MakeStore, fits: Fits, tmp_path: Path) -> None:
    """Under another noise seed, of the one split all, the fifth that was kept; the split val that chose, not at all."""
    names = [f"c{number % 4:02d}/{number}.png" for number in range(300)]
    store = make_maps(KEYS, identity=identity(), rows={"all": names})
    (result, *_) = fits(store, "linear", save_heads=tmp_path / "heads", blocks={1: set()})
    other = make_maps(KEYS, identity=identity(1), rows={"all": names}, name="other.zarr")
    (found,), lines = applied(tmp_path / "heads", other)
    assert found["n_test"] == result["n_test"] < 90
    assert any("the fifth of them that is kept for testing is scored" in line for line in lines)
    rows = {"train": names[:200], "val": names[200:], "test": [f"c00/{number}" for number in range(4)] + ["c01/x"]}
    chosen = make_maps(KEYS, identity=identity(2), rows=rows, name="chosen.zarr")
    fits(chosen, "linear", save_heads=tmp_path / "chosen", blocks={1: set()}, steps=3)
    only_val = make_maps(KEYS, identity=identity(3), rows={"val": names[200:]}, name="val.zarr")
    with pytest.raises(TooFewRows, match=r"trained or chosen on the samples of its split val"):
        applied(tmp_path / "chosen", only_val)


def test_numbers_from_a_file(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    values = {
        name: 1e4 + 500 * store.read(KEYS[0], split)[row, 0, 0, 0].astype(float)
        for split in store.splits
        for row, name in enumerate(store.ids(split))
    }
    path.write_text("id,first\n" + "".join(f"{name},{value}\n" for name, value in values.items()))
    options: dict[str, Any] = {"labels": path, "task": "regress", "blocks": {1: set()}}
    (result,) = fits(store, "linear", save_heads=tmp_path / "heads", learning_rates=[0.1], steps=100, **options)
    (found,), lines = applied(tmp_path / "heads", store, labels=path, task="regress")
    assert found["test_r2"] == result["test_r2"] > 0.9
    assert found["test_rmse"] == result["test_rmse"] > 1  # in units of the file
    assert "test R2" in " ".join(lines)


def test_the_command(
    store: FeatureStore,
    fits: Fits,
    tmp_path: Path,
    program: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fits(store, "linear", save_heads=tmp_path / "heads", steps=3)
    capsys.readouterr()
    folder = str(tmp_path / "heads")
    assert program(main, "--store", store.path, "--load-head", folder, "--device", "cpu") == 0
    assert capsys.readouterr().out.count("linear ") == 2
    assert program(main, "--store", store.path, "--load-head", folder, "--head", "linear") == 2
    assert program(main, "--store", store.path, "--load-head", str(tmp_path / "none")) == 1
    assert "there are no saved heads" in capsys.readouterr().err
