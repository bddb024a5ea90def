from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import DataError, ExtractSpec
from diffssl.extract.sources import DataSet, load_data
from diffssl.extract.webdataset import key_of
from diffssl.store import FeatureStore

Files = Mapping[str, bytes | str | dict[str, Any]]
Shards = Callable[[str, Files], Path]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]


@pytest.fixture
def shard(tmp_path: Path) -> Shards:
    """Write a tar from names and contents; JSON from dictionaries."""

    def write(name: str, files: Files) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for file, content in files.items():
                text = json.dumps(content) if isinstance(content, dict) else content
                raw = text.encode() if isinstance(text, str) else text
                member = tarfile.TarInfo(file)
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        return path

    return write


def load(*sources: Path | str) -> DataSet:
    return load_data([str(source) for source in sources])


def listed(data: DataSet, split: str = "all") -> dict[str, tuple[str | None, bytes]]:
    """Id -> class name and bytes."""
    own = data.splits[split]
    return {
        sample: (data.classes[label] if label >= 0 else None, own.read(i))
        for i, (sample, label) in enumerate(zip(own.ids, own.labels, strict=True))
    }


def labels(data: DataSet, split: str = "all") -> dict[str, str | None]:
    return {sample: name for sample, (name, _) in listed(data, split).items()}


# --- keys


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("1.jpg", "1", ".jpg"),
        ("a.b/1.JPG", "a.b/1", ".jpg"),
        ("1.seg.png", "1", ".seg.png"),
        ("a/1", "a/1", ""),
    ],
)
def test_keys(name: str, key: str, suffix: str) -> None:
    assert key_of(name) == (key, suffix)


@pytest.mark.parametrize(
    "source", ["{folder}/x-{{000..002}}.tar", "{folder}/x-*.tar", "wds:{folder}/x-*.tar", "all={folder}/x-*.tar"]
)
def test_samples_of_shards(shard: Shards, tmp_path: Path, source: str) -> None:
    for s in range(3):
        files = {f"n{s}_{i}.cls": str(i) for i in range(4)} | {f"n{s}_{i}.jpg": f"{s}{i}jpg" for i in range(4)}
        shard(f"x-{s:03d}.tar", files)
    data = load(source.format(folder=tmp_path))
    assert listed(data) == {f"n{s}_{i}": (f"{i:05d}", f"{s}{i}jpg".encode()) for s in range(3) for i in range(4)}
    assert data.classes == ["00000", "00001", "00002", "00003"]
    assert data.notes == [
        "all: are WebDataset samples: ids are keys",
        "all: labels from .cls",
        "all: labels are integers: their classes are called 00000 and so on",
    ]


def test_one_shard_is_enough(shard: Shards) -> None:
    assert labels(load(shard("x.tar", {"1.png": b"1", "1.cls": "cat", "2.webp": b"2", "2.cls": "dog\n"}))) == {
        "1": "cat",
        "2": "dog",
    }


def test_order_in_the_shard_does_not_matter(shard: Shards) -> None:
    files: Files = {f"{i}.{suffix}": f"{i}" for i in range(9) for suffix in ("jpeg", "cls")}
    one = load(shard("a.tar", files))
    two = load(shard("b.tar", dict(sorted(files.items(), key=lambda item: (item[0][2:], item[0])))))
    assert one.splits["all"].ids.tolist() == two.splits["all"].ids.tolist()
    assert listed(one) == listed(two)


def test_splits(shard: Shards, tmp_path: Path) -> None:
    """A class is the same class in every split, whatever integers each has."""
    shard("t-0.tar", {"1.jpg": b"1", "1.cls": "3", "2.jpg": b"2", "2.cls": "120"})
    shard("v-0.tar", {"1.jpg": b"3", "1.cls": "3"})
    data = load(f"train={tmp_path}/t-*.tar", f"val={tmp_path}/v-0.tar")
    assert data.classes == ["00003", "00120"]
    assert labels(data, "train") == {"1": "00003", "2": "00120"}
    assert listed(data, "val") == {"1": ("00003", b"3")}


def test_keys_that_repeat_over_shards(shard: Shards, tmp_path: Path) -> None:
    for name in ("a/0.tar", "a/1.tar", "b/0.tar"):
        shard(name, {"1.jpg": name, "1.cls": "0"})
    data = load(f"{tmp_path}/{{a,b}}/*.tar")
    assert {sample: content for sample, (_, content) in listed(data).items()} == {
        "a/0/1": b"a/0.tar",
        "a/1/1": b"a/1.tar",
        "b/0/1": b"b/0.tar",
    }
    assert "all: are WebDataset samples whose keys repeat over shards: ids are a/0/KEY and so on" in data.notes


def test_folders_are_part_of_the_key(shard: Shards) -> None:
    data = load(shard("x.tar", {"a/1.jpg": b"1", "a/1.cls": "cat", "b/1.jpg": b"2", "b/1.cls": "dog"}))
    assert listed(data) == {"a/1": ("cat", b"1"), "b/1": ("dog", b"2")}


# --- labels


