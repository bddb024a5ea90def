"""Labels from files: known answers, rows matched by id, errors that say which line."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.probe import ProbeSpec
from diffssl.probe.errors import LabelsError
from diffssl.probe.study import prepare
from diffssl.probe.targets import read_targets, store_targets
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]
Fits = Callable[..., list[dict[str, Any]]]

KEY = FeatureKey(1, 10, 1)
SPLITS = ("train", "test")


def write(path: Path, columns: Mapping[str, list[Any]]) -> Path:
    """A CSV of columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def answers(store: FeatureStore, seed: int = 0) -> tuple[list[str], NDArray[np.float64]]:
    """All ids in an order of their own, and of each the two numbers x0 - x1 and x2 of its features."""
    ids = np.concatenate([store.ids(split) for split in SPLITS])
    values = np.concatenate([store.read(KEY, split).reshape(-1, 8) for split in SPLITS]).astype(np.float64)
    order = np.random.default_rng(seed).permutation(len(ids))
    return ids[order].tolist(), np.stack([values[:, 0] - values[:, 1], values[:, 2]], axis=1)[order]


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    """Noise: what its classes are cannot be told from it."""
    return make_store({"train": 400, "test": 200}, [KEY], separation=0.0)


# Known answers


def test_classes_are_matched_by_id(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    ids, numbers = answers(store)
    path = write(tmp_path / "sign.csv", {"sign": ["up" if x > 0 else "down" for x in numbers[:, 0]], "id": ids})
    (result,) = fits(store, "linear", labels=path, steps=200)
    (plain,) = fits(store, "linear", steps=200)
    assert result["test_top1"] > 0.9
    assert plain["test_top1"] < 0.45  # chance is 0.25
    assert (result["classes"], result["task"]) == (2, "classify")
    assert result["key"] != plain["key"]
    targets = read_targets(path, "classify", store, SPLITS)
    assert list(targets.names) == ["down", "up"]
    for split in SPLITS:
        values = store.read(KEY, split).reshape(-1, 8).astype(np.float64)
        assert targets.values[split].tolist() == (values[:, 0] - values[:, 1] > 0).astype(int).tolist()


def test_the_order_of_lines_does_not_matter(store: FeatureStore, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        ids, numbers = answers(store, seed)
        path = write(tmp_path / f"{seed}.csv", {"id": ids, "a": numbers[:, 0].tolist(), "b": numbers[:, 1].tolist()})
        found.append(read_targets(path, "regress", store, SPLITS))
    assert found[0].values.keys() == found[1].values.keys()
    for split in SPLITS:
        np.testing.assert_array_equal(found[0].values[split], found[1].values[split])
        assert found[0].values[split].dtype == np.float32


def test_numbers(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """Linear in the features, so R2 is 1 but for what few steps of training miss."""
    ids, numbers = answers(store)
    path = write(tmp_path / "numbers.csv", {"id": ids, "difference": numbers[:, 0].tolist(), "third": numbers[:, 1].tolist()})
    (result,) = fits(store, "linear", labels=path, task="regress", learning_rates=[0.1], steps=150)
    assert result["test_r2"] > 0.99
    assert result["val_r2"] > 0.99
    assert result["test_r2_low"] <= result["test_r2"] <= result["test_r2_high"] <= 1
    assert "test_top1" not in result
    assert "test_hits" not in result


def test_labels_beside_each_other(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    ids, numbers = answers(store)
    yes = (numbers > 0.5).astype(int)
    path = write(tmp_path / "attributes.csv", {"id": ids, "one": yes[:, 0].tolist(), "two": yes[:, 1].tolist()})
    (result,) = fits(store, "linear", labels=path, task="multilabel", learning_rates=[0.1], steps=150)
    assert result["test_map"] > 0.9
    rng = np.random.default_rng(0)
    shuffled = write(tmp_path / "shuffled.csv", {"id": ids, "one": rng.permutation(yes[:, 0]).tolist()})
    (chance,) = fits(store, "linear", labels=shuffled, task="multilabel")
    assert chance["test_map"] < 0.6  # about a third of the rows have it


def test_shuffled_answers_are_not_known(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    ids, numbers = answers(store)
    path = write(tmp_path / "numbers.csv", {"id": ids[::-1], "x": numbers[:, 0].tolist()})
    assert fits(store, "linear", labels=path, task="regress")[0]["test_r2"] < 0.1


# What is not known


def test_missing_ids_are_counted_and_left_out(store: FeatureStore, tmp_path: Path) -> None:
    ids = [*store.ids("train")[:100], *store.ids("test")[:50], "nobody.png", "nothing.png"]
    cells = ["a", "b"] * 76
    cells[3] = ""
    path = write(tmp_path / "some.csv", {"id": ids, "answer": cells})
    lines: list[str] = []
    (group,) = prepare(ProbeSpec(store.path, ["linear"], labels=path), lines.append).groups
    assert "labels: some.csv, classify; 100 of 400 rows of train have a line there" in lines
    assert "labels: some.csv, classify; 50 of 200 rows of test have a line there" in lines
    assert "labels: 2 lines of some.csv are about none of these rows" in lines
    assert "train: 301 rows without a label are left out" in lines
    rows = np.union1d(group.protocol.fit["train"], group.protocol.select["train"])
    assert rows.tolist() == [row for row in range(100) if row != 3]
    assert group.protocol.test["test"].tolist() == list(range(50))


def test_an_empty_cell_is_left_out_alone(store: FeatureStore, fits: Fits, tmp_path: Path) -> None:
    """A row with one of two numbers is used for the one that it has; a row with none is not used."""
    ids, numbers = answers(store)
    cells: list[list[Any]] = numbers.tolist()
    for row in range(0, 600, 3):
        cells[row][row % 2] = ""
    cells[0] = ["", ""]
    path = write(tmp_path / "holes.csv", {"id": ids, "a": [one for one, _ in cells], "b": [two for _, two in cells]})
    targets = read_targets(path, "regress", store, SPLITS)
    assert sum(int((~targets.known(split)).sum()) for split in SPLITS) == 1
    assert sum(int(np.isnan(targets.values[split]).sum()) for split in SPLITS) == 201
    (result,) = fits(store, "linear", labels=path, task="regress", learning_rates=[0.1], steps=150)
    assert result["test_r2"] > 0.99


def test_a_column_split_says_which_of_two_rows_of_one_id_is_meant(make_store: MakeStore, tmp_path: Path) -> None:
    ids = [f"c/{number}" for number in range(20)]
    store = make_store({"train": ids, "test": ids})
    plain = write(tmp_path / "plain.csv", {"id": ids, "x": list(range(20))})
    with pytest.raises(LabelsError, match=r"plain\.csv, line 2: 'c/0' is in train and test; add a column split"):
        read_targets(plain, "regress", store, SPLITS)
    both: dict[str, list[Any]] = {"id": ids * 2, "split": ["train"] * 20 + ["test"] * 20, "x": list(range(40))}
    targets = read_targets(write(tmp_path / "both.csv", both), "regress", store, SPLITS)
    for split, first in (("train", 0), ("test", 20)):
        assert targets.values[split][:, 0].tolist() == [first + int(name[2:]) for name in store.ids(split)]


def test_classes_can_be_given(store: FeatureStore, tmp_path: Path) -> None:
    """Numbers of classes are then theirs; others are not known."""
    ids = store.ids("test").tolist()
    path = write(tmp_path / "three.csv", {"id": ids[:3], "kind": ["oak", "elm", "ash"]})
    targets = read_targets(path, "classify", store, ["test"], ["elm", "fir", "oak"])
    assert targets.values["test"][:4].tolist() == [2, 0, -1, -1]
    assert list(targets.names) == ["elm", "fir", "oak"]


def test_the_file_decides_the_source(store: FeatureStore, tmp_path: Path) -> None:
    ids = store.ids("train").tolist()
    one, same, other = (
        read_targets(write(tmp_path / name, {"id": ids[:4], "x": cells}), "regress", store, SPLITS).source
        for name, cells in (("a.csv", [1, 2, 3, 4]), ("b.csv", [1, 2, 3, 4]), ("c.csv", [1, 2, 3, 5]))
    )
    assert one == same != other
    assert store_targets(store, SPLITS).source == "store"


def test_a_byte_order_mark_is_no_part_of_a_name(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text(f"id,x\r\n{store.ids('train')[0]},1.5\r\n", encoding="utf-8-sig", newline="")
    assert read_targets(path, "regress", store, SPLITS).values["train"][0, 0] == 1.5


# What is refused


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("name,x\na,1\n", "regress", "its first line is 'name,x'; expected the column id, and one or more of answers"),
        ("id,x,x\nID,1,2\n", "regress", "its first line is 'id,x,x'"),
        ("", "regress", "its first line is ''"),
        ("id\nID\n", "regress", "has no column of answers; --task regress wants at least one"),
        ("id,split\nID,train\n", "classify", "has no column of answers; --task classify wants one"),
        ("id,a,b\nID,x,y\n", "classify", "has the columns a, b; --task classify wants one"),
        ("id,x\nID,1,2\n", "regress", ", line 2: has not 2 cells, as the first line has"),
        ("id,x\nID\n", "regress", ", line 2: has not 2 cells"),
        ("id,x\nID,1\nID,2\n", "regress", ", line 3: 'ID' is there twice"),
        ("id,x\nelsewhere,1\n", "regress", "none of its ids ('elsewhere', …) is in "),
        ("id,x\nID,much\n", "regress", "x of 'ID' is 'much', expected a number or nothing"),
        ("id,x\nID,inf\n", "regress", "x of 'ID' is 'inf', expected a finite number"),
        ("id,x\nID,nan\n", "regress", "x of 'ID' is 'nan', expected a finite number"),
        ("id,x\nID,0.5\n", "multilabel", "x of 'ID' is '0.5'; --task multilabel wants 0 or 1"),
        ('id,x\n"ID,1\n', "regress", "cannot be read as CSV"),
        ("id,x\nID,\xe9\n", "latin-1", "cannot be read as CSV"),
    ],
)
def test_what_cannot_be_read_is_said(store: FeatureStore, tmp_path: Path, text: str, task: str, message: str) -> None:
    name = str(store.ids("train")[0])
    path = tmp_path / "labels.csv"
    path.write_text(text.replace("ID", name), encoding="latin-1" if task == "latin-1" else "utf-8")
    with pytest.raises(LabelsError, match=re.escape(f"{path}{'' if message[0] == ',' else ': '}{message}".replace("ID", name))):
        read_targets(path, "regress" if task == "latin-1" else task, store, SPLITS)


def test_a_file_that_is_not_there(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"none\.csv: cannot be read as CSV"):
        read_targets(tmp_path / "none.csv", "regress", store, SPLITS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "rank"}, "unknown task 'rank'; known are classify, multilabel, regress"),
        ({"task": "regress"}, "--task regress needs --labels FILE.csv; the store knows classes alone"),
        ({"task": "multilabel", "labels": Path("x.csv"), "heads": ["logreg"]}, "--head logreg can classify, not multilabel"),
        ({"task": "regress", "labels": Path("x.csv"), "heads": ["linear", "knn"]}, "--head knn can classify, not regress"),
        (
            {"task": "regress", "labels": Path("x.csv"), "shots": [2]},
            "--shots and --fraction are per class; with --task regress",
        ),
        ({"task": "regress", "labels": Path("x.csv"), "fraction": [0.1]}, "use --train-ids"),
    ],
    ids=["unknown", "no labels", "logreg", "knn", "shots", "fraction"],
)
def test_tasks_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ProbeSpec(**{"store": "feats.zarr", "heads": ["linear"], **options})
