from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from diffssl.store import (
    FeatureKey,
    FeatureStore,
    Identity,
    IdentityMismatch,
    StoreError,
    StoreHeader,
    StoreNotFound,
    add_arrays,
    add_split,
    create,
)
from diffssl.store.create import check_header
from diffssl.store.journal import Commit
from diffssl.store.verify import verify
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
Expected = Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]
Ids = Callable[[str, int], NDArray[np.object_]]
Labels = Callable[[int], NDArray[np.int32]]

KEY = FeatureKey(2, 90, 2)
PROCESS = Path(__file__).with_name("writing_process.py")


def tree(folder: Path | str) -> dict[str, str]:
    """Digest of every file below a folder, but for what a killed writer leaves in the journal."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    digests = [sha256(path.read_bytes()).hexdigest() for path in files]
    return {name: digest for name, digest in zip(names, digests, strict=True) if not name.startswith("journal/tmp-")}


class TestCreate:
    def test_makes_a_store_without_splits(self, tmp_path: Path, header: StoreHeader) -> None:
        store = create(tmp_path / "deep" / "feats.zarr", header)
        assert store.splits == []
        assert store.header == StoreHeader.from_json(header.to_json())
        assert sorted(tree(store.path)) == ["journal/zarr.json", "zarr.json"]
        assert FeatureStore.open(store.path).feature_id == header.identity.feature_id

    def test_the_same_header_again_changes_nothing(self, store: FeatureStore, header: StoreHeader) -> None:
        before = tree(store.path)
        again = create(store.path, header)
        assert again.splits == ["test", "train"]
        create(store.path, replace(header, model="other name", versions={"diffssl": "9"}))
        assert tree(store.path) == before

    def test_in_an_empty_folder(self, tmp_path: Path, header: StoreHeader) -> None:
        (tmp_path / "feats.zarr").mkdir()
        assert create(tmp_path / "feats.zarr", header).splits == []

    def test_after_a_kill_before_the_journal(self, tmp_path: Path, header: StoreHeader) -> None:
        create(tmp_path / "feats.zarr", header)
        (tmp_path / "feats.zarr/journal/zarr.json").unlink()
        create(tmp_path / "feats.zarr", header)
        assert sorted(tree(tmp_path / "feats.zarr")) == ["journal/zarr.json", "zarr.json"]

    @pytest.mark.parametrize(
        ("change", "differences"),
        [
            ({"classes": ("cat", "cow")}, [("classes", ["cat", "dog"], ["cat", "cow"])]),
            ({"row_block": 8, "batch_size": 4}, [("batch_size", 2, 4), ("row_block", 4, 8)]),
            ({"dtype": "float32"}, [("dtype", "float16", "float32")]),
            ({"memory_format": "contiguous"}, [("memory_format", "channels_last", "contiguous")]),
        ],
    )
    def test_another_header_is_refused(
        self, store: FeatureStore, header: StoreHeader, change: dict[str, Any], differences: list[tuple[str, Any, Any]]
    ) -> None:
        before = tree(store.path)
        with pytest.raises(IdentityMismatch) as caught:
            create(store.path, replace(header, **change))
        assert caught.value.differences == differences
        for field, theirs, ours in differences:
            assert f"\n  {field}: store has {theirs!r}, now {ours!r}" in str(caught.value)
        assert tree(store.path) == before

    def test_another_identity_is_refused(self, store: FeatureStore, header: StoreHeader) -> None:
        fields = {
            "weights": "aaaa",
            "model": {"channels": 32, "layers": 2},
            "noise": {"scheme": 1, "seed": 7},
            "conditioning": None,
        }
        with pytest.raises(IdentityMismatch, match="made with other settings; use them, or choose another --store") as caught:
            create(store.path, replace(header, identity=Identity(fields)))
        assert [name for name, _, _ in caught.value.differences] == ["conditioning", "noise.seed", "weights"]
        assert ("noise.seed", 0, 7) in caught.value.differences

    @pytest.mark.parametrize("fields", [{"conditioning": None}, {"conditioning": {}}])
    def test_no_other_feature_id_is_let_in(self, header: StoreHeader, fields: dict[str, Any]) -> None:
        wanted = replace(header, identity=Identity({**header.identity.fields, **fields}))
        assert wanted.identity.feature_id != header.identity.feature_id
        with pytest.raises(IdentityMismatch, match="conditioning"):
            check_header("feats.zarr", header, wanted)

    @pytest.mark.parametrize("name", ["notes.txt", "photos/1.png"])
    def test_somebody_elses_folder_is_refused(self, tmp_path: Path, header: StoreHeader, name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(StoreError, match=f"the folder is not empty and not a feature store .*{name.split('/')[0]}"):
            create(tmp_path, header)
        assert list(tree(tmp_path)) == [name]

    def test_another_zarr_group_is_refused(self, tmp_path: Path, header: StoreHeader) -> None:
        zarr.create_group(tmp_path / "other.zarr", attributes={"title": "other"})
        before = tree(tmp_path)
        with pytest.raises(StoreNotFound, match="a Zarr group, but not a feature store"):
            create(tmp_path / "other.zarr", header)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("name", ["feats.zarr", "feats.zarr/below"])
    def test_a_file_in_the_way_is_refused(self, tmp_path: Path, header: StoreHeader, name: str) -> None:
        (tmp_path / "feats.zarr").write_bytes(b"mine")
        with pytest.raises(StoreError, match=name):
            create(tmp_path / name, header)
        assert (tmp_path / "feats.zarr").read_bytes() == b"mine"


class TestAddSplit:
    def test_the_same_again_changes_nothing(self, store: FeatureStore, ids: Ids, labels: Labels) -> None:
        before = tree(store.path)
        assert add_split(store, "train", ids("train", 10), labels(10)) == 0
        assert tree(store.path) == before

    @pytest.mark.parametrize("name", ["rows/zarr.json", "rows/id/c/0", "rows/label/zarr.json", "features/zarr.json"])
    def test_after_a_kill_it_is_completed(self, store: FeatureStore, ids: Ids, labels: Labels, name: str) -> None:
        before = tree(store.path)
        (Path(store.path) / "train" / name).unlink()
        add_split(FeatureStore.open(store.path), "train", ids("train", 10), labels(10))
        assert tree(store.path) == before

    def test_other_ids_are_refused(self, store: FeatureStore, ids: Ids, labels: Labels) -> None:
        before = tree(store.path)
        others = ids("train", 10).copy()
        others[3] = "cat/other.png"
        for wrong in (others, ids("train", 10)[::-1], ids("train", 9)):
            with pytest.raises(IdentityMismatch, match="other samples in its split 'train'; choose another --store") as caught:
                add_split(store, "train", wrong, labels(len(wrong)))
            assert caught.value.differences[0][0] == "data_id"
        assert tree(store.path) == before

    def test_other_labels_are_counted_and_the_stores_kept(self, store: FeatureStore, ids: Ids, labels: Labels) -> None:
        others = labels(10).copy()
        others[[2, 5, 7]] = -1
        different = int((others != labels(10)).sum())
        assert different > 0
        assert add_split(store, "train", ids("train", 10), others) == different
        assert FeatureStore.open(store.path).labels("train").tolist() == labels(10).tolist()

    def test_ids_and_labels_of_different_lengths_are_refused(self, tmp_path: Path, header: StoreHeader, ids: Ids) -> None:
        """Before anything is written: what is created is never replaced."""
        store = create(tmp_path / "feats.zarr", header)
        before = tree(store.path)
        with pytest.raises(ValueError, match=r"4.*3|3.*4"):
            add_split(store, "train", ids("train", 4), np.zeros(3, np.int32))
        assert tree(store.path) == before

    def test_names_of_any_script_and_length(self, tmp_path: Path, header: StoreHeader) -> None:
        store = create(tmp_path / "feats.zarr", header)
        names = np.array(["猫/1.png", "Größe/ü.png", "a" * 5000, "tab\t/n.png", "😀"], dtype=object)
        add_split(store, "train", names, np.zeros(5, np.int32))
        assert FeatureStore.open(store.path).ids("train").tolist() == names.tolist()

    def test_a_split_without_rows(self, tmp_path: Path, header: StoreHeader) -> None:
        store = create(tmp_path / "feats.zarr", header)
        add_split(store, "val", np.empty(0, object), np.empty(0, np.int32))
        add_arrays(store, "val", [KEY], {KEY: {}})
        opened = FeatureStore.open(store.path)
        assert (opened.n_rows("val"), len(opened.rows("val")), opened.missing([KEY], "val")) == (0, 0, [])


class TestExtending:
    """Nothing that is there is written again: old files stay byte for byte."""

    def check(self, path: str, before: Mapping[str, str], new: Sequence[str]) -> None:
        after = tree(path)
        assert {name: after.get(name) for name in before} == before
        added = sorted(after.keys() - before.keys())
        assert added
        assert [name for name in added if not name.startswith(tuple(new))] == []

    def test_by_a_split(self, store: FeatureStore, build: Build, expected: Expected) -> None:
        before = tree(store.path)
        extended = build(Path(store.path), splits={"val": 5})
        self.check(store.path, before, ["val/", "journal/val/"])
        assert extended.splits == ["test", "train", "val"]
        np.testing.assert_array_equal(extended.read(KEY, "val"), expected(extended, KEY, "val"))

    def test_by_settings(self, store: FeatureStore, build: Build, expected: Expected, keys: list[FeatureKey]) -> None:
        new = [FeatureKey(2, 50, 1), FeatureKey(1, 90, 4), FeatureKey(2, 90, 2, draw=1)]
        before = tree(store.path)
        extended = build(Path(store.path), keys=new)
        places = [f"{split}/features/{key}" for split in ("train", "test") for key in ("b2/p1", "b1/p4", "b2/p2/t90_d1")]
        self.check(store.path, before, [*places, "journal/"])
        assert extended.keys("train") == sorted(keys + new, key=lambda key: key.order)
        for key in keys + new:
            np.testing.assert_array_equal(extended.read(key, "train"), expected(extended, key, "train"))

    def test_by_row_blocks(self, tmp_path: Path, build: Build, expected: Expected) -> None:
        store = build(tmp_path / "feats.zarr", limit=4)
        before = tree(store.path)
        assert list(build(tmp_path / "whole.zarr").splits) == ["test", "train"]
        extended = build(tmp_path / "feats.zarr", row_blocks=[1, 2])
        self.check(store.path, before, ["train/features/", "test/features/", "journal/"])
        shards = {name: digest for name, digest in tree(store.path).items() if not name.startswith("journal/")}
        assert shards == {
            name: digest for name, digest in tree(tmp_path / "whole.zarr").items() if not name.startswith("journal/")
        }
        np.testing.assert_array_equal(extended.read(KEY, "train"), expected(extended, KEY, "train"))

    def test_arrays_again_change_nothing(self, store: FeatureStore, keys: list[FeatureKey]) -> None:
        before = tree(store.path)
        add_arrays(store, "train", keys, {key: {"alpha": 99.0} for key in keys})
        assert tree(store.path) == before


def plan(path: Path, header: StoreHeader, ranks: int = 1, forever: bool = False) -> dict[str, Any]:
    return {"store": str(path), "header": header.to_json(), "ranks": ranks, "forever": forever}


def start(
    folder: Path, plans: Sequence[Sequence[Mapping[str, Any]]], data: Mapping[str, NDArray[Any]]
) -> list[subprocess.Popen[str]]:
    """Start one process for each plan."""
    np.savez(folder / "data.npz", **data)  # type: ignore[arg-type]
    for name, trials in enumerate(plans):
        (folder / f"plan-{name}.json").write_text(json.dumps(trials))
    command = [sys.executable, "-W", "error", str(PROCESS), str(folder)]
    return [subprocess.Popen([*command, str(name)], stderr=subprocess.PIPE, text=True) for name in range(len(plans))]


def store_data(rng: np.random.Generator, ids: NDArray[np.object_], timesteps: Sequence[int]) -> dict[str, NDArray[Any]]:
    n_rows = len(ids)
    data: dict[str, NDArray[Any]] = {"ids": ids.astype(str), "labels": (np.arange(n_rows) % 2).astype(np.int32)}
    for timestep in timesteps:
        data[f"b1/p1/t{timestep}"] = rng.standard_normal((n_rows, 3, 1, 1)).astype(np.float16)
        data[f"b2/p2/t{timestep}"] = rng.standard_normal((n_rows, 5, 2, 2)).astype(np.float16)
    return data


def check_store(path: Path, data: Mapping[str, NDArray[Any]]) -> FeatureStore:
    store = FeatureStore.open(path)
    assert store.ids("train").tolist() == data["ids"].tolist()
    assert store.labels("train").tolist() == data["labels"].tolist()
    for name in data:
        if "/" in name:
            np.testing.assert_array_equal(store.read(FeatureKey.from_path(name), "train"), data[name])
    assert list(verify(store)) == []
    return store


class TestProcesses:
    """Real processes on an empty path, let go at the same instant."""

    def test_four_processes_race(self, tmp_path: Path, header: StoreHeader, ids: Ids) -> None:
        """First with one identity, then with two: exactly one of them wins."""
        same, mixed = 6, 6
        data = store_data(np.random.default_rng(0), ids("train", 10), [10, 90])
        headers = [header, replace(header, identity=Identity({**header.identity.fields, "weights": "beef"}))]
        paths = [tmp_path / f"{trial}.zarr" for trial in range(same + mixed)]
        plans = [
            [plan(path, headers[rank % 2 if trial >= same else 0], ranks=4) for trial, path in enumerate(paths)]
            for rank in range(4)
        ]
        processes = start(tmp_path, plans, data)
        errors = [process.communicate(timeout=120)[1] for process in processes]
        assert errors == [""] * 4
        assert [process.returncode for process in processes] == [0] * 4
        ends = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
        for trial, path in enumerate(paths):
            store = check_store(path, data)
            assert [name for name in tree(path) if "tmp-" in name] == []
            won = [end[trial] == "done" for end in ends]
            if trial < same:
                assert won == [True] * 4
                assert store.feature_id == header.identity.feature_id
                continue
            assert won in ([True, False] * 2, [False, True] * 2)
            assert store.feature_id == headers[won.index(True)].identity.feature_id
            for end in (end[trial] for end, good in zip(ends, won, strict=True) if not good):
                assert "weights: store has" in end

    def test_killed_at_random_moments(self, tmp_path: Path, header: StoreHeader, ids: Ids) -> None:
        """SIGKILL loses at most what was not committed, and the completed store is that of an uninterrupted run."""
        seed = random.randrange(2**32)
        print(f"seed {seed}")  # shown if the test fails
        rng = random.Random(seed)
        data = store_data(np.random.default_rng(0), ids("train", 50), [10, 90])
        # From the first documents to the middle of the row blocks.
        moments = [rng.randint(1, 14), rng.randint(14, 30), rng.randint(30, 60), rng.randint(60, 90)]
        paths = [tmp_path / str(victim) / "feats.zarr" for victim in range(len(moments))]
        victims = []
        for path in paths:
            path.parent.mkdir()
            victims += start(path.parent, [[plan(path, header, forever=True)]], data)
        waiting = dict(zip(paths, zip(moments, victims, strict=True), strict=True))
        while waiting:
            for path, (moment, victim) in list(waiting.items()):
                if sum(len(names) for _, _, names in os.walk(path)) >= moment:
                    time.sleep(rng.random() * 0.01)
                    victim.kill()
                    del waiting[path]
                assert victim.poll() in (None, -9), victim.communicate()[1]
            time.sleep(0.0005)
        for victim in victims:
            victim.communicate(timeout=60)
        assert [victim.returncode for victim in victims] == [-9] * len(victims)

        committed = [self.committed_units(path, data) for path in paths]
        assert min(committed) < 26  # of 26: not all were killed after their end
        assert max(committed) > 0  # nor before their beginning
        whole = tmp_path / "whole.zarr"
        rest = [plan(path, header) for path in [*paths, whole]]
        (process,) = start(tmp_path, [rest], data)
        assert process.communicate(timeout=120)[1] == ""
        for path in paths:
            check_store(path, data)
            assert tree(path) == tree(whole)

    def committed_units(self, path: Path, data: Mapping[str, NDArray[Any]]) -> int:
        """Check that what is committed reads right; how many units are."""
        try:
            store = FeatureStore.open(path)
        except StoreNotFound:  # killed before the root was there
            assert list(tree(path)) == []
            return 0
        if "train" not in store.splits:
            return 0
        if store.keys("train"):
            assert list(verify(store)) == []
        for key in store.keys("train"):
            for block in store.journal.row_blocks("train", key):
                rows = slice(block * 4, block * 4 + 4)
                np.testing.assert_array_equal(store.read(key, "train", rows), data[key.path][rows])
        return store.journal.commits()


def test_two_commits_of_one_unit_are_legal(tmp_path: Path, build: Build, commit_unit: Callable[..., Commit]) -> None:
    """Two workers that did not see each other: the same files, and the same commit, are written twice."""
    first = build(tmp_path / "feats.zarr", row_blocks=[])
    second = FeatureStore.open(first.path)
    values = np.ones((4, 5, 2, 2), np.float16)
    assert commit_unit(first, "train", 0, {KEY: values}).name == commit_unit(second, "train", 0, {KEY: values}).name
    before = tree(first.path)
    commit_unit(second, "train", 0, {KEY: values})
    assert tree(first.path) == before
