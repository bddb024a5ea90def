from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from diffssl.store import CorruptStore, FeatureKey, FeatureStore, IncompleteFeatures, StoreError, add_arrays, add_split, create
from diffssl.store.documents import missing_documents
from diffssl.store.journal import Commit
from diffssl.store.layout import block_range
from diffssl.store.repair import Repair, repair
from diffssl.store.verify import verify
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
Expected = Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]
Extract = Callable[..., list[tuple[str, int, list[str]]]]
Damaging = Callable[[Path], object]

PROCESS = Path(__file__).with_name("killed_process.py")
KEY = FeatureKey(2, 90, 2)
COMMAND = "diffssl-extract --blocks 1,2 --timesteps 10,90"
SHARD = "train/features/b2/p2/t90/c.1.0.0.0"


def tree(folder: Path | str) -> dict[str, str]:
    """Digest of every file below a folder, but for what a killed writer leaves in the journal."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    digests = [sha256(path.read_bytes()).hexdigest() for path in files]
    return {name: digest for name, digest in zip(names, digests, strict=True) if not name.startswith("journal/tmp-")}


def commit_of(root: Path, unit: str) -> Path:
    """The file of a unit's commit, such as ``train/000001-t90``."""
    (file,) = (root / "journal" / unit.split("/")[0]).glob(f"{unit.split('/')[1]}-*")
    return file


def run(path: str | Path, bad: bool = False) -> tuple[Repair, list[str]]:
    lines: list[str] = []
    return repair(str(path), bad, lines.append), lines


