from __future__ import annotations

import random
from hashlib import blake2b

import numpy as np
import pytest
from diffssl.store import row_order, salted_fractions
from diffssl.store.rows import RowTable, ids_digest
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/ö.png", ""]
ID_LISTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), unique=True, max_size=20)


def test_row_order_golden() -> None:
    assert row_order(NAMES) == [3, 2, 0, 4, 1]


@given(ID_LISTS, st.randoms(use_true_random=False))
def test_row_order_is_a_function_of_the_ids_alone(names: list[str], rng: random.Random) -> None:
    listed = rng.sample(names, len(names))
    ordered = [names[i] for i in row_order(names)]
    assert sorted(row_order(names)) == list(range(len(names)))
    assert [listed[i] for i in row_order(listed)] == ordered


@given(ID_LISTS)
def test_row_order_of_a_part_is_the_part_of_the_row_order(names: list[str]) -> None:
    """Adding samples does not change the order of the others."""
    part = names[: len(names) // 2]
    whole = [names[i] for i in row_order(names)]
    assert [part[i] for i in row_order(part)] == [name for name in whole if name in part]


def test_row_order_shuffles() -> None:
    """The first tenth of the rows is a fair sample: classes listed one after the other are mixed."""
    names = [f"{i // 100:02d}/{i}.png" for i in range(2000)]
    classes = [names[i].split("/")[0] for i in row_order(names)[:200]]
    counts = [classes.count(f"{c:02d}") for c in range(20)]
    assert min(counts) >= 3
    assert max(counts) <= 20


def test_ids_digest_golden() -> None:
    assert ids_digest([]) == "cae66941d9efbd404e4d88758ea67670"
    assert ids_digest(NAMES) == "95ff704864dd2d0b3e9781371b001b96"


@given(ID_LISTS, ID_LISTS)
def test_ids_digest_differs_if_the_ids_or_their_order_do(a: list[str], b: list[str]) -> None:
    assert (ids_digest(a) == ids_digest(b)) == (a == b)


def test_ids_digest_knows_where_an_id_ends() -> None:
    assert len({ids_digest(names) for names in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"])}) == 5


def test_salted_fractions_golden() -> None:
    assert salted_fractions(NAMES, "holdout").tolist() == [
        0.09609092394985874,
        0.01428468763006352,
        0.2732824785336766,
        0.8399216216112283,
        0.165414779841613,
    ]


@given(ID_LISTS, st.text(st.characters(codec="ascii"), max_size=16))
def test_salted_fractions_by_the_formula(names: list[str], salt: str) -> None:
    fractions = salted_fractions(names, salt)
    words = [blake2b(name.encode(), digest_size=8, person=salt.encode()).digest() for name in names]
    assert fractions.dtype == np.float64
    assert fractions.tolist() == [(int.from_bytes(word, "little") >> 11) / 2**53 for word in words]
    assert all(0 <= fraction < 1 for fraction in fractions)


def test_salted_fractions_are_even_and_differ_by_salt() -> None:
    names = [f"{i}.png" for i in range(4000)]
    one, other = salted_fractions(names, "one"), salted_fractions(names, "other")
    assert np.histogram(one, bins=10, range=(0, 1))[0].min() > 300
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    # Neither do they follow the row order: a pilot has its share of held-out rows.
    assert abs(np.corrcoef(one, np.argsort(row_order(names)))[0, 1]) < 0.1


def test_salt_of_more_than_16_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        salted_fractions(NAMES, "a" * 17)


def test_row_table_has_the_length_of_its_ids() -> None:
    assert len(RowTable(np.array(NAMES, dtype=object), np.zeros(5, np.int32))) == 5
