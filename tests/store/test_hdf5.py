from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from diffssl.store import (
    CorruptStore,
    FeatureKey,
    FeatureStore,
    Identity,
    IdentityMismatch,
    IncompleteFeatures,
    LeftOut,
    StorageFull,
    StoreError,
    StoreHeader,
    StoreNotFound,
    UnitWriter,
    UnsupportedFormat,
    add_arrays,
    add_split,
    create,
    row_order,
)
from diffssl.store import layout as layout_module
from diffssl.store.hdf5 import export_hdf5
from diffssl.store.hdf5_import import import_hdf5
from diffssl.store.journal import Commit
from diffssl.store.layout import block_range
from diffssl.store.storage import LocalStorage
from diffssl.store.verify import verify
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
Expected = Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]
CommitUnit = Callable[..., Commit]

PROCESS = Path(__file__).with_name("killed_process.py")
KEY = FeatureKey(2, 90, 2)


def tree(folder: Path | str) -> dict[str, str]:
    """Digest of every file below a folder, but for what a killed writer leaves in the journal."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    digests = [sha256(path.read_bytes()).hexdigest() for path in files]
    return {name: digest for name, digest in zip(names, digests, strict=True) if not name.startswith("journal/tmp-")}


def export(store: FeatureStore, target: Path, **options: Any) -> Path:
    export_hdf5(store, target, {split: store.keys(split) for split in store.splits}, **options)
    return target


def same(ours: FeatureStore, theirs: FeatureStore) -> None:
    """Value for value, and everything that is said of the values; and sound."""
    assert ours.header == theirs.header
    assert ours.splits == theirs.splits
    for split in ours.splits:
        assert ours.data_id(split) == theirs.data_id(split)
        assert ours.ids(split).tolist() == theirs.ids(split).tolist()
        assert ours.labels(split).tolist() == theirs.labels(split).tolist()
        assert ours.keys(split) == theirs.keys(split)
        for key in ours.keys(split):
            wanted = ours.wanted_rows([key], split)
            assert wanted == theirs.wanted_rows([key], split)
            blocks = -(-wanted // ours.header.row_block) * ours.header.row_block
            first, second = ours.read(key, split, slice(blocks)), theirs.read(key, split, slice(blocks))
            assert first.tobytes() == second.tobytes()
            assert ours.journal.left_out(split, key) == theirs.journal.left_out(split, key)
            assert ours.journal.command(split, key) == theirs.journal.command(split, key)
            document = f"{split}/features/{key.path}/zarr.json"
            assert ours.storage.read(document) == theirs.storage.read(document)
    assert list(verify(ours)) == []


def test_what_is_exported_and_imported_is_the_same_store(tmp_path: Path, build: Build) -> None:
    """File by file, since a commit is named by its content."""
    store = build(tmp_path / "feats.zarr", left_out={("train", 10): [5, 9], ("test", 90): [0]}, limit=8)
    said: list[str] = []
    assert import_hdf5(export(store, tmp_path / "feats.h5"), tmp_path / "copy.zarr", said.append) == 8
    assert said == []
    same(FeatureStore.open(tmp_path / "copy.zarr"), store)
    assert tree(tmp_path / "copy.zarr") == tree(store.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.zarr", "feats.h5", "feats.zarr"]


def test_the_golden_store_comes_back(tmp_path: Path) -> None:
    """It has two commits of one unit, a class token, an encoder without timesteps and a second draw."""
    golden = FeatureStore.open(Path(__file__).parents[1] / "golden/store-1")
    import_hdf5(export(golden, tmp_path / "golden.h5"), tmp_path / "copy.zarr")
    same(FeatureStore.open(tmp_path / "copy.zarr"), golden)


def test_a_stranger_reads_it(store: FeatureStore, tmp_path: Path, expected: Expected) -> None:
    with h5py.File(export(store, tmp_path / "feats.h5"), "r") as file:
        assert "Row i of every array is sample i" in file.attrs["README"].decode()
        root = json.loads(file.attrs["diffssl"])
        assert (root["feature_id"], root["classes"]) == (store.feature_id, ["cat", "dog"])
        assert list(file) == ["journal", "test", "train"]
        assert list(file["train/rows/id"].asstr()[:]) == store.ids("train").tolist()
        assert file["train/rows/label"][:].tolist() == store.labels("train").tolist()
        data = file["train/features/b2/p2/t90"]
        assert (data.shape, data.dtype, data.chunks) == ((10, 5, 2, 2), np.float16, (4, 5, 2, 2))
        assert (data.fletcher32, data.compression) == (True, None)
        assert [name.decode() for name in data.attrs["dimension_names"]] == ["row", "channel", "y", "x"]
        assert (data.attrs["kind"].decode(), data.attrs["alpha"]) == ("Res", 0.5)
        np.testing.assert_array_equal(data[:], expected(store, KEY, "train"))


def test_attributes_of_every_kind(tmp_path: Path, header: StoreHeader, commit_unit: CommitUnit) -> None:
    attributes = {
        "kind": "Größe\n猫",
        "empty": "",
        "share": 0.1,
        "many": 10**30,
        "count": -3,
        "on": True,
        "log_snr": None,
        "list": [1, {"a": None}],
        "diffssl": {"later": 1},
        "long": "x" * 100_000,
    }
    store = create(tmp_path / "feats.zarr", header)
    add_split(store, "all", np.array(["cat/1"], dtype=object), np.zeros(1, np.int32))
    add_arrays(store, "all", [KEY], {KEY: attributes})
    commit_unit(store, "all", 0, {KEY: np.ones((1, 5, 2, 2), np.float16)})
    with h5py.File(export(store, tmp_path / "feats.h5"), "r") as file:
        found = file["all/features/b2/p2/t90"].attrs
        assert (found["kind"].decode(), found["share"], found["count"], found["on"]) == ("Größe\n猫", 0.1, -3, True)
        assert isinstance(found["log_snr"], h5py.Empty)
        assert json.loads(found["list"]) == [1, {"a": None}]
    import_hdf5(tmp_path / "feats.h5", tmp_path / "copy.zarr")
    same(FeatureStore.open(tmp_path / "copy.zarr"), store)


@settings(max_examples=12)
@given(st.data())
def test_any_store_comes_back(tmp_path_factory: pytest.TempPathFactory, header: StoreHeader, data: st.DataObject) -> None:
    """Ids of any script, labels, classes, rows left out, limits, both dtypes, shards of every number of chunks."""
    folder = tmp_path_factory.mktemp("any")
    names = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30), unique=True)
    own = replace(
        header, dtype=data.draw(st.sampled_from(["float16", "float32"])), classes=data.draw(st.lists(st.text(), max_size=3))
    )
    store = create(folder / "feats.zarr", own)
    keys = data.draw(st.lists(st.sampled_from([KEY, FeatureKey(1, None, "cls"), FeatureKey(1, 10, 4, draw=1)]), unique=True))
    for split in data.draw(st.sampled_from([[], ["all"], ["train", "test"]])):
        drawn = data.draw(names.filter(lambda ids: len(ids) < 20))
        ids = np.array([drawn[i] for i in row_order(drawn)], dtype=object).reshape(len(drawn))
        labels = data.draw(st.lists(st.integers(-1, len(own.classes) - 1), min_size=len(ids), max_size=len(ids)))
        add_split(store, split, ids, np.array(labels, dtype=np.int32))
        for key in keys if len(ids) else []:  # an array without rows has no commit, and without one there is no setting
            add_arrays(store, split, [key], {key: {}})
            limit = data.draw(st.none() | st.integers(1, len(ids)))
            bad = data.draw(st.sets(st.integers(0, 20)))
            rng = np.random.default_rng(1)
            for block in range(-(-(limit or len(ids)) // 4)):
                rows = block_range(len(ids), 4, block)
                writer = UnitWriter(store, split, block, [key], ids[rows.start : rows.stop].tolist())
                values = rng.standard_normal((len(rows), *store.layout(key, split).row_shape)).astype(own.dtype)
                writer.write({key: values}, {row: LeftOut(ids[row], "cut") for row in rows if row in bad})
                writer.commit(limit, None, {})
    store = FeatureStore.open(store.path)
    import_hdf5(export(store, folder / "feats.h5"), folder / "copy.zarr")
    same(FeatureStore.open(folder / "copy.zarr"), store)
    assert tree(folder / "copy.zarr") == tree(store.path)


def test_row_blocks_of_several_shards_and_chunks(
    tmp_path: Path, build: Build, header: StoreHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_module, "MAX_SHARD_BYTES", 4 * 40)
    monkeypatch.setattr(layout_module, "CHUNK_BYTES", 2 * 40)
    store = build(tmp_path / "feats.zarr", header=replace(header, row_block=8), splits={"all": 19}, keys=[KEY])
    with h5py.File(export(store, tmp_path / "feats.h5"), "r") as file:
        assert file["all/features/b2/p2/t90"].chunks == (2, 5, 2, 2)
    import_hdf5(tmp_path / "feats.h5", tmp_path / "copy.zarr")
    same(FeatureStore.open(tmp_path / "copy.zarr"), store)


class TestExport:
    def test_some_settings(self, store: FeatureStore, tmp_path: Path) -> None:
        export_hdf5(store, tmp_path / "a.h5", {"train": [KEY], "test": []})
        import_hdf5(tmp_path / "a.h5", tmp_path / "copy.zarr")
        copy = FeatureStore.open(tmp_path / "copy.zarr")
        assert (copy.keys("train"), copy.keys("test")) == ([KEY], [])
        assert copy.ids("test").tolist() == store.ids("test").tolist()
        assert copy.read(KEY, "train").tobytes() == store.read(KEY, "train").tobytes()
        assert list(verify(copy)) == []

    def test_what_is_not_complete_is_refused(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", row_blocks=[0])
        with pytest.raises(IncompleteFeatures, match="are not committed yet"):
            export(store, tmp_path / "feats.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["feats.zarr"]

    def test_what_is_damaged_is_refused_and_leaves_nothing(self, store: FeatureStore, tmp_path: Path) -> None:
        (Path(store.path) / "train/features/b2/p2/t90/c.2.0.0.0").unlink()
        with pytest.raises(CorruptStore, match=r"row block 2 of train.*diffssl-store repair"):
            export(store, tmp_path / "feats.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["feats.zarr"]

    def test_a_file_is_replaced_only_by_force(self, store: FeatureStore, tmp_path: Path) -> None:
        target = tmp_path / "feats.h5"
        target.write_bytes(b"mine")
        with pytest.raises(StoreError, match=r"there is a file already; .*--force"):
            export(store, target)
        assert target.read_bytes() == b"mine"
        export(store, target, force=True)
        assert import_hdf5(target, tmp_path / "copy.zarr") == 10

    def test_a_file_that_appears_meanwhile_is_not_replaced(
        self, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "feats.h5"
        read = store.read
        monkeypatch.setattr(store, "read", lambda *arguments: (target.write_bytes(b"mine"), read(*arguments))[1])
        with pytest.raises(StoreError, match="there is a file already"):
            export(store, target)
        assert target.read_bytes() == b"mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["feats.h5", "feats.zarr"]

    def test_no_folder(self, store: FeatureStore, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=f"there is no folder {tmp_path}/none; make it first"):
            export(store, tmp_path / "none/feats.h5")

    def test_no_room(self, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(StorageFull, match="10 B are free"):
            export(store, tmp_path / "feats.h5")

    def test_the_same_store_is_the_same_file(self, store: FeatureStore, tmp_path: Path) -> None:
        assert export(store, tmp_path / "a.h5").read_bytes() == export(store, tmp_path / "b.h5").read_bytes()


@pytest.fixture(scope="module")
def exported(small: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that nobody changes."""
    return export(small, tmp_path_factory.mktemp("exported") / "feats.h5")


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    """A file of one's own, to damage."""
    return Path(shutil.copy(exported, tmp_path / "feats.h5"))