@pytest.fixture(scope="module")
def extract(
    keys: list[FeatureKey],
    ids: Callable[[str, int], NDArray[np.object_]],
    labels: Callable[[int], NDArray[np.int32]],
    expected: Expected,
    commit_unit: Callable[..., Commit],
) -> Extract:
    """What the same extraction does once more: documents that are not there, then units that are not committed."""

    def again(path: str | Path, splits: Mapping[str, int] = {"train": 10, "test": 6}) -> list[tuple[str, int, list[str]]]:
        store = create(path, FeatureStore.open(path).header)
        computed = []
        for split, n_rows in splits.items():
            add_split(store, split, ids(split, n_rows), labels(n_rows))
            add_arrays(store, split, keys, {key: {"kind": "Res", "alpha": 0.5, "sigma": 0.25} for key in keys})
            for block in range(-(-n_rows // store.header.row_block)):
                rows = block_range(n_rows, store.header.row_block, block)
                for timestep in (10, 90):
                    due = [key for key in keys if key.timestep == timestep and block in store.missing([key], split)]
                    if due:
                        features = {key: expected(store, key, split)[rows.start : rows.stop] for key in due}
                        commit_unit(store, split, block, features)
                        computed.append((split, block, [key.path for key in due]))
        return computed

    return again


def flip(file: Path, at: int = 5) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


# What is done to the store, and which arrays of which row blocks the extraction must then compute, no more and no less.
DAMAGES: dict[str, tuple[Damaging, list[tuple[str, int, list[str]]]]] = {
    "byte flipped": (lambda root: flip(root / SHARD), [("train", 1, ["b2/p2/t90"])]),
    "shard cut": (lambda root: cut(root / SHARD), [("train", 1, ["b2/p2/t90"])]),
    "shard removed": (lambda root: (root / SHARD.replace("t90", "t10")).unlink(), [("train", 1, ["b2/p2/t10"])]),
    "commit removed": (lambda root: commit_of(root, "test/000001-t10").unlink(), [("test", 1, ["b1/p1/t10", "b2/p2/t10"])]),
    "commit cut": (lambda root: cut(commit_of(root, "train/000002-t90")), [("train", 2, ["b2/p2/t90"])]),
    "commit flipped": (lambda root: flip(commit_of(root, "train/000002-t10")), [("train", 2, ["b1/p1/t10", "b2/p2/t10"])]),
    "array document removed": (lambda root: (root / "train/features/b2/p2/t90/zarr.json").unlink(), []),
    "array document cut": (lambda root: cut(root / "train/features/b2/p2/t90/zarr.json"), []),
    "group document removed": (lambda root: (root / "train/features/b2/zarr.json").unlink(), []),
    "group document cut": (lambda root: cut(root / "train/features/zarr.json"), []),
    "rows document cut": (lambda root: cut(root / "train/rows/zarr.json"), []),
    "journal document cut": (lambda root: cut(root / "journal/zarr.json"), []),
    "split document removed": (lambda root: (root / "train/zarr.json").unlink(), []),
    "split document cut": (lambda root: cut(root / "train/zarr.json"), []),
    "split document of another group": (lambda root: shutil.copy(root / "train/rows/zarr.json", root / "train/zarr.json"), []),
    "labels cut": (lambda root: cut(root / "train/rows/label/c/0"), []),
    "labels removed": (lambda root: shutil.rmtree(root / "train/rows/label"), []),
    "ids cut": (lambda root: cut(root / "train/rows/id/c/0"), []),
    "ids without document": (lambda root: (root / "train/rows/id/zarr.json").unlink(), []),
}


def apart_from_commits(files: Mapping[str, str]) -> dict[str, str]:
    """Zarr writes the document of the rows with other spaces, so repairing it changes its bytes."""
    return {name: digest for name, digest in files.items() if not name.startswith("journal/") and "rows/zarr" not in name}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_repaired(store: FeatureStore, extract: Extract, name: str) -> None:
    """The extraction then computes exactly what was damaged, and the store is byte for byte what it was."""
    damage, due = DAMAGES[name]
    before = tree(store.path)
    damage(Path(store.path))
    assert ("removed" in name and "commit" in name) == (list(verify(FeatureStore.open(store.path, tolerant=True))) == [])
    run(store.path)
    left = list(verify(FeatureStore.open(store.path)))
    assert all(damage.file is not None and ("/rows/" in damage.file or damage.key is not None) for damage in left)
    assert extract(store.path) == due
    assert list(verify(FeatureStore.open(store.path))) == []
    assert apart_from_commits(tree(store.path)) == apart_from_commits(before)
    if not due or "commit" in name:  # else a commit may be in two parts now
        assert tree(store.path).keys() == before.keys()
    assert run(store.path)[1] == []


def test_a_sound_store_is_not_touched(store: FeatureStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(store.path).rglob("*")}
    assert run(store.path) == (Repair(), [])
    assert {path: path.stat().st_mtime_ns for path in Path(store.path).rglob("*")} == before


def test_what_is_said(store: FeatureStore) -> None:
    root = Path(store.path)
    commit = commit_of(root, "test/000000-t10")
    for file in (root / SHARD, commit, root / "train/features/b1/p1/t10/zarr.json", root / "train/rows/zarr.json"):
        cut(file)
    done, lines = run(root)
    assert (done.forgotten, done.mended, done.failed, done.commands) == (3, 1, [], {COMMAND})
    assert [line.partition(" (")[0].partition(": the")[0] for line in lines] == [
        f"forgotten: journal/test/{commit.name}: it cannot be read",
        "written anew: train/rows/zarr.json",
        "forgotten: train/features/b1/p1/t10/zarr.json",
        "forgotten: train: row block 1, block 2, timestep 90, pool 2",
    ]


def test_what_a_commit_says_of_other_arrays_is_kept(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", left_out={("train", 10): [5]})
    old = json.loads(commit_of(tmp_path / "feats.zarr", "train/000001-t10").read_text())
    flip(tmp_path / "feats.zarr" / SHARD.replace("t90", "t10"))
    run(store.path)
    new = json.loads(commit_of(tmp_path / "feats.zarr", "train/000001-t10").read_text())
    assert old["arrays"].keys() - new["arrays"].keys() == {"b2/p2/t10"}
    assert new == {**old, "arrays": {"b1/p1/t10": old["arrays"]["b1/p1/t10"]}}
    after = FeatureStore.open(store.path)
    assert after.rows("train").left_out == store.rows("train").left_out
    with pytest.raises(IncompleteFeatures, match="4 of 10 rows"):
        after.read(FeatureKey(2, 10, 2), "train")


def test_all_commits_that_name_a_row_block_forget_it(store: FeatureStore, commit_unit: Callable[..., Commit]) -> None:
    """Two writers, of which one wrote last: neither of the checksums is on disk any more."""
    commit_unit(store, "train", 1, {KEY: np.ones((4, 5, 2, 2), np.float16)}, command="diffssl-extract --other")
    flip(Path(store.path) / SHARD)
    done, lines = run(store.path)
    assert len(lines) == done.forgotten == 1
    assert done.commands == {COMMAND, "diffssl-extract --other"}
    assert FeatureStore.open(store.path).missing([KEY], "train") == [1]


def test_a_row_block_of_several_shards_is_forgotten_once(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffssl.store.layout.MAX_SHARD_BYTES", 2 * 40)
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, keys=[KEY])
    for number in (2, 3):
        (Path(store.path) / f"train/features/b2/p2/t90/c.{number}.0.0.0").unlink()
    done, lines = run(store.path)
    assert (done.forgotten, len(lines)) == (1, 1)
    assert FeatureStore.open(store.path).missing([KEY], "train") == [1]


def test_a_commit_with_another_number_of_shards_is_forgotten(store: FeatureStore, extract: Extract) -> None:
    before = apart_from_commits(tree(store.path))
    for limit in (1, 2, 3):  # some of their names come before that of the sound commit, some after it
        wrong = Commit("train", 1, 90, {KEY.path: ["00000000", "00000000"]}, limit=limit)
        Path(store.path, wrong.name).write_text(json.dumps(wrong.to_json()))
    run(store.path)
    assert extract(store.path) in ([], [("train", 1, [KEY.path])])
    assert list(verify(FeatureStore.open(store.path))) == []
    assert apart_from_commits(tree(store.path)) == before


def test_forgetting_does_not_lower_how_many_rows_are_wanted(tmp_path: Path, build: Build) -> None:
    """A pilot and its extension, of which only the last row block was asked for without a limit."""
    pilot = build(tmp_path / "feats.zarr", splits={"train": 10}, limit=8)
    assert pilot.read(KEY, "train").shape[0] == 8
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, row_blocks=[2], left_out={("train", 90): [1]})
    (tmp_path / "feats.zarr/train/features/b2/p2/t90/c.2.0.0.0").unlink()
    run(store.path)
    after = FeatureStore.open(store.path)
    with pytest.raises(IncompleteFeatures, match="2 of 10 rows"):
        after.read(KEY, "train")
    assert after.missing([KEY], "train") == [2]
    assert after.journal.left_out("train", KEY) == pilot.journal.left_out("train", KEY)
    assert after.read(FeatureKey(1, 10, 1), "train").shape[0] == 10
    assert run(store.path)[1] == []


def test_a_limit_that_holds_anyway_is_not_said_again(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, limit=8)
    (Path(store.path) / SHARD).unlink()
    commits = len(store.journal.names("train"))
    run(store.path)
    assert len(FeatureStore.open(store.path).journal.names("train")) == commits - 1
    assert FeatureStore.open(store.path).wanted_rows([KEY], "train") == 8


def test_rows_left_out_are_due_again_if_asked(tmp_path: Path, build: Build, extract: Extract) -> None:
    store = build(tmp_path / "feats.zarr", left_out={("train", 90): [5, 6, 9], ("test", 10): [0]})
    assert run(store.path)[1] == []
    done, lines = run(store.path, bad=True)
    assert done.forgotten == 4
    assert len(lines) == 4
    bad = store.ids("train")[5]
    assert lines[2] == (
        f"forgotten: train: row block 1, block 2, timestep 90, pool 2: left out 2, such as {bad!r} (cannot identify image file)"
    )
    assert extract(store.path) == [
        ("train", 1, ["b2/p2/t90"]),
        ("train", 2, ["b2/p2/t90"]),
        ("test", 0, ["b1/p1/t10", "b2/p2/t10"]),
    ]
    whole = build(tmp_path / "whole.zarr")
    after = FeatureStore.open(store.path)
    assert after.rows("train").left_out == after.rows("test").left_out == {}
    for split in whole.splits:
        for key in whole.keys(split):
            np.testing.assert_array_equal(after.read(key, split), whole.read(key, split))
    assert run(store.path, bad=True)[1] == []


class TestSplits:
    """The document of a split says which samples its commits speak of."""

    def test_with_the_ids_it_is_written_anew(self, store: FeatureStore) -> None:
        (Path(store.path) / "train/zarr.json").unlink()
        done, lines = run(store.path)
        assert (done.forgotten, done.mended) == (0, 1)
        assert lines == ["written anew: train/zarr.json, from the ids of its rows"]
        after = FeatureStore.open(store.path)
        assert (after.data_id("train"), after.n_rows("train")) == (store.data_id("train"), 10)

    @pytest.mark.parametrize("lost", ["id/c/0", "id/zarr.json", "of another order", "of another length"])
    def test_without_them_everything_is_forgotten(self, store: FeatureStore, extract: Extract, lost: str) -> None:
        """Nobody knows any more whose features they are."""
        root = Path(store.path)
        before = apart_from_commits(tree(root))
        (root / "train/zarr.json").write_bytes(b"")
        file = root / "train/rows" / (lost if lost.startswith("id") else "id/zarr.json")
        if lost == "of another order":
            array = zarr.open_array(root / "train/rows/id", mode="r+")
            array[:] = np.asarray(array[:])[::-1]
        elif lost == "of another length":
            file.write_text(file.read_text().replace("10", "12"))
        else:
            file.unlink()
        done, lines = run(root)
        assert done.commands == {COMMAND}
        assert lines[0].startswith("forgotten: train, all 6 commits: neither train/zarr.json nor train/rows/id says")
        assert FeatureStore.open(root).splits == ["test"]
        assert list(verify(FeatureStore.open(root))) == []
        computed = extract(root)
        assert len(computed) == 6
        assert {split for split, _, _ in computed} == {"train"}
        assert apart_from_commits(tree(root)) == before

    def test_an_extraction_does_not_take_the_commits_for_its_own(self, store: FeatureStore, extract: Extract) -> None:
        (Path(store.path) / "train/zarr.json").unlink()
        with pytest.raises(CorruptStore, match=r"train has commits, but train/zarr\.json.*diffssl-store repair"):
            extract(store.path)
        run(store.path)
        assert extract(store.path) == []


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"attributes": {"diffssl": 5}}'])
def test_the_root_cannot_be_repaired(store: FeatureStore, content: bytes | None) -> None:
    (Path(store.path) / "zarr.json").unlink()
    if content is not None:
        (Path(store.path) / "zarr.json").write_bytes(content)
    (Path(store.path) / SHARD).unlink()
    before = tree(store.path)
    with pytest.raises(StoreError, match="restore it from a copy" if content != b"{}" else "not a feature store"):
        run(store.path)
    assert tree(store.path) == before


def test_a_root_that_zarr_cannot_read_is_an_error(store: FeatureStore) -> None:
    file = Path(store.path) / "zarr.json"
    file.write_text(file.read_text().replace('"zarr_format": 3', '"zarr_format": 2'))
    with pytest.raises(CorruptStore, match=r"zarr_format is 2 instead of 3; restore it from a copy; .* cannot do without"):
        run(store.path)


def test_what_the_storage_does_not_give_is_left_alone(store: FeatureStore) -> None:
    """A disk that fails is no reason to forget what may be sound."""
    (Path(store.path) / SHARD).unlink()
    (Path(store.path) / SHARD).mkdir()
    before = tree(store.path)
    done, lines = run(store.path)
    assert [damage.key for damage in done.failed] == [KEY]
    assert lines[0].startswith("left alone: train: row block 1, block 2, timestep 90, pool 2: [Errno 21]")
    assert tree(store.path) == before


def test_a_commit_of_one_array_is_removed_whole(store: FeatureStore) -> None:
    (Path(store.path) / SHARD).unlink()
    file = commit_of(Path(store.path), "train/000001-t90")
    run(store.path)
    assert not file.exists()
    assert len(FeatureStore.open(store.path).journal.names("train")) == 5


def test_readers_that_were_open_before(store: FeatureStore, expected: Expected, extract: Extract) -> None:
    """What they know of sound row blocks stays true; of damaged ones, they were told before and are told now."""
    opened = FeatureStore.open(store.path)
    flip(Path(store.path) / SHARD)
    run(store.path)
    np.testing.assert_array_equal(opened.read(KEY, "train", slice(0, 4)), expected(opened, KEY, "train")[:4])
    with pytest.raises(CorruptStore):
        opened.read(KEY, "train")
    opened.refresh()
    extract(store.path)
    np.testing.assert_array_equal(opened.read(KEY, "train"), expected(opened, KEY, "train"))


def test_a_commit_that_is_replaced_while_it_is_read(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that listed the old commit and finds it gone reads what was written in its place."""
    read = store.storage.__class__.read
    flip(Path(store.path) / SHARD.replace("t90", "t10"))
    pending = [lambda: run(store.path)]

    def slow(storage: Any, name: str) -> bytes:
        if "train/000001-t10" in name and pending:
            pending.pop()()
        return read(storage, name)

    monkeypatch.setattr(store.storage.__class__, "read", slow)
    reader = FeatureStore.open(store.path)
    assert pending == []
    assert reader.missing([FeatureKey(1, 10, 1)], "train") == []
    assert reader.missing([FeatureKey(2, 10, 2)], "train") == [1]


MANY = [
    "byte flipped",
    "shard removed",
    "commit cut",
    "array document cut",
    "group document cut",
    "split document removed",
    "labels cut",
]


def damaged_units(store: FeatureStore, expected: Expected) -> set[tuple[str, str, int]]:
    """(split, array, row block) that cannot be read; what can be read must be right."""
    unreadable = set()
    for split in ("train", "test"):
        for key in (FeatureKey(1, 10, 1), FeatureKey(2, 10, 2), KEY):
            for block in range(3 if split == "train" else 2):
                rows = slice(block * 4, min(block * 4 + 4, {"train": 10, "test": 6}[split]))
                try:
                    values = store.read(key, split, rows)
                except StoreError:
                    unreadable.add((split, key.path, block))
                else:
                    np.testing.assert_array_equal(values, expected(store, key, split)[rows])
    return unreadable


def test_killed_at_every_change_of_the_disk(store: FeatureStore, tmp_path: Path, expected: Expected, extract: Extract) -> None:
    """No row block is lost that was not damaged, and the same repair again ends as one that was not killed."""
    whole = tree(store.path)
    for name in MANY:
        DAMAGES[name][0](Path(store.path))
    due = {("train", "b2/p2/t90", 1), ("train", "b2/p2/t10", 1), ("train", "b2/p2/t90", 2)}
    (tmp_path / "killed").mkdir()
    subprocess.run([sys.executable, str(PROCESS), store.path, str(tmp_path / "killed"), "repair"], check=True)
    copies = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.stem))
    end = tree(copies[-1])
    assert len(copies) > 12
    for path in copies:
        opened = FeatureStore.open(path, tolerant=True)
        if "train" in opened.splits:  # until its document is there again, the split is not
            assert damaged_units(opened, expected) == due
        run(path)
        assert tree(path) == end
    assert sorted((split, path, block) for split, block, paths in extract(copies[-1]) for path in paths) == sorted(due)
    assert apart_from_commits(tree(copies[-1])) == apart_from_commits(whole)


def test_killed_while_a_split_is_forgotten(store: FeatureStore, tmp_path: Path, extract: Extract) -> None:
    """Until nothing is left of it, no extraction makes it anew."""
    whole = tree(store.path)
    for name in ("train/zarr.json", "train/rows/id/zarr.json"):
        (Path(store.path) / name).unlink()
    (tmp_path / "killed").mkdir()
    subprocess.run([sys.executable, str(PROCESS), store.path, str(tmp_path / "killed"), "repair"], check=True)
    copies = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.stem))
    assert len(copies) > 10
    for path in copies[:-1]:
        with pytest.raises(CorruptStore, match="diffssl-store repair"):
            extract(path)
        run(path)
    for path in (copies[1], copies[-2], copies[-1]):
        assert len(extract(path)) == 6
        assert tree(path) == whole


@settings(max_examples=8)
@given(st.sets(st.sampled_from(sorted(DAMAGES)), min_size=2, max_size=6))
def test_any_damages_at_once(
    small: FeatureStore, tmp_path_factory: pytest.TempPathFactory, extract: Extract, names: set[str]
) -> None:
    path = tmp_path_factory.mktemp("many") / "feats.zarr"
    shutil.copytree(small.path, path)
    done = 0
    for name in sorted(names):
        try:
            DAMAGES[name][0](path)
            done += 1
        except FileNotFoundError:  # of two that remove the same file
            continue
    run(path)
    extract(path)
    store = FeatureStore.open(path)
    assert list(verify(store)) == []
    assert apart_from_commits(tree(path)) == apart_from_commits(tree(small.path))
    assert all(not store.missing([key], split) for split in store.splits for key in store.keys(split))
    assert done


@settings(max_examples=20)
@given(st.data())
def test_any_files_removed_or_cut(
    small: FeatureStore, tmp_path_factory: pytest.TempPathFactory, extract: Extract, data: st.DataObject
) -> None:
    """But for the root: without it nothing is known."""
    path = tmp_path_factory.mktemp("any") / "feats.zarr"
    shutil.copytree(small.path, path)
    names = sorted(tree(path).keys() - {"zarr.json"})
    for name in data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=4)):
        content = (path / name).read_bytes()
        left = data.draw(st.none() | st.integers(0, len(content) - 1))
        (path / name).unlink()
        if left is not None:
            (path / name).write_bytes(content[:left])
    run(path)
    extract(path)
    assert list(verify(FeatureStore.open(path))) == []
    assert apart_from_commits(tree(path)) == apart_from_commits(tree(small.path))


def test_missing_documents(store: FeatureStore, keys: list[FeatureKey]) -> None:
    assert missing_documents(store, "train", keys) == []
    for name in ("b2", "b2/p2/t90"):
        (Path(store.path) / "train/features" / name / "zarr.json").unlink()
    assert missing_documents(store, "train", keys) == [f"train/features/{name}/zarr.json" for name in ("b2", "b2/p2/t90")]
    assert missing_documents(store, "train", keys[:1]) == []
