from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffssl.store import CorruptStore, FeatureKey, FeatureStore, LeftOut, canonical_json, digest
from diffssl.store.journal import Commit, Journal
from diffssl.store.storage import LocalStorage
from hypothesis import given
from hypothesis import strategies as st

KEY = FeatureKey(2, 90, 2)
COMMIT = Commit(
    split="train",
    row_block=3,
    timestep=90,
    arrays={"b2/p2/t90": ["0123abcd", "89abcdef"]},
    left_out={13: LeftOut("cat/ö.png", "cannot identify image file")},
    limit=100,
    command="diffssl-extract --blocks 2",
    versions={"diffssl": "0.1.0"},
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
COMMITS = st.builds(
    Commit,
    split=st.sampled_from(["train", "test"]),
    row_block=st.integers(0, 10**7),
    timestep=st.none() | st.integers(0, 999),
    arrays=st.dictionaries(st.sampled_from(["b1/p1/t1", "b2/cls/tnone"]), st.lists(st.just("0123abcd"), max_size=3)),
    left_out=st.dictionaries(st.integers(0, 10**7), st.builds(LeftOut, TEXT, TEXT), max_size=3),
    limit=st.none() | st.integers(1, 10**7),
    command=st.none() | TEXT,
    versions=st.dictionaries(TEXT, TEXT, max_size=2),
)


def put(root: Path, value: dict[str, Any], timestep: int = 90) -> Path:
    """Write a commit as another version would: named by its content."""
    name = f"journal/{value['split']}/{value['row_block']:06d}-t{timestep}-{digest(value, 8)}.json"
    assert LocalStorage(root).create(name, canonical_json(value))
    return root / name


@given(COMMITS)
def test_commit_round_trip(commit: Commit) -> None:
    again = Commit.from_json(json.loads(canonical_json(commit.to_json())))
    assert again == commit
    assert again.name == commit.name


def test_commit_golden() -> None:
    assert COMMIT.name == "journal/train/000003-t90-6fcb3196134e6cf9.json"
    assert Commit("all", 0, None, {}).name.startswith("journal/all/000000-tnone-")


def test_commits_of_different_content_have_different_names() -> None:
    commits = [COMMIT, Commit("train", 3, 90, COMMIT.arrays), Commit("train", 3, 90, {"b2/p2/t90": ["0123abcd", "89abcdee"]})]
    assert len({commit.name for commit in commits}) == 3


def test_write_and_read_back(tmp_path: Path) -> None:
    writer, reader = Journal(LocalStorage(tmp_path)), Journal(LocalStorage(tmp_path))
    reader.refresh(["train"])
    assert reader.keys("train") == []
    writer.write(COMMIT)
    writer.write(COMMIT)  # the same commit is one file
    assert [path.name for path in (tmp_path / "journal" / "train").iterdir()] == [COMMIT.name.split("/")[-1]]
    reader.refresh(["test"])
    assert reader.commits() == 0
    reader.refresh(["train", "test"])
    for journal in (writer, reader):
        assert journal.commits() == 1
        assert journal.keys("train") == [KEY]
        assert journal.keys("test") == []
        assert journal.row_blocks("train", KEY) == {3: [{"0123abcd"}, {"89abcdef"}]}
        assert journal.left_out("train", KEY) == COMMIT.left_out
        assert journal.wanted("train", KEY) == 100
        assert journal.command("train", KEY) == COMMIT.command


def test_what_is_not_committed(tmp_path: Path) -> None:
    journal = Journal(LocalStorage(tmp_path))
    assert journal.row_blocks("train", KEY) == {}
    assert journal.left_out("train", KEY) == {}
    assert journal.wanted("train", KEY) == 0
    assert journal.command("train", KEY) is None


def test_two_commits_of_one_unit_are_both_good(tmp_path: Path) -> None:
    journal = Journal(LocalStorage(tmp_path))
    journal.write(COMMIT)
    journal.write(Commit("train", 3, 90, {"b2/p2/t90": ["00000000", "89abcdef"], "b1/p1/t90": ["11111111", "22222222"]}))
    assert journal.row_blocks("train", KEY) == {3: [{"0123abcd", "00000000"}, {"89abcdef"}]}
    assert journal.row_blocks("train", FeatureKey(1, 90, 1)) == {3: [{"11111111"}, {"22222222"}]}
    assert journal.left_out("train", FeatureKey(1, 90, 1)) == {}


@pytest.mark.parametrize(("limits", "wanted"), [([100, 50], 100), ([50, 100], 100), ([100, None], None), ([None, 100], None)])
def test_wanted_is_the_most_that_was_asked_for(tmp_path: Path, limits: list[int | None], wanted: int | None) -> None:
    journal = Journal(LocalStorage(tmp_path))
    for block, limit in enumerate(limits):
        journal.write(Commit("train", block, 90, {"b2/p2/t90": ["00000000"]}, limit=limit))
    assert journal.wanted("train", KEY) == wanted


def test_unknown_fields_and_other_files_are_ignored(tmp_path: Path) -> None:
    put(tmp_path, {**COMMIT.to_json(), "later": {"more": 1}})
    for name in ("tmp-00", "zarr.json.swp", "notes.txt"):
        (tmp_path / "journal" / "train" / name).write_bytes(b"not a commit")
    (tmp_path / "journal" / "tmp-00").write_bytes(b"not a commit")
    journal = Journal(LocalStorage(tmp_path))
    journal.refresh(["train"])
    assert journal.commits() == 1
    assert journal.keys("train") == [KEY]


@pytest.mark.parametrize(
    "value",
    [[], {}, "commit", {"split": "train"}, {**COMMIT.to_json(), "left_out": 5}, {**COMMIT.to_json(), "left_out": [[1]]}],
)
def test_a_commit_that_is_not_one_is_corrupt(store: FeatureStore, value: Any) -> None:
    name = f"journal/train/000003-t90-{digest(value, 8)}.json"
    store.storage.create(name, canonical_json(value))
    with pytest.raises(CorruptStore, match=f"{name} cannot be read"):
        FeatureStore.open(store.path)


def test_every_flipped_byte_of_a_commit_is_found(tmp_path: Path) -> None:
    """The name holds the digest of the content, so that no damage can invent, move or lose rows."""
    file = put(tmp_path, COMMIT.to_json())
    good = file.read_bytes()
    accepted = []
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            Journal(LocalStorage(tmp_path)).refresh(["train"])
        except CorruptStore as error:
            named = file.name in str(error)
        else:
            named = False
        if not named:
            accepted.append(good[max(0, at - 8) : at + 8])
    assert accepted == []


def test_a_cut_commit_is_found(tmp_path: Path) -> None:
    file = put(tmp_path, COMMIT.to_json())
    good = file.read_bytes()
    for length in range(0, len(good), 7):
        file.write_bytes(good[:length])
        with pytest.raises(CorruptStore, match="'diffssl-store repair' and run the extraction again"):
            Journal(LocalStorage(tmp_path)).refresh(["train"])
