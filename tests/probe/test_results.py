"""Results on disk: one file a writer, merged by readers, damage named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from diffssl.probe import Results
from diffssl.probe.results import result_key
from diffssl.store import DiffsslError

SPECIFICATION: dict[str, Any] = {"head": "linear", "seed": 0, "options": {"steps": 10}, "data_id": {"train": "a", "test": "b"}}


def line(key: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "val_top1": 0.5, **more}


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    results = Results(tmp_path / "feats.results")
    results.append(line("a", notes=["für"], timestep=None))
    results.append(line("b", seconds=1.25))
    assert Results(tmp_path / "feats.results").read() == [line("a", notes=["für"], timestep=None), line("b", seconds=1.25)]


def test_a_folder_that_is_not_there_has_no_results_and_is_not_made(tmp_path: Path) -> None:
    assert Results(tmp_path / "none").read() == []
    assert not (tmp_path / "none").exists()


def test_every_writer_has_a_file_of_its_own_and_readers_merge_them(tmp_path: Path) -> None:
    one, two = Results(tmp_path), Results(tmp_path)
    for number in range(3):
        one.append(line(f"one {number}"))
        two.append(line(f"two {number}"))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    for path in tmp_path.iterdir():
        assert len({json.loads(text)["key"][:3] for text in path.read_text().splitlines()}) == 1
    expected = {f"{name} {number}" for name in ("one", "two") for number in range(3)}
    for reader in (one, two, Results(tmp_path)):
        assert {result["key"] for result in reader.read()} == expected


def test_a_fit_made_twice_is_one_result(tmp_path: Path) -> None:
    Results(tmp_path).append(line("a"))
    Results(tmp_path).append(line("a"))
    assert Results(tmp_path).read() == [line("a")]


@pytest.mark.parametrize("cut", [1, 2, 10, 27])
def test_a_line_that_was_being_written_is_no_result(tmp_path: Path, cut: int) -> None:
    results = Results(tmp_path)
    results.append(line("a"))
    results.append(line("b"))
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert Results(tmp_path).read() == [line("a")]
    Results(tmp_path).append(line("b"))  # a new writer does not touch the old file
    assert sorted(Results(tmp_path).read(), key=lambda result: str(result["key"])) == [line("a"), line("b")]


def test_a_line_may_be_cut_within_a_character(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(line("a"))
    whole = only_file(tmp_path).read_bytes()
    results.append(line("b", notes=["für"]))
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index("ü".encode(), len(whole)) + 1])
    assert Results(tmp_path).read() == [line("a")]


@pytest.mark.parametrize(
    "damaged",
    [b'{"key":"b","val_t', b"", b"[1, 2]", b'"text"', b"3", b'{"val_top1":0.5}', b'{"key":"b","val\xff":1}'],
    ids=["cut", "empty", "list", "text", "number", "no key", "not UTF-8"],
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: bytes) -> None:
    results = Results(tmp_path)
    for key in "abc":
        results.append(line(key))
    path = only_file(tmp_path)
    first, _, third, end = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, damaged, third, end]))
    with pytest.raises(DiffsslError) as caught:
        Results(tmp_path).read()
    assert str(path) in str(caught.value)
    assert "line 2" in str(caught.value)


def test_a_result_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    Results(tmp_path).append(line("a"))
    assert [json.loads(content) for content in synced] == [line("a")]


def test_a_value_that_is_not_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(line("a"))
    with pytest.raises(ValueError, match="JSON compliant"):
        results.append(line("b", val=float("nan")))
    assert Results(tmp_path).read() == [line("a")]


def test_a_key_is_a_function_of_the_specification() -> None:
    again = dict(reversed(list(json.loads(json.dumps(SPECIFICATION)).items())))
    assert result_key(SPECIFICATION) == result_key(again)
    assert len(result_key(SPECIFICATION)) == 32


@pytest.mark.parametrize(
    "change",
    [{"head": "mlp"}, {"seed": 1}, {"options": {"steps": 11}}, {"data_id": {"train": "a", "test": "c"}}, {"new": None}],
    ids=str,
)
def test_a_key_changes_with_anything_in_the_specification(change: dict[str, Any]) -> None:
    assert result_key(SPECIFICATION | change) != result_key(SPECIFICATION)