def set_json(attributes: h5py.AttributeManager, change: dict[str, Any]) -> None:
    attributes["diffssl"] = json.dumps({**json.loads(attributes["diffssl"]), **change})


def another_array(file: h5py.File) -> None:
    del file["train/features/b1/p1/t10"]
    file["train/features/b2/p2"].copy("t10", file["train/features/b1/p1"])


def another_split(file: h5py.File) -> None:
    del file["journal/test"]
    file["journal"].copy("train", "test")


def change_value(file: h5py.File) -> None:
    file["train/features/b2/p2/t90"][5, 0, 0, 0] = 1.0


CHANGES: list[tuple[Callable[[h5py.File], object], str]] = [
    (change_value, "row block 1 of train.* not as it was exported"),
    (lambda file: file["train/rows/id"].__setitem__(0, b"other"), "train/rows/id does not have the digest"),
    (lambda file: file["train/rows/label"].__setitem__(0, 2), "train/rows/label has labels that no class has"),
    (lambda file: file.__delitem__("train/features/b2/p2/t90"), "train/features/b2/p2/t90 cannot be read"),
    (lambda file: file.move("train/features/b1", "train/features/b7"), "train/features/b1/p1/t10 cannot be read"),
    (lambda file: file.__delitem__("journal/train"), "cannot be read"),
    (another_split, "journal/test has commits of another split"),
    (another_array, r"is float16 \(10, 5, 2, 2\), expected float16 \(10, 3, 1, 1\)"),
    (lambda file: file.attrs.__delitem__("diffssl"), "was not written by 'diffssl-store export'"),
    (lambda file: set_json(file.attrs, {"identity": {}}), "the root cannot be read .*feature_id"),
    (lambda file: set_json(file["train"].attrs, {"rows": 9}), "train/rows/id does not have the digest"),
]


