"""Thumbnails in a store: with every promise that features have, and without a trace where there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from diffssl.store import (
    CorruptStore,
    FeatureKey,
    FeatureStore,
    IdentityMismatch,
    IncompleteFeatures,
    StoreHeader,
    ThumbnailKey,
    UnitWriter,
    UnknownFeatures,
    add_split,
    add_thumbnails,
)
from diffssl.store.choice import Choice
from diffssl.store.cli import main
from diffssl.store.describe import describe, not_committed, progress_table
from diffssl.store.drop import drop, plan_drop, plan_drop_thumbnails
from diffssl.store.hdf5 import export_hdf5
from diffssl.store.hdf5_import import import_hdf5
from diffssl.store.journal import Commit
from diffssl.store.key import array_key
from diffssl.store.repair import repair
from diffssl.store.verify import verify
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
AddPictures = Callable[..., NDArray[np.uint8]]
Program = Callable[..., int]
WithPictures = tuple[FeatureStore, NDArray[np.uint8]]

KEY = ThumbnailKey(8)
DOCUMENT = "train/images/thumbnail/zarr.json"


def tree(folder: Path | str) -> dict[str, str]:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def lines(store: FeatureStore) -> list[str]:
    return [str(damage) for damage in verify(FeatureStore.open(store.path, tolerant=True))]


@pytest.fixture
def with_pictures(store: FeatureStore, add_pictures: AddPictures) -> WithPictures:
    pictures = add_pictures(store.path, "train")
    return FeatureStore.open(store.path), pictures


# --- what they are


def test_a_path_names_what_a_commit_holds() -> None:
    assert array_key(KEY.path) == KEY
    assert array_key("b2/p2/t90") == FeatureKey(2, 90, 2)
    assert str(KEY) == "thumbnails of 8x8 pixels"
    with pytest.raises(ValueError, match="not the path"):
        array_key("thumbnail")
    with pytest.raises(ValueError, match="positive number of pixels, got 0"):
        ThumbnailKey(0)


def test_reading(with_pictures: WithPictures) -> None:
    store, pictures = with_pictures
    np.testing.assert_array_equal(store.thumbnails("train"), pictures)
    np.testing.assert_array_equal(store.thumbnails("train", slice(3, 9)), pictures[3:9])
    assert store.thumbnails("train").dtype == np.uint8
    assert store.thumbnail("train") == KEY
    assert store.thumbnail("test") is None
    assert all(isinstance(key, FeatureKey) for key in store.keys("train"))


def test_plain_zarr_and_xarray_read_them(with_pictures: WithPictures) -> None:
    store, pictures = with_pictures
    array: Any = zarr.open_group(store.path, mode="r")["train/images/thumbnail"]
    assert array.metadata.dimension_names == ("row", "y", "x", "colour")
    assert array.fill_value == 0
    np.testing.assert_array_equal(array[:], pictures)
    thumbnail = xr.open_zarr(store.path, group="train/images", consolidated=False)["thumbnail"]
    assert thumbnail.dims == ("row", "y", "x", "colour")
    assert thumbnail.dtype == np.uint8
    np.testing.assert_array_equal(thumbnail, pictures)


def test_an_image_that_could_not_be_decoded_is_black(store: FeatureStore, add_pictures: AddPictures) -> None:
    pictures = add_pictures(store.path, "train", left_out=[1, 6])
    opened = FeatureStore.open(store.path)
    assert not opened.thumbnails("train")[[1, 6]].any()
    np.testing.assert_array_equal(opened.thumbnails("train"), pictures)
    assert sorted(opened.journal.left_out("train", KEY)) == [1, 6]
    assert lines(opened) == []


def test_features_and_thumbnails_are_units_of_their_own(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="settings or thumbnails, got both"):
        UnitWriter(store, "train", 0, [FeatureKey(2, None, 2), KEY], ["a"] * 4)


# --- stores and readers of before


def test_a_commit_without_thumbnails_is_what_it_was() -> None:
    value = {"split": "train", "row_block": 0, "timestep": 10, "arrays": {"b1/p1/t10": ["00000000"]}, "left_out": []}
    value |= {"limit": None, "command": "c", "versions": {}}
    assert Commit.from_json(value).to_json() == value


def test_readers_of_features_see_an_empty_commit(with_pictures: WithPictures) -> None:
    """Those that know nothing of thumbnails take ``arrays`` for all that there is, and ignore other fields."""
    store, _ = with_pictures
    commits = [json.loads(path.read_text()) for path in (Path(store.path) / "journal/train").glob("*-images-*.json")]
    assert sorted(commit["row_block"] for commit in commits) == [0, 1, 2]
    assert all(commit["arrays"] == {} and commit["timestep"] is None for commit in commits)
    assert all([*commit["images"]] == ["thumbnail-8"] for commit in commits)


def test_adding_them_touches_nothing(store: FeatureStore, add_pictures: AddPictures) -> None:
    before = tree(store.path)
    add_pictures(store.path, "train")
    after = tree(store.path)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    assert all(name.startswith(("train/images/", "journal/train/")) for name in new)


# --- what is not there


def test_a_store_without_them_says_how_to_make_them(small: FeatureStore) -> None:
    command = f"diffssl-extract --thumbnails 64 --blocks 1,2 --timesteps 10,90 --store {small.path}"
    with pytest.raises(UnknownFeatures, match=f"train has no thumbnails of its images. Make them with:\n  {command}$"):
        small.thumbnails("train")
    with pytest.raises(UnknownFeatures, match="there is no split 'x'"):
        small.thumbnails("x")


def test_thumbnails_that_are_not_committed(store: FeatureStore, add_pictures: AddPictures) -> None:
    pictures = add_pictures(store.path, "train", row_blocks=[0])
    opened = FeatureStore.open(store.path)
    np.testing.assert_array_equal(opened.thumbnails("train", slice(4)), pictures[:4])
    with pytest.raises(
        IncompleteFeatures, match=r"(?s)6 of 10 rows of train, thumbnails of 8x8 pixels.*--thumbnails 8 --store"
    ):
        opened.thumbnails("train")
    (Path(store.path) / "train/images/thumbnail/c.1.0.0.0").write_bytes(b"half a shard of a killed writer")
    assert lines(opened) == []


def test_a_pilot(store: FeatureStore, add_pictures: AddPictures) -> None:
    add_pictures(store.path, "train", row_blocks=[0, 1], limit=6)
    assert FeatureStore.open(store.path).thumbnails("train").shape == (6, 8, 8, 3)


def test_another_size_is_refused(with_pictures: WithPictures) -> None:
    store, _ = with_pictures
    before = tree(store.path)
    for split in ("train", "test"):
        with pytest.raises(
            IdentityMismatch, match=r"remove them with .*drop .* --thumbnails' first\n  thumbnails: store has 8, now 16"
        ):
            add_thumbnails(store, split, ThumbnailKey(16))
    assert tree(store.path) == before


# --- damage


def test_every_damaged_shard_is_found_and_made_due_again(with_pictures: WithPictures, add_pictures: AddPictures) -> None:
    store, pictures = with_pictures
    shard = Path(store.path) / "train/images/thumbnail/c.1.0.0.0"
    good = shard.read_bytes()
    shard.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    assert [line.split(":")[1] for line in lines(store)] == [" row block 1, thumbnails of 8x8 pixels"]
    with pytest.raises(CorruptStore, match="row block 1 of train, thumbnails of 8x8 pixels"):
        store.thumbnails("train")
    done = repair(store.path, say=lambda _: None)
    assert (done.forgotten, done.mended) == (1, 0)
    assert done.commands == {"diffssl-extract --blocks 1 --timesteps 10 --thumbnails 8"}
    opened = FeatureStore.open(store.path)
    assert opened.missing([KEY], "train") == [1]
    assert opened.missing(opened.keys("train"), "train") == []
    add_pictures(store.path, "train", row_blocks=[1])
    np.testing.assert_array_equal(FeatureStore.open(store.path).thumbnails("train"), pictures)


@pytest.mark.parametrize("content", [None, b"not JSON", b'{"shape": "none"}', b"[]"])
@pytest.mark.parametrize("committed", [True, False])
def test_a_damaged_document(store: FeatureStore, add_pictures: AddPictures, content: bytes | None, committed: bool) -> None:
    pictures = add_pictures(store.path, "train", row_blocks=None if committed else [])
    document = Path(store.path) / DOCUMENT
    good = document.read_bytes()
    if content is None:
        document.unlink()
    else:
        document.write_bytes(content)
        with pytest.raises((CorruptStore, IdentityMismatch)):
            add_thumbnails(FeatureStore.open(store.path), "train", KEY)
    found = lines(store)
    assert len(found) == (0 if content is None and not committed else 1)
    assert all(line.startswith(DOCUMENT) for line in found)
    repair(store.path, say=lambda _: None)
    add_thumbnails(FeatureStore.open(store.path), "train", KEY)
    assert document.read_bytes() == good
    assert lines(store) == []
    if committed:
        np.testing.assert_array_equal(FeatureStore.open(store.path).thumbnails("train"), pictures)


def test_a_damaged_group_is_written_anew(with_pictures: WithPictures) -> None:
    store, _ = with_pictures
    (Path(store.path) / "train/images/zarr.json").unlink()
    assert lines(store) == ["train/images/zarr.json: the document is missing"]
    assert repair(store.path, say=lambda _: None).mended == 1
    assert lines(store) == []


def test_thumbnails_of_nobody_knows_whom(with_pictures: WithPictures, labels: Any, ids: Any) -> None:
    """Without a split's document and ids, all that was said of its rows goes."""
    store, _ = with_pictures
    (Path(store.path) / "train/zarr.json").unlink()
    (Path(store.path) / "train/rows/id/c/0").unlink()
    done = repair(store.path, say=lambda _: None)
    assert "diffssl-extract --blocks 1 --timesteps 10 --thumbnails 8" in done.commands
    assert not (Path(store.path) / DOCUMENT).exists()
    opened = FeatureStore.open(store.path)
    assert opened.splits == ["test"]
    add_split(opened, "train", ids("train", 10), labels(10))
    with pytest.raises(UnknownFeatures, match="train has no thumbnails"):
        opened.thumbnails("train")
    assert lines(opened) == []


