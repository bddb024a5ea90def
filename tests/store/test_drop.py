from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.store import FeatureKey, FeatureStore, UnknownFeatures
from diffssl.store.choice import Choice
from diffssl.store.drop import drop, plan_drop
from diffssl.store.verify import verify
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
Expected = Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]

PROCESS = Path(__file__).with_name("killed_process.py")
A, B, C = FeatureKey(1, 10, 1), FeatureKey(2, 10, 2), FeatureKey(2, 90, 2)


def tree(folder: Path | str) -> dict[str, str]:
    """Digest of every file below a folder, but for what a killed writer leaves in the journal."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    digests = [sha256(path.read_bytes()).hexdigest() for path in files]
    return {name: digest for name, digest in zip(names, digests, strict=True) if not name.startswith("journal/tmp-")}


def folders(root: Path | str) -> set[str]:
    return {path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_dir()}


def dropped(store: FeatureStore, **choice: Any) -> FeatureStore:
    drop(store, plan_drop(store, Choice(**choice)))
    return FeatureStore.open(store.path)


DROPS: list[tuple[dict[str, Any], dict[str, list[FeatureKey]]]] = [
    ({"blocks": {2: set()}}, {"train": [A], "test": [A]}),
    ({"timesteps": [90]}, {"train": [A, B], "test": [A, B]}),
    ({"pools": [1], "splits": ["test"]}, {"train": [A, B, C], "test": [B, C]}),
    ({"splits": ["train"]}, {"train": [], "test": [A, B, C]}),
    ({"splits": ["train", "test"]}, {"train": [], "test": []}),
]


@pytest.mark.parametrize(("choice", "kept"), DROPS, ids=str)
def test_what_is_dropped_is_gone_and_the_rest_is_as_it_was(
    store: FeatureStore, expected: Expected, choice: dict[str, Any], kept: Mapping[str, list[FeatureKey]]
) -> None:
    before = tree(store.path)
    after = dropped(store, **choice)
    assert {split: after.keys(split) for split in after.splits} == kept
    assert {split: after.arrays(split) for split in after.splits} == kept
    assert list(verify(after)) == []
    for split, keys in kept.items():
        assert after.ids(split).tolist() == store.ids(split).tolist()
        assert after.labels(split).tolist() == store.labels(split).tolist()
        for key in keys:
            np.testing.assert_array_equal(after.read(key, split), expected(after, key, split))
        for key in {A, B, C} - set(keys):
            with pytest.raises(UnknownFeatures, match=f"{split} has no features of block"):
                after.read(key, split)
    left = {name: digest for name, digest in tree(store.path).items() if not name.startswith("journal/")}
    assert left.items() <= before.items()
    assert [folder for folder in folders(store.path) if not list((Path(store.path) / folder).iterdir())] == []
    assert {name.split("/features/")[1].rsplit("/", 1)[0] for name in left if name.count("/") == 5} == {
        key.path for keys in kept.values() for key in keys
    }


def test_the_plan_says_what_will_go(store: FeatureStore) -> None:
    before = tree(store.path)
    plan = plan_drop(store, Choice(splits=["train"], blocks={2: set()}))
    assert (plan.arrays, len(plan.shards)) == (2, 6)
    assert plan.bytes == sum((Path(store.path) / name).stat().st_size for name in plan.shards)
    assert tree(store.path) == before


def test_what_a_commit_says_of_the_rest_is_kept(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", left_out={("train", 10): [5]}, limit=8)
    after = dropped(store, blocks={2: set()})
    assert after.rows("train").left_out.keys() == {5}
    assert after.wanted_rows([A], "train") == 8
    assert after.journal.command("train", A) == store.journal.command("train", A)


def test_what_was_dropped_can_be_extracted_again(store: FeatureStore, build: Build) -> None:
    before = tree(store.path)
    after = dropped(store, splits=["train", "test"])
    build(Path(after.path))
    assert tree(store.path) == before


def test_shards_without_commits_are_dropped(tmp_path: Path, build: Build) -> None:
    """What a killed extraction left, and a folder of which not even the document is there."""
    store = build(tmp_path / "feats.zarr", row_blocks=[])
    store.storage.replace(
        {"train/features/b2/p2/t90/c.1.0.0.0": [b"half a shard"], "train/features/b2/p2/t10/c.0.0.0.0": [b""]}
    )
    store.storage.remove("train/features/b2/p2/t10/zarr.json")
    after = dropped(store, splits=["train"])
    assert after.arrays("train") == []
    assert not (tmp_path / "feats.zarr/train/features/b2").exists()
    with pytest.raises(UnknownFeatures, match="there are no settings to drop in train"):
        plan_drop(after, Choice(splits=["train"]))


def test_files_of_others_are_left(store: FeatureStore) -> None:
    note = Path(store.path) / "train/features/b2/p2/t90/note.txt"
    note.write_text("mine")
    after = dropped(store, timesteps=[90])
    assert note.read_text() == "mine"
    assert after.arrays("train") == [A, B]


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"blocks": {1: set(), 3: set()}}, "there is no block 3 "),
        ({"timesteps": [50]}, "there is no timestep 50 "),
        ({"splits": ["val"]}, "there is no split 'val'; the store has: test, train"),
    ],
)
def test_unknown_settings_change_nothing(store: FeatureStore, choice: dict[str, Any], text: str) -> None:
    before = tree(store.path)
    with pytest.raises(UnknownFeatures, match=text):
        dropped(store, **choice)
    assert tree(store.path) == before


def test_killed_at_every_change_of_the_disk(store: FeatureStore, tmp_path: Path, expected: Expected) -> None:
    """Whatever has a commit is whole, nothing else is touched, and the same drop again ends as one that was not killed."""
    (tmp_path / "killed").mkdir()
    options = ["--blocks", "1,2@2", "--splits", "train", "--timesteps", "10", "--yes"]
    subprocess.run([sys.executable, str(PROCESS), store.path, str(tmp_path / "killed"), "drop", *options], check=True)
    copies = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.stem))
    end, end_folders = tree(copies[-1]), folders(copies[-1])
    assert len(copies) > 15
    dropped_keys = 0
    for path in copies:
        opened = FeatureStore.open(path)
        assert [damage for damage in verify(opened) if damage.row_block is not None] == []
        for split in ("train", "test"):
            for key in opened.keys(split):
                blocks = sorted(opened.journal.row_blocks(split, key))
                rows = slice(blocks[0] * 4, (blocks[-1] + 1) * 4)
                np.testing.assert_array_equal(opened.read(key, split, rows), expected(opened, key, split)[rows])
        assert opened.keys("test") == [A, B, C]
        assert C in opened.keys("train")
        dropped_keys += len(opened.keys("train")) == 1
        try:
            dropped(opened, blocks={1: set(), 2: {2}}, splits=["train"], timesteps=[10])
        except UnknownFeatures:  # it was killed while it removed empty folders
            assert opened.arrays("train") == [C]
        assert tree(path) == end
        assert not [name for name in folders(path) - end_folders if [*(path / name).rglob("t*")]]
    assert 1 < dropped_keys < len(copies)
