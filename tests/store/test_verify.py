from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from diffssl.store import CorruptStore, FeatureKey, FeatureStore, StoreHeader, canonical_json
from diffssl.store import layout as layout_module
from diffssl.store.journal import Commit
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
    assert first.file == f"test/rows/{name}"
    assert str(first).startswith(f"test/rows/{name}: it cannot be read (")
    assert str(second) == DAMAGE.format("the file is missing")


@pytest.mark.parametrize("name", ["id", "label"])
def test_removed_rows_are_named(store: FeatureStore, name: str) -> None:
    (Path(store.path) / f"test/rows/{name}/c/0").unlink()
    (damage,) = verify(FeatureStore.open(store.path))
    assert (damage.split, damage.key, damage.file) == ("test", None, f"test/rows/{name}")


DOCUMENTS = [
    "journal",
    "train",
    "train/rows",
    "train/features",
    "train/features/b2",
    "train/features/b2/p2",
    "train/features/b2/p2/t90",
]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"zarr_format": 2}', b"\xff"], ids=repr)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_damaged_document_is_named(store: FeatureStore, name: str, content: bytes | None) -> None:
    file = Path(store.path) / name / "zarr.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    (damage,) = verify(FeatureStore.open(store.path, tolerant=True))
    assert damage.file == f"{name}/zarr.json"
    assert damage.split == (None if name == "journal" else "train")
    assert damage.key == (KEY if name.endswith("t90") else None)


def test_a_document_of_another_array_is_named(store: FeatureStore) -> None:
    shutil.copy(Path(store.path) / "test/features/b2/p2/t90/zarr.json", Path(store.path) / "train/features/b2/p2/t90/zarr.json")
    assert lines(store) == ["train/features/b2/p2/t90/zarr.json: its shape is [6, 5, 2, 2] instead of [10, 5, 2, 2]"]


def test_a_damaged_root_is_named(store: FeatureStore) -> None:
    file = Path(store.path) / "zarr.json"
    file.write_text(file.read_text().replace('"zarr_format": 3', '"zarr_format": 2'))
    assert lines(store) == ["zarr.json: its zarr_format is 2 instead of 3"]


@pytest.mark.parametrize("name", ["", "train", "train/features/b2", "train/features/b2/p2/t90"])
def test_attributes_of_others_are_no_damage(store: FeatureStore, name: str) -> None:
    """Zarr writes the whole document anew, in its own way."""
    node = zarr.open(Path(store.path) / name, mode="r+")
    node.attrs["title"] = "ours"
    assert "ours" in (Path(store.path) / name / "zarr.json").read_text()
    assert lines(store) == []


def test_arrays_without_commits_may_lack_their_document(tmp_path: Path, build: Build) -> None:
    """A writer was killed before it wrote anything; somebody's own folders are nobody's business."""
    store = build(tmp_path / "feats.zarr", row_blocks=[])
    (Path(store.path) / "train/features/b1/p1/t10/zarr.json").unlink()
    zarr.create_group(Path(store.path) / "train/features/b1/p1/mine")
    zarr.create_group(Path(store.path) / "notes")
    assert lines(store) == []


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw.replace(b'"limit":null', b'"limit":3')])
def test_a_damaged_commit_is_named_and_the_rest_is_read(store: FeatureStore, change: Callable[[bytes], bytes]) -> None:
    name = next(name for name in store.journal.names("train") if "000001-t90" in name)
    file = Path(store.path) / name
    file.write_bytes(change(file.read_bytes()))
    (Path(store.path) / SHARD.replace("t90", "t10")).unlink()
    with pytest.raises(CorruptStore, match="diffssl-store repair"):
        FeatureStore.open(store.path)
    first, second = verify(FeatureStore.open(store.path, tolerant=True))
    assert (first.split, first.file) == ("train", name)
    assert (second.split, second.key, second.row_block) == ("train", FeatureKey(2, 10, 2), 1)


@pytest.mark.parametrize("limit", range(4))  # the name goes by the content: it comes before the sound commit or after it
def test_a_commit_with_another_number_of_shards_is_named(store: FeatureStore, limit: int) -> None:
    wrong = Commit("train", 1, 90, {KEY.path: ["00000000", "00000000"]}, limit=limit)
    store.storage.create(wrong.name, canonical_json(wrong.to_json()))
    with pytest.raises(CorruptStore, match="diffssl-store repair"):
        FeatureStore.open(store.path)
    found = list(verify(FeatureStore.open(store.path, tolerant=True)))
    assert all("2" in damage.reason and "shards" in damage.reason for damage in found)
    assert (found[0].split, len(found)) == ("train", 1 if found[0].file == wrong.name else 2)


def test_what_the_storage_does_not_give_is_told_from_damage(store: FeatureStore) -> None:
    for name in (SHARD, "train/features/b1/zarr.json"):
        (Path(store.path) / name).unlink()
        (Path(store.path) / name).mkdir()
    found = list(verify(FeatureStore.open(store.path)))
    assert [damage.failed for damage in found] == [True, True]


def test_a_split_that_lost_its_document_is_named(store: FeatureStore) -> None:
    """The journal still has its commits: a whole split must not go unnoticed."""
    (Path(store.path) / "test/zarr.json").unlink()
    assert [damage.file for damage in verify(FeatureStore.open(store.path))] == ["test/zarr.json"]


def test_a_split_that_lost_all_but_its_ids_is_named(store: FeatureStore) -> None:
    (Path(store.path) / "test/zarr.json").unlink()
    shutil.rmtree(Path(store.path) / "journal/test")
    assert [damage.file for damage in verify(FeatureStore.open(store.path))] == ["test/zarr.json"]


def test_everything_damaged_is_everything_named(store: FeatureStore) -> None:
    for file in Path(store.path).rglob("c.*.0.0.0"):
        file.write_bytes(b"")
    found = [(damage.split, damage.key, damage.row_block) for damage in verify(store)]
    assert found == [(split, key, block) for split, key, block, _ in committed_shards(store)]


def test_damage_is_one_line() -> None:
    assert str(Damage("train", KEY, 1, "gone")) == "train: row block 1, block 2, timestep 90, pool 2: gone"
    assert str(Damage("train", None, None, "gone", "train/rows/id")) == "train/rows/id: gone"
