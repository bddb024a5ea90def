"""Parts of the training rows: so many a class, a fraction, ids from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.probe import ProbeError, ProbeSpec, TooFewRows
from diffssl.probe.study import prepare
from diffssl.probe.subsets import Subset, choose_rows
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]
Fits = Callable[..., list[dict[str, Any]]]

IDS = np.array([f"{number:04d}.png" for number in range(600)], dtype=object)
LABELS = np.repeat([0, 1, 2, 2], 150)[np.random.default_rng(0).permutation(600)]
ROWS = np.arange(20, 580)


def chosen(**options: Any) -> NDArray[np.int64]:
    return choose_rows(Subset(**options), IDS, LABELS, ROWS)[0]


def test_shots_are_so_many_of_each_class_and_nested_in_each_repeat() -> None:
    for repeat in range(3):
        smaller: set[int] = set()
        for shots in (1, 2, 5, 50):
            rows = chosen(shots=shots, repeat=repeat)
            assert Counter(LABELS[rows].tolist()) == {0: shots, 1: shots, 2: shots}
            assert smaller < set(rows.tolist()) <= set(ROWS.tolist())
            assert (np.diff(rows) > 0).all()
            smaller = set(rows.tolist())


def test_repeats_are_other_rows() -> None:
    draws = [set(chosen(shots=5, repeat=repeat).tolist()) for repeat in range(20)]
    overlap = np.mean([len(one & other) for i, one in enumerate(draws) for other in draws[:i]])
    assert overlap < 2  # of 15; about 0.5 are expected of independent draws


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1.0])
def test_a_fraction_is_of_each_class(fraction: float) -> None:
    counts = Counter(LABELS[chosen(fraction=fraction)].tolist())
    whole = Counter(LABELS[ROWS].tolist())
    assert counts == {label: max(1, round(fraction * n)) for label, n in whole.items()}


def test_a_small_fraction_is_part_of_a_larger_one_and_of_each_class_there_is_one() -> None:
    small, large = chosen(fraction=0.001), chosen(fraction=0.2)
    assert Counter(LABELS[small].tolist()) == {0: 1, 1: 1, 2: 1}
    assert set(small) < set(large)


def test_the_choice_does_not_change_with_other_rows() -> None:
    """A store that grows keeps the order within what was there."""
    few, many = chosen(shots=150 - 60), choose_rows(Subset(shots=90), IDS[:580], LABELS[:580], ROWS)[0]
    np.testing.assert_array_equal(few, many)
    without = choose_rows(Subset(shots=5), IDS, LABELS, np.setdiff1d(ROWS, chosen(shots=5)[:1]))[0]
    assert len(np.intersect1d(without, chosen(shots=5))) == 14


def test_ids_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("0300.png\n0100.png\n\n0001.png\nnobody.png\n")
    rows, note = choose_rows(Subset(ids=path), IDS, LABELS, ROWS)
    assert rows.tolist() == [100, 300]
    assert note == f"2 training rows of the 4 ids in {path}"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(TooFewRows, match=r"class \d has 1\d\d training rows, fewer than --shots 200"):
        chosen(shots=200)
    path = tmp_path / "ids.txt"
    path.write_text("nobody\n")
    with pytest.raises(TooFewRows, match=r"none of its 1 ids is among the training rows, such as '0020\.png'"):
        chosen(ids=path)
    with pytest.raises(ProbeError, match=r"none\.txt: cannot be read as ids, one a line"):
        chosen(ids=tmp_path / "none.txt")


@pytest.mark.parametrize("options", [{"shots": [0]}, {"fraction": [0.0]}, {"fraction": [1.5]}, {"repeats": 0}])
def test_numbers_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--shots|--fraction|--repeats"):
        ProbeSpec("feats.zarr", ["linear"], **options)


# From a store


def test_a_fit_uses_exactly_the_rows_of_its_subset(make_maps: MakeStore) -> None:
    store = make_maps([FeatureKey(1, 10, 1)])
    labels = store.labels("train")
    lines: list[str] = []
    study = prepare(ProbeSpec(store.path, ["linear"], shots=[2, 5], fraction=[0.1], repeats=2), lines.append)
    assert len(study.groups) == 6
    subsets = [Subset(shots=2), Subset(shots=5), Subset(fraction=0.1)]
    subsets += [Subset(shots=2, repeat=1), Subset(shots=5, repeat=1), Subset(fraction=0.1, repeat=1)]
    for group, subset in zip(study.groups, subsets, strict=True):
        expected, note = choose_rows(subset, store.ids("train"), labels, np.arange(240))
        rows = group.protocol
        np.testing.assert_array_equal(np.union1d(rows.fit["train"], rows.select["train"]), expected)
        assert not np.intersect1d(rows.fit["train"], rows.select["train"]).size
        np.testing.assert_array_equal(rows.refit["train"], expected)
        np.testing.assert_array_equal(rows.moments["train"], expected)
        assert rows.test["test"].tolist() == list(range(120))
        assert set(labels[rows.fit["train"]].tolist()) == {0, 1, 2, 3}
        assert f"train: {note}" in lines


def test_more_shots_are_better_and_each_is_a_line(make_maps: MakeStore, fits: Fits, tmp_path: Path) -> None:
    store = make_maps([FeatureKey(1, 10, 1)])
    results = fits(store, "linear", shots=[2, 40], repeats=3)
    assert [(result["shots"], result["repeat"], result["n_train"]) for result in results] == [
        (shots, repeat, 4 * shots) for repeat in range(3) for shots in (2, 40)
    ]
    means = {shots: np.mean([result["test_top1"] for result in results if result["shots"] == shots]) for shots in (2, 40)}
    assert 0.3 < means[2] < means[40] - 0.02
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(store.ids("train")[:60]))
    (result,) = fits(store, "linear", train_ids=path)
    assert result["n_train"] == 60
    assert fits(store, "linear", train_ids=path) == [result]


def test_one_shot_cannot_choose_its_hyperparameters(make_maps: MakeStore, fits: Fits) -> None:
    with pytest.raises(TooFewRows, match=r"no row is left to choose hyper-parameters on, with 4 to train on; .* two rows"):
        fits(make_maps([FeatureKey(1, 10, 1)]), "linear", shots=[1])


def test_with_a_val_split_one_shot_is_enough(make_maps: MakeStore, fits: Fits) -> None:
    store = make_maps([FeatureKey(1, 10, 1)], rows={"train": 80, "val": 60, "test": 60})
    (result,) = fits(store, "linear", shots=[1], repeats=1)
    assert (result["n_train"], result["n_select"]) == (4, 60)  # val is not trained on, refit or not
    (protocol,) = (group.protocol for group in prepare(ProbeSpec(store.path, ["linear"], fraction=[0.1], repeats=1)).groups)
    assert protocol.refit.keys() == {"train"}
    assert protocol.moments.keys() == {"train"}
    (plain,) = fits(store, "linear")
    assert plain["n_train"] == 140


def test_all_subsets_of_a_run_read_the_ids_once(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = FeatureStore.ids

    def watch(self: FeatureStore, split: str) -> NDArray[np.object_]:
        asked.append(split)
        return read(self, split)

    store = make_store({"train": 200, "test": 60})
    monkeypatch.setattr(FeatureStore, "ids", watch)
    study = prepare(ProbeSpec(store.path, ["linear"], shots=[2, 5, 10], fraction=[0.5], repeats=3), lambda _: None)
    assert len(study.groups) == 12
    assert sorted(asked) == ["test", "train"]