@pytest.mark.parametrize(
    ("one", "two", "names", "source"),
    [
        ({"label": "cat"}, {"label": "dog"}, ["cat", "dog"], "'label'"),
        ({"label": 0}, {"label": 10}, ["00000", "00010"], "'label'"),
        ({"cls": 2, "label": 1}, {"label": 0, "cls": 0}, ["00001", "00000"], "'label'"),
        ({"class": "cat", "cls": "x"}, {"cls": "y"}, ["x", "y"], "'cls'"),
        ({"class": "007"}, {"class": "7"}, ["007", "7"], "'class'"),
        ({"label": "cat"}, {"width": 3}, ["cat", None], "'label'"),
        ({"label": "cat"}, {"label": None}, ["cat", None], "'label'"),
        ({"label": -1}, {"label": 4}, [None, "00004"], "'label'"),
    ],
)
def test_labels_in_json(shard: Shards, one: dict[str, Any], two: dict[str, Any], names: list[str | None], source: str) -> None:
    data = load(shard("x.tar", {"1.jpg": b"1", "1.json": one, "2.jpg": b"2", "2.json": two}))
    assert labels(data) == {"1": names[0], "2": names[1]}
    assert f"all: labels from .json (field {source})" in data.notes
    if None in names:
        assert "all: 1 of 2 images have no label" in data.notes


def test_cls_comes_before_json(shard: Shards) -> None:
    """As timm's shards have both; a sample without .cls has no label then, not one from elsewhere."""
    data = load(shard("x.tar", {"1.jpg": b"", "1.cls": "4", "1.json": {"label": 5}, "2.jpg": b"", "2.json": {"label": 6}}))
    assert labels(data) == {"1": "00004", "2": None}
    assert "all: 1 of 2 images have no label" in data.notes
    assert "all: 2 files (.json) are ignored" in data.notes


def test_captions_are_never_labels(shard: Shards) -> None:
    data = load(shard("x.tar", {"1.jpg": b"1", "1.txt": "cat", "2.jpg": b"2", "2.txt": "dog", "2.json": {"width": 3}}))
    assert labels(data) == {"1": None, "2": None}
    assert data.classes == []
    assert "all: 2 captions (.txt) are not labels and are ignored" in data.notes
    assert "all: 1 files (.json) are ignored" in data.notes
    assert any("no labels" in note for note in data.notes)


def test_what_lies_beside_is_counted(shard: Shards) -> None:
    files: dict[str, Any] = {"1.jpg": b"1", "1.cls": "0", "1.seg.png": b"x", "1.depth.npy": b"x", "2.cls": "1", "README": "x"}
    files["info.json"] = {"label": 3}
    data = load(shard("x.tar", files))
    assert listed(data) == {"1": ("00000", b"1")}
    expected = [".cls", ".depth.npy", ".json", ".seg.png", "no suffix"]
    assert [note for note in data.notes if "ignored" in note] == [f"all: 1 files ({suffix}) are ignored" for suffix in expected]