def test_replaced_images_are_due_again(store: FeatureStore, add_pictures: AddPictures) -> None:
    add_pictures(store.path, "train", left_out=[5])
    assert repair(store.path, bad=True, say=lambda _: None).forgotten == 1
    assert FeatureStore.open(store.path).missing([KEY], "train") == [1]


def test_a_limit_is_not_lowered_by_repair(store: FeatureStore, add_pictures: AddPictures) -> None:
    add_pictures(store.path, "train", row_blocks=[0], limit=4)
    add_pictures(store.path, "train", row_blocks=[1, 2])
    for shard in (1, 2):
        (Path(store.path) / f"train/images/thumbnail/c.{shard}.0.0.0").unlink()
    repair(store.path, say=lambda _: None)
    with pytest.raises(IncompleteFeatures, match="6 of 10 rows"):
        FeatureStore.open(store.path).thumbnails("train")


# --- in words


def test_in_words(store: FeatureStore, add_pictures: AddPictures) -> None:
    add_pictures(store.path, "train", row_blocks=[0, 2], left_out=[1])
    opened = FeatureStore.open(store.path)
    described = describe(opened)
    assert "  thumbnails of 8x8 pixels" in described
    assert "  1 samples could not be decoded and are left out:" in described
    table, complete = progress_table(opened)
    assert not complete
    assert [line.split() for line in table if "thumbnail" in line] == [
        ["thumbnail-8", "6", "of", "10", "rows", "60.0%", "1", "row", "blocks", "missing"]
    ]
    assert not_committed(opened) == ["train: row block 1, thumbnails of 8x8 pixels"]


