from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import DataError, ExtractSpec
from diffssl.extract.sources import DataSet, load_data
from diffssl.store import FeatureStore
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
Make = Callable[..., Any]

CLASSES = ["zebra", "ant", "moth"]


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No progress bars, no network, and nothing written outside the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def make() -> Make:
    """A real data set of small images; the i-th is of the value i."""

    def data(labels: Sequence[Any], paths: bool = True, kind: Any = None, **more: Sequence[Any]) -> Any:
        images = [{"bytes": png(i), "path": f"{i}.png" if paths else None} for i in range(len(labels))]
        features = {"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=CLASSES)}
        features |= {name: datasets.ClassLabel(names=CLASSES) for name in more}
        return datasets.Dataset.from_dict({"image": images, "label": labels, **more}, features=datasets.Features(features))

    return data


def load(*sources: Path | str) -> DataSet:
    return load_data([str(source) for source in sources])


def listed(data: DataSet) -> dict[str, dict[str, tuple[str | None, int]]]:
    """Split -> id -> class and value of the image."""
    return {
        name: {
            sample: (
                data.classes[split.labels[i]] if split.labels[i] >= 0 else None,
                int(np.asarray(Image.open(io.BytesIO(split.read(i))))[0, 0, 0]),
            )
            for i, sample in enumerate(split.ids)
        }
        for name, split in data.splits.items()
    }


# --- save_to_disk


def test_a_saved_data_set(make: Make, tmp_path: Path) -> None:
    make([2, 0, 1, 0, -1]).save_to_disk(tmp_path / "x", num_shards=2)
    data = load(f"hf:{tmp_path / 'x'}")
    names = ["moth", "zebra", "ant", "zebra", None]
    assert listed(data) == {"all": {f"{i}.png": (name, i) for i, name in enumerate(names)}}
    assert data.classes == ["ant", "moth", "zebra"]  # sorted, whatever numbers the data set gives them
    assert data.notes == [
        "all: ids are the paths of the images in the data set",
        "all: labels from the column label",
        "all: 1 of 5 images have no label",
    ]


def test_saved_splits(make: Make, tmp_path: Path) -> None:
    splits = {"train": make([2, 0, 1]), "validation": make([1]), "test": make([0, 0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "x")
    data = load(f"hf:{tmp_path / 'x'}")
    assert listed(data) == {
        "train": {"0.png": ("moth", 0), "1.png": ("zebra", 1), "2.png": ("ant", 2)},
        "val": {"0.png": ("ant", 0)},
        "test": {"0.png": ("zebra", 0), "1.png": ("zebra", 1)},
    }
    assert "train: the split 'validation' is called val" in data.notes
    assert listed(load(f"test=hf:{tmp_path / 'x'}")) == {"test": listed(data)["test"]}
    assert listed(load(f"train=hf:{tmp_path / 'x/validation'}")) == {"train": listed(data)["val"]}


def test_rows_that_were_selected(make: Make, tmp_path: Path) -> None:
    make([2, 0, 1, 1]).shuffle(seed=3).filter(lambda row: row["label"] != 0).save_to_disk(tmp_path / "x")
    assert listed(load(f"hf:{tmp_path / 'x'}")) == {"all": {"0.png": ("moth", 0), "2.png": ("ant", 2), "3.png": ("ant", 3)}}


@pytest.mark.parametrize("paths", ["none", "the same", "absolute"])
def test_row_numbers_where_paths_are_no_ids(make: Make, tmp_path: Path, paths: str) -> None:
    data = make([2, 0, 1], paths=paths != "none")
    images = {"the same": "x.png", "absolute": "/data/{}.png"}
    if paths != "none":
        rows = [{"bytes": png(i), "path": images[paths].format(i)} for i in range(3)]
        data = datasets.Dataset.from_dict({"image": rows, "label": [2, 0, 1]}, features=data.features)
        # saved as they are: save_to_disk would shorten the paths
        table = data.data.table.cast(data.features.arrow_schema)
        pq.write_table(table, tmp_path / "x.parquet")
        found = load(f"hf:{tmp_path / 'x.parquet'}")
    else:
        data.save_to_disk(tmp_path / "x")
        found = load(f"hf:{tmp_path / 'x'}")
    assert listed(found) == {"all": {"00000000": ("moth", 0), "00000001": ("zebra", 1), "00000002": ("ant", 2)}}
    why = "not unique" if paths == "the same" else "missing or absolute"
    assert f"all: ids are row numbers: the paths of the images are {why}" in found.notes


# --- Parquet


def test_parquet_files_as_on_the_hub(make: Make, tmp_path: Path) -> None:
    make([2, 0, 1]).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    make([1, 1]).map(lambda _, i: {"image": {"bytes": png(9), "path": f"9{i}.png"}}, with_indices=True).to_parquet(
        tmp_path / "train-00001-of-00002.parquet"
    )
    make([0]).to_parquet(tmp_path / "validation-00000-of-00001-0123456789abcdef.parquet")
    expected = {
        "train": {"0.png": ("moth", 0), "1.png": ("zebra", 1), "2.png": ("ant", 2), "90.png": ("ant", 9), "91.png": ("ant", 9)},
        "val": {"0.png": ("zebra", 0)},
    }
    for source in (f"hf:{tmp_path}", f"hf:{tmp_path}/*.parquet", f"hf:{tmp_path}/*-0000?-of-*"):
        assert listed(load(source)) == expected
    assert listed(load(f"test=hf:{tmp_path}/val*.parquet")) == {"test": expected["val"]}


def test_parquet_files_that_are_missing(make: Make, tmp_path: Path) -> None:
    """A download that stopped is not a data set; a pattern takes what it names, and says so."""
    make([2, 0, 1]).to_parquet(tmp_path / "train-00001-of-00003.parquet")
    with pytest.raises(DataError, match=r"1 of the 3 files of train are there; download the others"):
        load(f"hf:{tmp_path}")
    data = load(f"hf:{tmp_path}/train-*")
    assert len(data.splits["train"].ids) == 3
    assert "train: 1 of the 3 files of train are there" in data.notes


def test_parquet_files_by_other_names(make: Make, tmp_path: Path) -> None:
    make([2]).to_parquet(tmp_path / "test.parquet")
    make([0]).to_parquet(tmp_path / "train.parquet")
    assert set(load(f"hf:{tmp_path}").splits) == {"train", "test"}
    assert listed(load(f"hf:{tmp_path / 'test.parquet'}")) == {"test": {"0.png": ("moth", 0)}}
    (tmp_path / "test.parquet").rename(tmp_path / "part_b.parquet")
    with pytest.raises(DataError, match="matches files of train and others"):
        load(f"hf:{tmp_path}")
    (tmp_path / "train.parquet").rename(tmp_path / "part_a.parquet")
    assert listed(load(f"hf:{tmp_path}")) == {"all": {"00000000": ("zebra", 0), "00000001": ("moth", 0)}}


# --- columns


def test_columns_are_chosen(make: Make, tmp_path: Path) -> None:
    """As in CIFAR-100, which has two kinds of labels."""
    data = make([2, 0], coarse=[1, 1])
    data.rename_columns({"image": "img", "label": "fine"}).save_to_disk(tmp_path / "x")
    with pytest.raises(DataError, match=r"has the labels fine, coarse; choose by \?label=COLUMN"):
        load(f"hf:{tmp_path / 'x'}")
    assert listed(load(f"hf:{tmp_path / 'x'}?label=coarse")) == {"all": {"0.png": ("ant", 0), "1.png": ("ant", 1)}}
    chosen = load(f"train=hf:{tmp_path / 'x'}?label=fine&image=img")
    assert listed(chosen) == {"train": {"0.png": ("moth", 0), "1.png": ("zebra", 1)}}
    for query, message in {
        "label=x": r"the label 'x' is not there; the columns are img, fine, coarse",
        "label=img": r"'img' is struct.*, not integers or text",
        "label=fine&image=fine": "no column of images called 'fine'",
        "lable=fine": "no option 'lable'; the options are image, label",
    }.items():
        with pytest.raises(DataError, match=message):
            load(f"hf:{tmp_path / 'x'}?{query}")


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("int64", [7, 12, -1], ["00007", "00012", None]),
        ("uint8", [0, 1, None], ["00000", "00001", None]),
        ("string", ["cat", "7", None], ["cat", "7", None]),
        ("large_string", ["cat", "dog", ""], ["cat", "dog", None]),
    ],
)
def test_labels_without_names(make: Make, tmp_path: Path, kind: str, labels: list[Any], names: list[str | None]) -> None:
    make(labels, kind=datasets.Value(kind)).save_to_disk(tmp_path / "x")
    assert [listed(load(f"hf:{tmp_path / 'x'}"))["all"][f"{i}.png"][0] for i in range(3)] == names


def test_no_labels(make: Make, tmp_path: Path) -> None:
    make([2, 0]).rename_column("label", "kind").cast_column("kind", datasets.Value("int64")).save_to_disk(tmp_path / "x")
    data = load(f"hf:{tmp_path / 'x'}")
    assert listed(data) == {"all": {"0.png": (None, 0), "1.png": (None, 1)}}
    assert any("no labels: no column is called label; ?label=COLUMN takes one of image, kind" in note for note in data.notes)
    assert load(f"hf:{tmp_path / 'x'}?label=kind").classes == ["00000", "00002"]


def test_labels_that_cannot_be(make: Make, tmp_path: Path) -> None:
    make([0.5, 1.5], kind=datasets.Value("float32")).save_to_disk(tmp_path / "float")
    with pytest.raises(DataError, match="'label' is float, not integers or text"):
        load(f"hf:{tmp_path / 'float'}")
    table = make([0, 2]).data.table
    schema = table.schema.with_metadata({b"huggingface": table.schema.metadata[b"huggingface"].replace(b', "moth"', b"")})
    pq.write_table(table.cast(schema), tmp_path / "few.parquet")
    with pytest.raises(DataError, match="numbers up to 2, and 2 different names"):
        load(f"hf:{tmp_path / 'few.parquet'}")


# --- images


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_images_in_files_of_their_own(tmp_path: Path, kind: str) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [{"bytes": None, "path": str(tmp_path / "1.png")}, {"bytes": png(2), "path": "2.png"}]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, struct)})
    (tmp_path / "x").mkdir()
    if kind == "parquet":
        pq.write_table(table, tmp_path / "x/x.parquet")
    else:
        with pa.ipc.new_stream(tmp_path / "x/x.arrow", table.schema) as stream:
            stream.write_table(table)
        (tmp_path / "x/state.json").write_text(json.dumps({"_data_files": [{"filename": "x.arrow"}]}))
    with pytest.raises(DataError, match="images that are not in it but in files of their own; embed them"):
        load(f"hf:{tmp_path / 'x'}")