def test_integers_are_sorted_by_number(shard: Shards) -> None:
    files: Files = {f"{i}.{s}": str(i) for i in range(12) for s in ("jpg", "cls")}
    data = load(shard("x.tar", files))
    split = data.splits["all"]
    assert {int(sample): int(label) for sample, label in zip(split.ids, split.labels, strict=True)} == {i: i for i in range(12)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.jpg": b"", "1.cls": "3", "2.jpg": b"", "2.cls": "cat"}, r"labels are integers \(3\) and names \('cat'\)"),
        ({"1.jpg": b"", "1.cls": "-7"}, "-7 is not between 0 and 99999"),
        ({"1.jpg": b"", "1.cls": "100000"}, "100000 is not between"),
        ({"1.jpg": b"", "1.cls": b"\xe9"}, r"1\.cls: is not text in UTF-8"),
        ({"1.jpg": b"", "1.cls": "x" * 5000}, r"1\.cls: has 5000 bytes"),
        ({"1.jpg": b"", "1.json": "{"}, r"1\.json: is not JSON"),
        ({"1.jpg": b"", "1.json": {"label": 1.5}}, r"1\.json: a label is an integer or a name, got 1\.5"),
        ({"1.jpg": b"", "1.json": {"label": True}}, "got True"),
        ({"1.jpg": b"", "1.json": {"label": [3]}}, r"got \[3\]"),
        ({"1.jpg": b"", "1.png": b"", "1.cls": "3"}, r"the sample '1' has two images, '1\.jpg' and '1\.png'"),
        (
            {"1.2.jpg": b"", "1.cls": "3"},
            r"1 images \(such as '1\.2\.jpg'\) belong to no sample: .*\.2\.jpg is no image's suffix",
        ),
        ({"../1.jpg": b"", "../1.cls": "3"}, r"'\.\./1\.jpg' leads out of the archive"),
        ({"/etc/1.jpg": b"", "/etc/1.cls": "3"}, "leads out of the archive"),
        (
            {"train/1.jpg": b"", "train/1.cls": "3", "val/2.jpg": b"", "val/2.cls": "3"},
            "in its folders train and val; make a tar",
        ),
        ({"1.cls": "3", "2.cls": "4"}, "no images found"),
    ],
)
def test_shards_that_make_no_sense(shard: Shards, files: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(shard("x.tar", files))
    assert "x.tar" in str(caught.value)


def test_a_file_that_is_there_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in (("1.jpg", b""), ("1.cls", b"1"), ("1.cls", b"2")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"'1\.cls' is there twice"):
        load(tmp_path / "x.tar")


def test_labels_of_two_kinds_in_two_shards(shard: Shards, tmp_path: Path) -> None:
    shard("0.tar", {"1.jpg": b"", "1.cls": "3"})
    shard("1.tar", {"2.jpg": b"", "2.json": {"label": 3}})
    with pytest.raises(DataError, match=r"from \.cls in .*0\.tar, but from \.json \(field 'label'\) in .*1\.tar"):
        load(f"{tmp_path}/*.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(tmp_path: Path, shard: Shards, kind: bytes) -> None:
    with tarfile.open(shard("x.tar", {"1.jpg": b"", "1.cls": "3"}), "a") as archive:
        member = tarfile.TarInfo("2.jpg")
        member.type, member.linkname = kind, "1.jpg"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"'2\.jpg' is a link or a special file"):
        load(f"{tmp_path}/*.tar")


# --- what a tar is


def test_parts_of_class_folders(shard: Shards, tmp_path: Path) -> None:
    shard("p0.tar", {"train/cat/1.png": b"1", "train/dog/2.png": b"2"})
    shard("p1.tar", {"train/cat/3.png": b"3", "train/readme.txt": b""})
    data = load(f"train={tmp_path}/p{{0..1}}.tar")
    assert listed(data, "train") == {"cat/1.png": ("cat", b"1"), "dog/2.png": ("dog", b"2"), "cat/3.png": ("cat", b"3")}
    assert "train: 1 files (.txt) are not images and are ignored" in data.notes


def test_an_image_in_two_parts(shard: Shards, tmp_path: Path) -> None:
    shard("p0.tar", {"cat/1.png": b"1"})
    shard("p1.tar", {"cat/1.png": b"1"})
    with pytest.raises(DataError, match="ids are there more than once"):
        load(f"{tmp_path}/p*.tar")


@pytest.mark.parametrize("beside", ["txt", "json", "xmp"])
def test_class_folders_or_samples(shard: Shards, beside: str) -> None:
    """Both could be meant, with other ids and labels: whoever gave it says which."""
    content: dict[str, Any] = {"json": {"label": "emu"}}
    tar = shard("x.tar", {"cat/1.png": b"1", f"cat/1.{beside}": content.get(beside, "x"), "dog/2.png": b"2"})
    with pytest.raises(DataError, match=rf"write tar:{tar} if the folders are classes, wds:{tar} if they are WebDataset"):
        load(tar)
    assert labels(load(f"tar:{tar}")) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert labels(load(f"wds:{tar}")) == {"cat/1": "emu" if beside == "json" else None, "dog/2": None}


def test_images_alone_are_images_by_name(shard: Shards, tmp_path: Path) -> None:
    shard("x.tar", {"1.jpg": b"1", "2.png": b"2"})
    assert labels(load(tmp_path / "x.tar")) == labels(load(f"{tmp_path}/*.tar")) == {"1.jpg": None, "2.png": None}
    assert labels(load(f"wds:{tmp_path}/x.tar")) == {"1": None, "2": None}


def test_other_files_among_shards(shard: Shards, tmp_path: Path) -> None:
    shard("x-0.tar", {"1.jpg": b"1", "1.cls": "1"})
    (tmp_path / "x-1.idx").touch()
    with pytest.raises(DataError, match=r"x-1\.idx: is not a \.tar; give one, or a pattern of many, such as '.*/\*\.tar'"):
        load(f"{tmp_path}/x-*")
    (tmp_path / "y.tar.gz").touch()
    with pytest.raises(DataError, match="gunzip"):
        load(f"wds:{tmp_path}/y.tar.gz")
    with pytest.raises(DataError, match=r"z\.tar: cannot be read"):
        load(f"wds:{tmp_path}/z.tar")


def test_an_extraction_from_shards(
    shard: Shards, make_spec: Callable[..., ExtractSpec], run_extract: RunExtract, photos: Path, tmp_path: Path
) -> None:
    images = sorted(photos.rglob("*.png"))[:6]
    for s in range(2):
        mine = images[3 * s : 3 * s + 3]
        classes = {f"{path.stem}.cls": path.parent.name for path in mine}
        shard(f"s-{s}.tar", {**{path.name: path.read_bytes() for path in mine}, **classes})
    store, lines = run_extract(make_spec(data=(f"{tmp_path}/s-{{0..1}}.tar",), blocks={3: set()}))
    assert "all: labels from .cls" in lines
    assert {sample: store.classes[label] for sample, label in zip(store.ids("all"), store.labels("all"), strict=True)} == {
        path.stem: path.parent.name for path in images
    }
    assert not store.missing(store.keys("all"), "all")
