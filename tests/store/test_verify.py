from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from diffssl.store import FeatureKey, FeatureStore, StoreHeader
from diffssl.store import layout as layout_module
from diffssl.store.verify import Damage, committed_shards, verify

Build = Callable[..., FeatureStore]

KEY = FeatureKey(2, 90, 2)
SHARD = "train/features/b2/p2/t90/c.1.0.0.0"
DAMAGE = f"train: row block 1, block 2, timestep 90, pool 2: {{}} ({SHARD})"


def lines(store: FeatureStore) -> list[str]:
    return [str(damage) for damage in verify(FeatureStore.open(store.path))]


def test_a_sound_store(small: FeatureStore) -> None:
    done: list[int] = []
    assert list(verify(small, done.append)) == []
    assert sum(done) == len(committed_shards(small)) == 3 * 3 + 3 * 2


def test_committed_shards(tmp_path: Path, header: StoreHeader, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row blocks of eight rows in shards of four; the second row block is not committed, the last one is short."""
    monkeypatch.setattr(layout_module, "MAX_SHARD_BYTES", 4 * 40)
    store = build(
        tmp_path / "feats.zarr", header=replace(header, row_block=8), splits={"all": 18}, keys=[KEY], row_blocks=[0, 2]
    )
    assert committed_shards(store) == [("all", KEY, 0, 0), ("all", KEY, 0, 1), ("all", KEY, 2, 4)]
    assert lines(store) == []


def test_rows_left_out_are_not_damage(tmp_path: Path, build: Build) -> None:
    assert lines(build(tmp_path / "feats.zarr", left_out={("train", 90): [5, 9]})) == []


def test_what_is_not_committed_is_not_read(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", row_blocks=[0])
    (Path(store.path) / SHARD).write_bytes(b"half a shard of a killed writer")
    assert lines(store) == []


def test_every_flipped_byte_is_named(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, keys=[KEY])
    file = Path(store.path) / SHARD
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        reason = "chunk 0 does not have its checksum" if at < 164 else "its index is damaged"
        assert [str(damage) for damage in verify(store)] == [DAMAGE.format(reason)]


@pytest.mark.parametrize("length", [0, 1, 163, 164, 183])
def test_a_truncated_shard_is_named(store: FeatureStore, length: int) -> None:
    file = Path(store.path) / SHARD
    file.write_bytes(file.read_bytes()[:length])
    assert lines(store) == [DAMAGE.format(f"the file is cut short: 184 bytes wanted, {length} there")]


def test_a_longer_shard_is_named(store: FeatureStore) -> None:
    with (Path(store.path) / SHARD).open("ab") as file:
        file.write(b"\0")
    assert lines(store) == [DAMAGE.format("the file is too long: 184 bytes wanted, 185 there")]


def test_a_removed_shard_is_named(store: FeatureStore) -> None:
    (Path(store.path) / SHARD).unlink()
    assert lines(store) == [DAMAGE.format("the file is missing")]


def test_a_folder_in_place_of_a_shard_is_named(store: FeatureStore) -> None:
    (Path(store.path) / SHARD).unlink()
    (Path(store.path) / SHARD).mkdir()
    (line,) = lines(store)
    assert line.startswith("train: row block 1, block 2, timestep 90, pool 2: [Errno 21]")


@pytest.mark.parametrize("other", [SHARD.replace("t90", "t10"), SHARD.replace("c.1", "c.0")])
def test_another_shard_in_its_place_is_named(store: FeatureStore, other: str) -> None:
    shutil.copy(Path(store.path) / other, Path(store.path) / SHARD)
    (damage,) = verify(store)
    assert (damage.split, damage.key, damage.row_block) == ("train", KEY, 1)
    assert "is in no commit" in damage.reason


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_what_others_wrote_is_named(store: FeatureStore, value: float) -> None:
    zarr.open_array(Path(store.path) / "train/features/b2/p2/t90", mode="r+")[5, 0, 0, 0] = value
    (damage,) = verify(store)
    assert (damage.split, damage.key, damage.row_block) == ("train", KEY, 1)
    assert "is in no commit" in damage.reason


@pytest.mark.parametrize("name", ["id", "label"])
def test_damaged_rows_are_named_and_the_rest_is_read(store: FeatureStore, name: str) -> None:
    file = Path(store.path) / f"test/rows/{name}/c/0"
    file.write_bytes(file.read_bytes()[:-1])
    (Path(store.path) / SHARD).unlink()
    first, second = verify(FeatureStore.open(store.path))
    assert (first.split, first.key, first.row_block) == ("test", None, None)
    assert str(first).startswith("test: rows: ")
    assert f"test/rows/{name}" in first.reason
    assert str(second) == DAMAGE.format("the file is missing")


@pytest.mark.parametrize("name", ["id", "label"])
def test_removed_rows_are_named(store: FeatureStore, name: str) -> None:
    (Path(store.path) / f"test/rows/{name}/c/0").unlink()
    (damage,) = verify(FeatureStore.open(store.path))
    assert (damage.split, damage.key) == ("test", None)


def test_a_split_that_lost_its_document_is_named(store: FeatureStore) -> None:
    """The journal still has its commits: a whole split must not go unnoticed."""
    (Path(store.path) / "test/zarr.json").unlink()
    assert [damage.split for damage in verify(FeatureStore.open(store.path))] == ["test"]


def test_everything_damaged_is_everything_named(store: FeatureStore) -> None:
    for file in Path(store.path).rglob("c.*.0.0.0"):
        file.write_bytes(b"")
    found = [(damage.split, damage.key, damage.row_block) for damage in verify(store)]
    assert found == [(split, key, block) for split, key, block, _ in committed_shards(store)]


def test_damage_is_one_line() -> None:
    assert str(Damage("train", KEY, 1, "gone")) == "train: row block 1, block 2, timestep 90, pool 2: gone"
    assert str(Damage("train", None, None, "gone")) == "train: rows: gone"
