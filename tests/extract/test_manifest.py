from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import DataError
from diffssl.extract.sources import DataSet, load_data
from diffssl.store import row_order

Write = Callable[[Path, Iterable[str]], None]
Manifest = Callable[..., Path]


@pytest.fixture
def manifest(tmp_path: Path, write_images: Write) -> Manifest:
    """A manifest of lines as they are given, text or objects, beside the images a.png, b/c.jpg and d.webp."""
    write_images(tmp_path, ["a.png", "b/c.jpg", "d.webp"])

    def write(*lines: dict[str, Any] | str | bytes) -> Path:
        raw = [json.dumps(line).encode() if isinstance(line, dict) else line for line in lines]
        content = b"\n".join(line.encode() if isinstance(line, str) else line for line in raw)
        (tmp_path / "list.jsonl").write_bytes(content)
        return tmp_path / "list.jsonl"

    return write


def load(*sources: Path | str) -> DataSet:
    return load_data([str(source) for source in sources])


def listed(data: DataSet) -> dict[str, dict[str, str | None]]:
    return {
        name: {
            sample: data.classes[label] if label >= 0 else None for sample, label in zip(split.ids, split.labels, strict=True)
        }
        for name, split in data.splits.items()
    }


def test_paths_alone(manifest: Manifest, tmp_path: Path) -> None:
    data = load(manifest({"path": "a.png"}, {"path": "b/c.jpg"}, {"path": "d.webp"}))
    assert listed(data) == {"all": {"a.png": None, "b/c.jpg": None, "d.webp": None}}
    split = data.splits["all"]
    assert split.ids.tolist() == [["a.png", "b/c.jpg", "d.webp"][i] for i in row_order(["a.png", "b/c.jpg", "d.webp"])]
    assert [split.read(i) for i in range(3)] == [(tmp_path / name).read_bytes() for name in split.ids]
    assert data.notes == ["all: no labels"]


def test_labels_splits_and_ids(manifest: Manifest, tmp_path: Path) -> None:
    data = load(
        manifest(
            {"path": "a.png", "label": "emu", "split": "train", "id": "one"},
            {"split": "test", "path": "b/c.jpg", "label": "cat", "id": None},
            {"path": "d.webp", "label": "cat", "split": "train"},
        )
    )
    assert listed(data) == {"train": {"one": "emu", "d.webp": "cat"}, "test": {"b/c.jpg": "cat"}}
    assert data.classes == ["cat", "emu"]
    train = data.splits["train"]
    assert train.read(train.ids.tolist().index("one")) == (tmp_path / "a.png").read_bytes()
    assert data.notes == []


def test_integer_labels(manifest: Manifest) -> None:
    data = load(manifest({"path": "a.png", "label": 7}, {"path": "d.webp", "label": 12}, {"path": "b/c.jpg", "label": -1}))
    assert listed(data) == {"all": {"a.png": "00007", "d.webp": "00012", "b/c.jpg": None}}
    assert "all: 1 of 3 images have no label" in data.notes


def test_an_image_may_have_several_lines(manifest: Manifest) -> None:
    """In two splits, or under two ids."""
    lines = [
        {"path": "a.png", "split": "train"},
        {"path": "a.png", "split": "test"},
        {"path": "a.png", "split": "test", "id": "2"},
    ]
    assert listed(load(manifest(*lines))) == {"train": {"a.png": None}, "test": {"a.png": None, "2": None}}


def test_paths_elsewhere(manifest: Manifest, tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path.parent / f"{tmp_path.name}-more", ["x.png"])
    above = f"../{tmp_path.name}-more/x.png"
    data = load(manifest({"path": str(tmp_path / "a.png")}, {"path": above}, {"path": str(tmp_path / "d.webp"), "id": "d"}))
    assert set(data.splits["all"].ids) == {str(tmp_path / "a.png"), above, "d"}
    assert any(note.startswith("all: 1 ids are absolute paths") for note in data.notes)


def test_as_editors_write_it(manifest: Manifest) -> None:
    data = load(manifest(b'\xef\xbb\xbf{"path": "a.png"}\r', "", "  ", '{"path": "b/c.jpg"}\r', ""))
    assert listed(data) == {"all": {"a.png": None, "b/c.jpg": None}}


