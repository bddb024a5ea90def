"""Test rows of another store: same features or none, classes by name, never a row that was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.probe import NothingToProbe, ProbeSpec, TooFewRows
from diffssl.probe.data import Moments, ProbeData
from diffssl.probe.errors import OtherFeatures
from diffssl.probe.study import Study, prepare, probe, probe_stores
from diffssl.store import FeatureKey, FeatureStore, IncompleteFeatures, UnknownFeatures

MakeStore = Callable[..., FeatureStore]
Fits = Callable[..., list[dict[str, Any]]]

KEY = FeatureKey(1, 10, 1)


def identity(seed: int = 0, **other: Any) -> dict[str, Any]:
    return {"weights_sha256": "aa", "noise": {"scheme": 1, "seed": seed}, "dtype": "float32", **other}


def ids(n: int, classes: int = 4, first: int = 0) -> list[str]:
    return [f"c{number % classes:02d}/{number:05d}.png" for number in range(first, first + n)]


@pytest.fixture
def store(make_maps: MakeStore) -> FeatureStore:
    return make_maps([KEY], identity=identity())


def prepared(store: FeatureStore, other: FeatureStore, **options: Any) -> tuple[Study, list[str]]:
    lines: list[str] = []
    return prepare(ProbeSpec(store.path, ["linear"], test_store=other.path, **options), lines.append), lines


def test_another_noise_seed_is_fine_and_its_rows_are_scored(make_maps: MakeStore, store: FeatureStore, fits: Fits) -> None:
    other = make_maps([KEY], identity=identity(1), rows={"test": 90}, name="other.zarr")
    (result,) = fits(store, "logreg", C=[0.01, 0.1], test_store=other.path)
    (plain,) = fits(store, "logreg", C=[0.01, 0.1])
    assert (result["n_test"], plain["n_test"]) == (90, 120)
    assert result["test_top1"] > 0.7
    assert result["val_top1_grid"] == plain["val_top1_grid"]
    assert result["key"] != plain["key"]
    assert result["test_rows"] != plain["test_rows"]
    assert result["specification"]["test_store"] == other.feature_id
    assert any(note == f"test: the split test of {other.path} (90 rows)" for note in result["notes"])
    assert not any(note.startswith("test: the split test (") for note in result["notes"])


def test_the_same_rows_in_another_store_give_the_same_numbers(make_maps: MakeStore, store: FeatureStore, fits: Fits) -> None:
    copy = make_maps([KEY], identity=identity(), rows={"test": 120}, name="copy.zarr")
    (plain,), (elsewhere,) = fits(store, "logreg", C=[0.1]), fits(store, "logreg", C=[0.1], test_store=copy.path)
    assert elsewhere["test_top1"] == plain["test_top1"]
    assert elsewhere["test_hits"] == plain["test_hits"]
    assert elsewhere["test_rows"] == plain["test_rows"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (identity(weights_sha256="bb"), "(weights_sha256: 'aa' there, 'bb' here)"),
        (identity(1, dtype="bfloat16", extra=2), "(dtype: 'float32' there, 'bfloat16' here; extra: None there, 2 here)"),
        ({**identity(), "noise": {"scheme": 2, "seed": 0}}, "(noise.scheme: 1 there, 2 here)"),
        ({**identity(), "noise": {"scheme": "none"}}, "(noise.scheme: 1 there, 'none' here)"),
    ],
    ids=["weights", "several", "noise", "no noise"],
)
def test_other_features_are_refused(make_maps: MakeStore, store: FeatureStore, fields: dict[str, Any], message: str) -> None:
    other = make_maps([KEY], identity=fields, rows={"test": 40}, name="other.zarr")
    text = f"{other.path}: its features are not those of {store.path}, so heads mean nothing to them {message}"
    with pytest.raises(OtherFeatures, match=re.escape(text)):
        prepared(store, other)


def test_classes_are_matched_by_name_and_unknown_ones_left_out(make_maps: MakeStore, store: FeatureStore) -> None:
    """Class c03 has another number in the other store, and c07 is one that no head knows."""
    names = [f"c03/{number}.png" for number in range(30)] + [f"c01/{number}.png" for number in range(20)]
    names += [f"c07/{number}.png" for number in range(10)] + [f"{number}.png" for number in range(5)]
    other = make_maps([KEY], identity=identity(), rows={"test": names}, name="other.zarr")
    assert other.classes == ["c01", "c03", "c07"]
    study, lines = prepared(store, other)
    rows = study.groups[0].protocol.test["test"]
    folders = [one.partition("/")[0] for one in other.ids("test")[rows]]
    assert sorted(folders) == ["c01"] * 20 + ["c03"] * 30
    assert [store.classes[label] for label in study.tested.targets.values["test"][rows]] == folders
    assert "test: 15 rows without a label are left out" in lines
    assert f"test: the split test of {other.path} (50 rows)" in lines


def test_no_class_in_common(make_maps: MakeStore, store: FeatureStore) -> None:
    other = make_maps([KEY], identity=identity(), rows={"test": ["x/1", "y/2"]}, name="other.zarr")
    with pytest.raises(TooFewRows, match=r"no row of test has a label that the heads know; classes are matched by name"):
        prepared(store, other)


def test_the_same_samples_under_other_noise_are_scored_on_the_fifth_that_is_kept(make_maps: MakeStore) -> None:
    store = make_maps([KEY], identity=identity(), rows={"all": ids(400)})
    other = make_maps([KEY], identity=identity(1), rows={"all": ids(400)}, name="other.zarr")
    study, lines = prepared(store, other)
    plain = prepare(ProbeSpec(store.path, ["linear"]), lambda _: None).groups[0].protocol
    protocol = study.groups[0].protocol
    np.testing.assert_array_equal(protocol.test["all"], plain.test["all"])
    assert not np.intersect1d(protocol.refit["all"], protocol.test["all"]).size
    assert "the heads were trained on the same samples: the fifth of them that is kept for testing is scored" in lines


def test_other_samples_are_all_scored(make_maps: MakeStore) -> None:
    store = make_maps([KEY], identity=identity(), rows={"all": ids(400)})
    other = make_maps([KEY], identity=identity(), rows={"all": ids(100, first=1000)}, name="other.zarr")
    study, _ = prepared(store, other)
    assert study.groups[0].protocol.test["all"].tolist() == list(range(100))


def test_val_rows_that_chose_are_not_scored(make_maps: MakeStore) -> None:
    rows = {"train": ids(200), "val": ids(80, first=500), "test": ids(80, first=900)}
    store = make_maps([KEY], identity=identity(), rows=rows)
    other = make_maps([KEY], identity=identity(1), rows={"val": rows["val"]}, name="other.zarr")
    with pytest.raises(TooFewRows, match=r"the heads were trained or chosen on the samples of its split val"):
        prepared(store, other)


def test_what_the_other_store_lacks_is_said(make_maps: MakeStore, store: FeatureStore) -> None:
    bare = make_maps([FeatureKey(1, 90, 1)], identity=identity(), rows={"test": 40}, name="bare.zarr")
    with pytest.raises(UnknownFeatures):
        prepared(store, bare)
    partly = make_maps([KEY], identity=identity(), rows={"test": 200}, only_blocks=[0], name="partly.zarr")
    with pytest.raises(IncompleteFeatures):
        prepared(store, partly)
    study, _ = prepared(store, partly, limit=64)
    assert study.groups[0].protocol.test["test"].tolist() == list(range(64))


def test_a_store_without_rows_to_score(make_maps: MakeStore, store: FeatureStore) -> None:
    other = make_maps([KEY], identity=identity(), rows={"train": 40}, name="other.zarr")
    with pytest.raises(NothingToProbe, match=r"scoring needs a split test, val or all; the store has train"):
        prepared(store, other)


def test_labels_of_both_stores_are_in_one_file(make_maps: MakeStore, store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """Class names are numbered by the file, whichever of them a store has."""
    other = make_maps([KEY], identity=identity(), rows={"test": ids(60, first=5000)}, name="other.zarr")
    path = tmp_path / "labels.csv"
    all_ids = [*store.ids("train"), *store.ids("test"), *other.ids("test")]
    path.write_text("id,half\n" + "".join(f"{one},{'low' if one < 'c02' else 'up'}\n" for one in all_ids))
    (result,) = fits(store, "linear", labels=path, test_store=other.path)
    assert result["n_test"] == 60
    assert result["test_top1"] > 0.7  # chance is 0.5


def test_several_stores_are_one_table(make_maps: MakeStore, store: FeatureStore) -> None:
    other = make_maps([KEY], identity=identity(1), rows={"train": 100, "test": 60}, name="other.zarr")
    options: dict[str, Any] = {"steps": 20, "learning_rates": [0.01], "weight_decays": [0.0], "device": "cpu", "threads": 1}
    lines: list[str] = []
    specs = [ProbeSpec(one.path, ["linear"], **options) for one in (store, other)]
    results = probe_stores(specs, lines.append)
    assert [(result["store"], result["n_test"]) for result in results] == [(store.path, 120), (other.path, 60)]
    table = [line for line in lines if line.startswith("linear ")]
    assert sorted(line.rpartition("store ")[2] for line in table) == sorted([store.path, other.path])
    assert sum(line.startswith("best by val") for line in lines) == 1
    assert probe(specs[0], lambda _: None)[0]["key"] == results[0]["key"]


# Draws of the noise, and crops, mixed


DRAWS = [FeatureKey(1, 10, 1, draw=draw) for draw in range(3)]
CROPS = [FeatureKey(1, 10, 1, crop=1), FeatureKey(1, 10, 1, draw=1, crop=2)]


def with_crops(make: MakeStore, rows: dict[str, Any], **options: Any) -> FeatureStore:
    """Train has draws and crops, test has draws alone."""
    make(rows={"train": rows["train"]}, keys=[*DRAWS, *CROPS], **options)
    return make(rows={"test": rows["test"]}, keys=DRAWS, **options)


def test_the_mean_over_draws_is_scored_beside_one_draw(make_maps: MakeStore, fits: Fits) -> None:
    """Each draw has noise of its own, so their mean is better than any of them."""
    store = with_crops(make_maps, {"train": 300, "test": 300})
    results = fits(store, "linear,logreg", mix_copies=True, steps=150, C=[0.1])
    alone = fits(store, "logreg", blocks={1: set()}, C=[0.1])
    assert len(results) == 2
    for result in results:
        draws = result["test_top1_draws"]
        assert len(draws) == 3
        assert draws[0] == result["test_top1"]
        assert result["test_top1_ensemble"] > max(draws) + 0.02
        assert result["test_top1_ensemble_low"] <= result["test_top1_ensemble"] <= result["test_top1_ensemble_high"]
        assert (result["n_train"], result["n_test"]) == (300, 300)
        assert result["specification"]["copies"] == {
            "train": [[0, 0], [0, 1], [1, 0], [1, 2], [2, 0]],
            "test": [[0, 0], [1, 0], [2, 0]],
        }
    assert {result["draw"] for result in alone} == {0, 1, 2}
    assert not any("test_top1_ensemble" in result for result in alone)
    assert results[1]["test_top1_ensemble"] > max(result["test_top1"] for result in alone)


def test_an_epoch_is_every_training_row_once_and_copies_take_turns(make_store: MakeStore) -> None:
    """Features say which copy of which row they are."""

    def features(key: FeatureKey, _split: str, labels: Any) -> Any:
        number = np.arange(len(labels)) + 1000 * key.draw + 10000 * key.crop
        return np.broadcast_to(number[:, None, None, None], (len(labels), 8, 1, 1))

    def make(rows: dict[str, Any], keys: list[FeatureKey]) -> FeatureStore:
        return make_store(rows, keys, features=features, dtype="float32")

    store = with_crops(make, {"train": 200, "test": 60})
    study = prepare(ProbeSpec(store.path, ["linear"], mix_copies=True), lambda _: None)
    (group,) = study.groups
    rows = group.protocol.fit["train"]
    assert not np.intersect1d(rows, group.protocol.select["train"]).size
    data = ProbeData(store, group.input.keys, study.targets, group.input.copies)
    buffers = data.buffers(group.protocol.fit, Moments.none(data.dimension), np.random.default_rng(0), torch.device("cpu"))
    seen: list[list[int]] = []
    for _ in range(5):
        buffer = next(buffers)
        values = buffer.features[buffer.index, 0].numpy().astype(int)
        assert sorted(values % 1000) == rows.tolist()  # no row of the other side, whatever the copy
        seen.append(values[np.argsort(values % 1000)].tolist())
    copies = np.array(seen) // 1000
    assert {tuple(sorted(own)) for own in copies.T.tolist()} == {(0, 1, 2, 10, 21)}
    assert len(np.unique(copies[0])) > 1  # row blocks do not take turns in step
    moments = data.moments(group.protocol.moments)
    assert moments.mean[0] == pytest.approx(99.5 + np.mean([0, 1000, 2000, 10000, 21000]))


def test_draws_of_another_store_are_its_own(make_maps: MakeStore, fits: Fits) -> None:
    store = with_crops(make_maps, {"train": 200, "test": 60}, identity=identity())
    other = make_maps(DRAWS[:2], identity=identity(1), rows={"test": 80}, name="other.zarr")
    (result,) = fits(store, "linear", mix_copies=True, test_store=other.path)
    assert (result["n_test"], len(result["test_top1_draws"])) == (80, 2)
    (plain,) = fits(store, "linear", mix_copies=True)
    assert len(plain["test_top1_draws"]) == 3