def test_images_that_are_nothing_are_left_out(make: Make, make_spec: Make, run_extract: RunExtract, tmp_path: Path) -> None:
    """Through an extraction: recorded as undecodable, and the others are there."""
    data = make([2, 0, 1, 1])
    rows = [{"bytes": png(40 * i), "path": None} for i in range(4)]
    rows[1] = {"bytes": b"not an image", "path": None}
    content = {"image": [*rows[:2], None, rows[3]], "label": [2, 0, 1, 1]}
    datasets.Dataset.from_dict(content, features=data.features).save_to_disk(tmp_path / "x")
    store, _ = run_extract(make_spec(data=(f"hf:{tmp_path / 'x'}",), blocks={3: set()}, max_bad=2))
    left_out = {bad.id: bad.reason for bad in store.rows("all").left_out.values()}
    assert left_out.keys() == {"00000001", "00000002"}
    assert left_out["00000002"] == "the file is empty"
    assert store.classes == ["ant", "moth", "zebra"]


# --- what is no data set


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.txt", "*.parquet"])
def test_what_is_no_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=r"is neither a data set saved|no file for 1"):
        load(f"hf:{tmp_path / name}")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_data_files": []}', '{"_data_files": [{"filename": "x.arrow"}]}'])
def test_folders_that_are_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(DataError, match=r"state\.json|x\.arrow: cannot be read"):
        load(f"hf:{tmp_path}")


def test_tables_without_images(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path / "x")
    with pytest.raises(DataError, match=r"has 0 columns of images.*The columns are text \(string\), label \(int64\)"):
        load(f"hf:{tmp_path / 'x'}")
