from __future__ import annotations

import random
import re

import pytest
from diffssl.store.selection import format_numbers, parse_blocks, parse_numbers, parse_pools
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("18", [18]),
        ("18,24", [18, 24]),
        ("24,18,24", [18, 24]),
        (" 18 , 24 ", [18, 24]),
        ("1-4", [1, 2, 3, 4]),
        ("3-3", [3]),
        ("10-90:40", [10, 50, 90]),
        ("10-89:40", [10, 50]),
        ("1-3,2-5,0", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_parse_numbers(text: str, numbers: list[int]) -> None:
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("18,x,24", "x"),
        ("", ""),
        ("18,,24", ""),
        ("1-", "1-"),
        ("-4", "-4"),
        ("1-4:", "1-4:"),
        ("1:2", "1:2"),
        ("1.5", "1.5"),
        ("18,4-1", "4-1"),
        ("1-4:0", "1-4:0"),
        ("18 24", "18 24"),
        ("7,1--4", "1--4"),
    ],
)
def test_parse_numbers_quotes_the_bad_part(text: str, bad: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{bad!r} in {text!r} is ")):
        parse_numbers(text)


@pytest.mark.parametrize(
    ("text", "pools"),
    [
        ("1", [1]),
        ("4,1,2,1", [1, 2, 4]),
        ("1-3", [1, 2, 3]),
        ("full,2", [2, "full"]),
        (" full , full ", ["full"]),
        ("cls,1", [1, "cls"]),
    ],
)
def test_parse_pools(text: str, pools: list[int | str]) -> None:
    assert parse_pools(text) == pools


@pytest.mark.parametrize(("text", "bad"), [("0", "0"), ("2,0-1", "2,0-1"), ("2,Full", "Full"), ("2,half", "half"), ("2,", "")])
def test_parse_pools_quotes_the_bad_part(text: str, bad: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(bad))):
        parse_pools(text)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("24,18", {18: set(), 24: set()}),
        ("18,24@2,24@full", {18: set(), 24: {2, "full"}}),
        ("19@8,24@16,30@16", {19: {8}, 24: {16}, 30: {16}}),
        ("1-3@4,2@1-2", {1: {4}, 2: {1, 2, 4}, 3: {4}}),
        ("24@2,24@2", {24: {2}}),
    ],
)
def test_parse_blocks_in_any_order(text: str, blocks: dict[int, set[int | str]]) -> None:
    items = text.split(",")
    for seed in range(4):
        random.Random(seed).shuffle(items)
        parsed = parse_blocks(",".join(items))
        assert parsed == blocks
        assert list(parsed) == sorted(blocks)


@pytest.mark.parametrize(
    ("text", "bad"),
    [("18,24@", "''"), ("18,@2", "''"), ("18,24@x", "'x'"), ("b18", "'b18'"), ("0-3", "'0-3'"), ("24@0", "'0'")],
)
def test_parse_blocks_quotes_the_bad_part(text: str, bad: str) -> None:
    with pytest.raises(ValueError, match=re.escape(bad)):
        parse_blocks(text)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([5], "5"), ([4, 3], "3,4"), ([3, 4, 5], "3-5"), ([1, 2, 4, 5, 6, 9], "1,2,4-6,9"), ([7, 7, 7], "7")],
)
def test_format_numbers(numbers: list[int], text: str) -> None:
    assert format_numbers(numbers) == text


@given(st.lists(st.integers(0, 60), min_size=1))
def test_format_numbers_is_the_inverse_of_parse_numbers(numbers: list[int]) -> None:
    assert parse_numbers(format_numbers(numbers)) == sorted(set(numbers))
