from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffssl.extract import DataError
from diffssl.extract.patterns import is_pattern, matching_files, refuse_mixed_splits


@pytest.fixture
def touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make files in a folder of the test, which becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return make


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{9..11}.tar", ["x-10.tar", "x-11.tar", "x-9.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{a,b-}{,0}.tar", ["a.tar", "a0.tar", "b-.tar", "b-0.tar"]),
        ("*.tar", ["a.tar", "b.tar"]),
        ("y/?[01].tar", ["y/a0.tar", "y/b1.tar"]),
        ("{a,b}/*.tar", ["a/1.tar", "a/2.tar", "b/3.tar"]),
        ("a/**/*.tar", ["a/1.tar", "a/b/c/2.tar"]),
    ],
)
def test_names(touch: Callable[..., None], pattern: str, names: list[str]) -> None:
    touch(*names, "y/ab.tar", "other.txt")
    assert is_pattern(pattern)
    assert [str(path) for path in matching_files(pattern)] == names


def test_a_file_of_that_name_is_that_file(touch: Callable[..., None]) -> None:
    touch("x[1].tar", "x1.tar")
    assert not is_pattern("x[1].tar")
    assert is_pattern("x[12].tar")
    assert not is_pattern("x1.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{0..4}.tar", r"no file for 2 of its 5 names, such as x-3\.tar, x-4\.tar"),
        ("y*.tar", r"no file for 1 of its 1 names, such as y\*\.tar"),
        ("{x,y}-*.tar", r"1 of its 2 names, such as y-\*\.tar"),
        ("fold?r", "no file for 1"),
        ("x-{0..}.tar", r"\{0\.\.\} is neither a range, as \{000\.\.146\}, nor a list"),
        ("x-{}.tar", "neither a range"),
        ("x-{5..1}.tar", "is empty"),
        ("x-{0..99999999999}.tar", "more than 1000000 numbers"),
        ("x-{0..999}{0..9999}.tar", "stands for 10000000 files"),
        ("x-{0..1.tar", "do not match"),
        ("x-{a,{b,c}}.tar", "do not match, or lie in one another"),
    ],
)
def test_patterns_that_name_nothing(touch: Callable[..., None], pattern: str, message: str) -> None:
    touch("x-0.tar", "x-1.tar", "x-2.tar", "folder/x")
    with pytest.raises(DataError, match=message) as caught:
        matching_files(pattern)
    assert str(caught.value).startswith(f"{pattern}: ")


@pytest.mark.parametrize(
    ("names", "pattern", "words"),
    [
        (["in-train-0.tar", "in-train-1.tar", "in-val-0.tar"], "*.tar", "train and val"),
        (["train/0.tar", "validation/0.tar"], "*/0.tar", "train and validation"),
        (["train-0.tar", "1.tar"], "*.tar", "train and others"),
    ],
)
def test_splits_are_not_mixed_unsaid(touch: Callable[..., None], names: list[str], pattern: str, words: str) -> None:
    touch(*names)
    with pytest.raises(DataError, match=f"matches files of {words}; give each split a pattern"):
        refuse_mixed_splits(pattern, matching_files(pattern))


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["in-train-0.tar", "in-val-0.tar"], "in-{train,val}-*.tar"),
        (["in-train-0.tar", "in-val-0.tar"], "in-train-*.tar"),
        (["test/train-0.tar", "test/train-1.tar"], "test/*.tar"),
        (["training-0.tar", "training-1.tar"], "*.tar"),
        (["latest-0.tar", "trainer-1.tar"], "*.tar"),
    ],
)
def test_splits_that_are_said_or_are_none(touch: Callable[..., None], names: list[str], pattern: str) -> None:
    touch(*names)
    refuse_mixed_splits(pattern, matching_files(pattern))