def test_other_fields_are_named(manifest: Manifest) -> None:
    data = load(manifest({"path": "a.png", "lable": "cat", "width": 3}, {"path": "d.webp", "height": 3}))
    assert "all: the fields height, lable, width of list.jsonl are ignored" in data.notes


def test_a_split_of_a_manifest(manifest: Manifest) -> None:
    path = manifest({"path": "a.png", "split": "train"}, {"path": "d.webp", "split": "test"})
    assert listed(load(f"test={path}")) == {"test": {"d.webp": None}}
    with pytest.raises(DataError, match=r"list\.jsonl: has the splits train, test of its own, and none that is called 'val'"):
        load(f"val={path}")
    assert listed(load(f"val={manifest({'path': 'a.png'})}")) == {"val": {"a.png": None}}
    only = load(f"val={manifest({'path': 'a.png', 'split': 'dev'})}")
    assert listed(only) == {"val": {"a.png": None}}
    assert any("is the split 'dev' of" in note for note in only.notes)


GOOD = {"path": "a.png"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "", "{nonsense}"], "line 3: is not JSON"),
        ([GOOD, '{"path": "d.webp"} {"path": "b/c.jpg"}'], "line 2: is not JSON"),
        ([GOOD, '["d.webp"]'], r"line 2: expected an object such as \{\"path\": …\}, got '\[\"d\.webp\"\]'"),
        ([b'{"path": "\xe9.png"}'], "line 1: is not UTF-8"),
        ([GOOD, {"file": "d.webp"}], "line 2: has no 'path', but 'file'"),
        ([{"path": ""}], "'path' must be text, got ''"),
        ([{"path": 3}], "'path' must be text, got 3"),
        ([{"path": "a.png", "id": 3}], "'id' must be text, got 3"),
        ([{"path": "a.png", "split": "a/b"}], "'a/b' cannot be the name of a split"),
        ([{"path": "a.png", "split": ".."}], r"'\.\.' cannot be the name of a split"),
        ([{"path": "a.png", "split": "journal"}], "'journal' cannot be"),
        ([{"path": "a.png", "label": 1.5}], r"a label is a name or an integer, got 1\.5"),
        ([{"path": "a.png", "label": True}], "got True"),
        ([{"path": "a.png", "label": " "}], "got ' '"),
        ([{"path": "a.png", "label": ["cat"]}], r"got \['cat'\]"),
        ([{"path": "a.png", "label": 3}, {"path": "d.webp", "label": "cat"}], r"integers \(3\) and names \('cat'\)"),
        ([{"path": "a.png", "label": "x"}, {"path": "d.webp"}], "line 2: has no 'label', and the lines before had one"),
        ([GOOD, {"path": "d.webp", "label": "x"}], "line 2: has a 'label', and the lines before had none"),
        ([GOOD, {"path": "d.webp", "split": "test"}], "line 2: has a 'split'"),
        ([GOOD, {"path": "d.webp"}, GOOD], r"line 3: an earlier line of the split 'all' has the id 'a\.png'"),
        ([GOOD, {"path": "d.webp", "id": "a.png"}], "line 2: an earlier line"),
        ([GOOD, "", {"path": "x.png"}, {"path": "y.png"}], r"line 3: there is no file .*/x\.png, nor for 1 other lines of 3"),
        ([{"path": "b"}], "line 1: there is no file"),
        ([{"path": "a.png\0"}], "line 1: there is no file"),
        (['{"path": "a.png", "id": "\\ud800"}'], "not UTF-8"),
        (['{"path": "a.png", "label": "\\ud800"}'], "1 class names are not UTF-8"),
        (["", ""], "has no lines"),
    ],
)
def test_lines_that_are_wrong(manifest: Manifest, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(manifest(*lines))
    str(caught.value).encode()


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(DataError, match="no images"):
        load(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "y.jsonl")
    (tmp_path / "z.jsonl").write_text('{"path": "a.png"}\n')
    with pytest.raises(DataError, match="--labels"):
        load_data([str(tmp_path / "z.jsonl")], tmp_path / "labels.csv")


def test_the_text_is_never_in_memory_as_a_whole(manifest: Manifest) -> None:
    """Manifests are as long as data sets."""
    path = manifest(*({"path": "a.png", "id": str(i), "label": "cat", "caption": "x" * 4000} for i in range(2000)))
    tracemalloc.start()
    try:
        data = load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.splits["all"].ids) == 2000
    assert path.stat().st_size > 8_000_000
    assert peak < 2_000_000