# --- dropping


def test_dropping_them_leaves_the_store_of_before(store: FeatureStore, add_pictures: AddPictures) -> None:
    before = tree(store.path)
    add_pictures(store.path, "train")
    add_pictures(store.path, "test")
    opened = FeatureStore.open(store.path)
    plan = plan_drop_thumbnails(opened, None)
    assert (plan.arrays, len(plan.shards)) == (2, 3 + 2)
    assert plan.bytes == sum((Path(store.path) / name).stat().st_size for name in plan.shards)
    drop(opened, plan)
    assert tree(store.path) == before
    assert not (Path(store.path) / "train/images").exists()
    with pytest.raises(UnknownFeatures, match="there are no thumbnails to drop in test"):
        plan_drop_thumbnails(FeatureStore.open(store.path), ["test"])
    with pytest.raises(UnknownFeatures, match="there is no split 'x'"):
        plan_drop_thumbnails(FeatureStore.open(store.path), ["x"])
    add_pictures(store.path, "train", 16)
    assert FeatureStore.open(store.path).thumbnails("train").shape == (10, 16, 16, 3)


def test_a_drop_that_was_killed_goes_on(with_pictures: WithPictures) -> None:
    store, _ = with_pictures
    for commit in (Path(store.path) / "journal/train").glob("*-images-*.json"):
        commit.unlink()
    opened = FeatureStore.open(store.path)
    drop(opened, plan_drop_thumbnails(opened, ["train"]))
    assert not (Path(store.path) / "train/images").exists()