class TestImport:
    def test_again_does_nothing(self, file: Path, tmp_path: Path) -> None:
        assert import_hdf5(file, tmp_path / "copy.zarr") == 10
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy.zarr").rglob("*")}
        assert import_hdf5(file, tmp_path / "copy.zarr") == 0
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy.zarr").rglob("*")} == before

    def test_a_store_is_extended_by_what_it_lacks(self, file: Path, small: FeatureStore, tmp_path: Path, build: Build) -> None:
        """Some row blocks of some settings of one split; what is there is not touched."""
        store = build(tmp_path / "copy.zarr", splits={"train": 10}, keys=[KEY, FeatureKey(1, 10, 1)], row_blocks=[1])
        before = tree(store.path)
        assert import_hdf5(file, store.path) == 2 + 3 + 4  # row blocks 0 and 2 at t90, all at t10, all of test
        after = tree(store.path)
        assert {name: after.get(name) for name in before} == before
        same(FeatureStore.open(store.path), small)

    def test_a_higher_limit_is_taken_over(self, file: Path, small: FeatureStore, tmp_path: Path, build: Build) -> None:
        """Also where no row block is lacking that would say so."""
        store = build(tmp_path / "copy.zarr", left_out={("train", 90): [2]}, limit=5)
        build(tmp_path / "copy.zarr", row_blocks=[2], limit=6)
        assert store.wanted_rows([KEY], "test") == 5
        import_hdf5(file, store.path)
        copy = FeatureStore.open(store.path)
        for split in small.splits:
            assert [copy.wanted_rows([key], split) for key in copy.keys(split)] == [small.n_rows(split)] * 3
        assert copy.journal.left_out("train", KEY).keys() == {2}

    def test_other_labels_are_said(self, small: FeatureStore, file: Path, tmp_path: Path) -> None:
        store = create(tmp_path / "copy.zarr", small.header)
        add_split(store, "train", small.ids("train"), np.zeros(10, np.int32))
        said: list[str] = []
        import_hdf5(file, store.path, said.append)
        assert said == ["train: 7 labels differ from the store's, which are kept (labels are not identity)"]

    def test_another_store_is_refused(self, file: Path, tmp_path: Path, build: Build, header: StoreHeader) -> None:
        store = build(tmp_path / "other.zarr", header=replace(header, identity=Identity({"weights": "beef"})))
        before = tree(store.path)
        with pytest.raises(IdentityMismatch, match="weights: store has 'beef', now '5f1d'"):
            import_hdf5(file, store.path)
        other = build(tmp_path / "rows.zarr", splits={"train": 9})
        with pytest.raises(IdentityMismatch, match="other samples in its split 'train'"):
            import_hdf5(file, other.path)
        assert tree(store.path) == before

    def test_somebody_elses_folder_is_refused(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/notes.txt").write_text("mine")
        with pytest.raises(StoreError, match="the folder is not empty"):
            import_hdf5(file, tmp_path / "mine")

    def test_no_room(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalStorage, "free_bytes", lambda _: 10)
        with pytest.raises(StorageFull, match="10 B are free"):
            import_hdf5(file, tmp_path / "copy.zarr")

    def test_killed_at_every_change_of_the_disk(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", splits={"train": 6}, keys=[KEY])
        file = export(store, tmp_path / "feats.h5")
        (tmp_path / "killed").mkdir()
        none = tmp_path / "none.zarr"
        subprocess.run([sys.executable, str(PROCESS), str(none), str(tmp_path / "killed"), "import", str(file)], check=True)
        copies = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.stem))
        assert len(copies) > 25
        for path in copies:
            if (path / "zarr.json").exists():
                opened = FeatureStore.open(path)
                assert [damage for damage in verify(opened) if damage.row_block is not None] == []
            import_hdf5(file, path)
            assert tree(path) == tree(store.path)

    @pytest.mark.parametrize("length", [0, 100, -1, -3000])
    def test_a_cut_file_is_refused(self, file: Path, tmp_path: Path, length: int) -> None:
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(StoreError, match=r"feats\.h5: this is no HDF5 file that is whole"):
            import_hdf5(file, tmp_path / "copy.zarr")
        assert not (tmp_path / "copy.zarr").exists()

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound, match="there is no such file"):
            import_hdf5(tmp_path / "none.h5", tmp_path / "copy.zarr")

    @pytest.mark.parametrize("kind", ["text", "folder", "hdf5"])
    def test_files_of_others_are_refused(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "other.h5"
        if kind == "text":
            path.write_text("hello")
        elif kind == "folder":
            path.mkdir()
        else:
            h5py.File(path, "w").close()
        with pytest.raises(StoreError, match=r"no HDF5 file|was not written by 'diffssl-store export'"):
            import_hdf5(path, tmp_path / "copy.zarr")

    def test_newer_files_are_refused(self, file: Path, tmp_path: Path) -> None:
        with h5py.File(file, "r+") as handle:
            set_json(handle.attrs, {"format": 2})
        with pytest.raises(UnsupportedFormat, match="the store has format 2, this diffssl reads 1"):
            import_hdf5(file, tmp_path / "copy.zarr")
        with h5py.File(file, "r+") as handle:
            handle.attrs["diffssl_export"] = 2
        with pytest.raises(UnsupportedFormat, match="the file has format 2, this diffssl reads 1"):
            import_hdf5(file, tmp_path / "copy.zarr")

    @pytest.mark.parametrize(("change", "text"), CHANGES)
    def test_what_others_changed_is_refused(
        self, file: Path, tmp_path: Path, change: Callable[[h5py.File], object], text: str
    ) -> None:
        with h5py.File(file, "r+") as handle:
            change(handle)
        with pytest.raises(StoreError, match=text):
            import_hdf5(file, tmp_path / "copy.zarr", lambda _: None)
        if (tmp_path / "copy.zarr").exists():  # some is only seen when it is read
            copy = FeatureStore.open(tmp_path / "copy.zarr")
            assert [damage for damage in verify(copy) if damage.row_block is not None] == []

    def test_every_flipped_byte_is_found_or_means_nothing(self, file: Path, small: FeatureStore, tmp_path: Path) -> None:
        raw = file.read_bytes()
        imported = refused = 0
        for at in range(3, len(raw), len(raw) // 60):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 16]) + raw[at + 1 :])
            path = tmp_path / f"{at}.zarr"
            try:
                import_hdf5(file, path, lambda _: None)
            except StoreError:
                refused += 1
            else:
                assert tree(path) == tree(small.path)
                imported += 1
        assert refused > 20
        assert imported + refused >= 60
