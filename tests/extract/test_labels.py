from __future__ import annotations

from pathlib import Path

import pytest
from diffssl.extract import DataError
from diffssl.extract.labels import class_names, label_table

FILES = ["a.png", "b.png", "ç.png"]


def table(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_labels_by_name_in_any_order(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label\nç.png,cat\na.png,dog\nb.png,cat\n")
    labels, notes = label_table(path, FILES)
    assert labels == ["dog", "cat", "cat"]
    assert notes == [f"labels from {path}"]


def test_without_a_table() -> None:
    labels, (note,) = label_table(None, FILES)
    assert labels == [None, None, None]
    assert "--labels" in note


@pytest.mark.parametrize(
    "content",
    [
        "file,label\r\na.png,cat\r\nb.png,cat\r\nç.png,cat\r\n",
        "\ufefffile,label\na.png,cat\nb.png,cat\nç.png,cat",
        "file, label \na.png,cat\nb.png,cat\nç.png,cat\n",
        'file,label\n"a.png","cat"\nb.png,cat\nç.png,cat\n',
        "file,label\na.png,cat\nb.png,cat\nç.png,cat\n\n",
        "file,label\n\na.png,cat\nb.png,cat\n\nç.png,cat\n",
    ],
    ids=["windows", "byte order mark", "spaces in the header", "quotes", "empty last line", "empty lines"],
)
def test_as_spreadsheets_write_it(tmp_path: Path, content: str) -> None:
    assert label_table(table(tmp_path, content), FILES)[0] == ["cat"] * 3


def test_labels_are_taken_as_they_are(tmp_path: Path) -> None:
    path = table(tmp_path, 'file,label\na.png,"<b>cat, ""big""</b>"\nb.png,../../etc\nç.png,007\n')
    assert label_table(path, FILES)[0] == ['<b>cat, "big"</b>', "../../etc", "007"]


def test_images_without_a_label_are_counted(tmp_path: Path) -> None:
    labels, notes = label_table(table(tmp_path, "file,label\na.png,cat\n"), FILES)
    assert labels == ["cat", None, None]
    assert notes[1].startswith("2 of 3 images have no label")


def test_an_empty_label_is_no_class(tmp_path: Path) -> None:
    """A table that is filled in half: an empty cell is no label, or an error, but never a class without a name."""
    path = table(tmp_path, "file,label\na.png,cat\nb.png,\nç.png,  \n")
    found: object
    try:
        found = label_table(path, FILES)[0]
    except DataError as error:
        found = "line 3" in str(error)
    assert found in (["cat", None, None], True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "nothing"),
        ("a.png,cat\n", "'file,label'.*a.png,cat"),
        ("label,file\ncat,a.png\n", "'file,label'"),
        ("file,label,split\n", "'file,label'"),
        ("file;label\na.png;cat\n", "'file,label'"),
        ("file,label\na.png\n", "line 2"),
        ("file,label\na.png,cat,train\n", "line 2"),
        ("file,label\na.png,cat\nb.png,cat\na.png,dog\n", "line 4"),
        ("file,label\na.png,cat\nnowhere.png,cat\n", "1 images that are not in the folder.*nowhere.png"),
        (b"file,label\n\xe7.png,cat\n", "UTF-8"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = table(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        label_table(path, FILES)
    assert str(path) in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        label_table(tmp_path / "nowhere.csv", FILES)
    with pytest.raises(DataError, match="cannot be read"):
        label_table(tmp_path, FILES)


# --- integers and names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 7, 12, 99999], ["00000", "00007", "00012", "99999"]),
        (["cat", "7", "cat"], ["cat", "7", "cat"]),
        ([3, None, -1], ["00003", None, None]),
        (["cat", "", "  ", None], ["cat", None, None, None]),
        ([None, None], [None, None]),
    ],
    ids=str,
)
def test_class_names(labels: list[int | str | None], names: list[str | None]) -> None:
    found, notes = class_names(labels, "x.json")
    assert found == names
    without = names.count(None)
    assert any("no label" in note for note in notes) == bool(without)
    assert any(f"{without} of {len(names)} images" in note for note in notes) == (0 < without < len(names))


def test_names_of_integers_do_not_depend_on_the_others() -> None:
    assert class_names([7], "x")[0] == class_names([7, 12345], "y")[0][:1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "cat"], r"integers \(1\) and names \('cat'\)"),
        ([1, "2"], "names"),
        ([-2], "-2 is not between 0 and 99999"),
        ([100000], "100000"),
    ],
    ids=str,
)
def test_labels_that_do_not_fit_together(labels: list[int | str | None], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        class_names(labels, "x.json")
    assert str(caught.value).startswith("x.json: ")