def test_dropping_settings_leaves_them(with_pictures: WithPictures) -> None:
    store, pictures = with_pictures
    drop(store, plan_drop(store, Choice(splits=["train"])))
    opened = FeatureStore.open(store.path)
    assert opened.keys("train") == []
    np.testing.assert_array_equal(opened.thumbnails("train"), pictures)
    assert lines(opened) == []


def test_the_command(with_pictures: WithPictures, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = with_pictures
    assert program(main, "drop", store.path, "--thumbnails", "--blocks", "1", "--yes") == 2
    assert program(main, "drop", store.path, "--thumbnails", "--yes") == 0
    assert capsys.readouterr().out == f"1 arrays, 3 shards, 2.4 kB removed from {store.path}\n"


# --- HDF5


def test_export_and_import(store: FeatureStore, add_pictures: AddPictures, program: Program, tmp_path: Path) -> None:
    pictures = add_pictures(store.path, "train", left_out=[4])
    assert program(main, "export", store.path, str(tmp_path / "f.h5")) == 0
    with h5py.File(tmp_path / "f.h5") as file:
        np.testing.assert_array_equal(file["train/images/thumbnail"], pictures)
        names = file["train/images/thumbnail"].attrs["dimension_names"]
        assert [name.decode() for name in names] == ["row", "y", "x", "colour"]
    assert import_hdf5(tmp_path / "f.h5", tmp_path / "again.zarr", lambda _: None) > 0
    again = FeatureStore.open(tmp_path / "again.zarr")
    np.testing.assert_array_equal(again.thumbnails("train"), pictures)
    assert again.journal.left_out("train", KEY) == FeatureStore.open(store.path).journal.left_out("train", KEY)
    assert lines(again) == []
    assert import_hdf5(tmp_path / "f.h5", tmp_path / "again.zarr", lambda _: None) == 0


def test_exporting_some_settings_leaves_them_out(with_pictures: WithPictures, program: Program, tmp_path: Path) -> None:
    store, _ = with_pictures
    assert program(main, "export", store.path, str(tmp_path / "f.h5"), "--blocks", "1") == 0
    with h5py.File(tmp_path / "f.h5") as file:
        assert "images" not in file["train"]


def test_an_encoders_features_and_thumbnails_share_no_commit(
    tmp_path: Path, header: StoreHeader, build: Build, add_pictures: AddPictures
) -> None:
    """Neither has a timestep, and their commits may be alike in all else."""
    key = FeatureKey(2, None, 2)
    store = build(tmp_path / "feats.zarr", header=header, splits={"train": 10}, keys=[key])
    pictures = add_pictures(store.path, "train")
    opened = FeatureStore.open(store.path)
    export_hdf5(opened, tmp_path / "f.h5", {"train": opened.journal.arrays("train")})
    import_hdf5(tmp_path / "f.h5", tmp_path / "again.zarr", lambda _: None)
    again = FeatureStore.open(tmp_path / "again.zarr")
    np.testing.assert_array_equal(again.thumbnails("train"), pictures)
    np.testing.assert_array_equal(again.read(key, "train"), opened.read(key, "train"))


def test_importing_another_size_is_refused(
    store: FeatureStore, tmp_path: Path, add_pictures: AddPictures, program: Program
) -> None:
    add_pictures(store.path, "train")
    assert program(main, "export", store.path, str(tmp_path / "f.h5")) == 0
    opened = FeatureStore.open(store.path)
    drop(opened, plan_drop_thumbnails(opened, None))
    add_pictures(store.path, "train", 16)
    before = tree(store.path)
    with pytest.raises(IdentityMismatch, match="thumbnails of another size"):
        import_hdf5(tmp_path / "f.h5", store.path, lambda _: None)
    assert tree(store.path) == before
