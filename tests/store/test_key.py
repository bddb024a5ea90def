from __future__ import annotations

import random
import re

import pytest
from diffssl.store import FeatureKey
from diffssl.store.key import grids
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = st.integers(0, 10**6)
KEYS = st.builds(
    FeatureKey,
    block=st.integers(1, 10**6),
    timestep=st.none() | NUMBERS,
    pool=st.just("cls") | st.integers(1, 10**6),
    draw=NUMBERS,
    crop=NUMBERS,
)


@pytest.mark.parametrize(
    ("key", "path", "text"),
    [
        (FeatureKey(24, 90, 2), "b24/p2/t90", "block 24, timestep 90, pool 2"),
        (FeatureKey(1, 0, 1), "b1/p1/t0", "block 1, timestep 0, pool 1"),
        (FeatureKey(24, 90, 2, draw=1), "b24/p2/t90_d1", "block 24, timestep 90, pool 2, draw 1"),
        (FeatureKey(24, 90, 2, draw=1, crop=2), "b24/p2/t90_d1_c2", "block 24, timestep 90, pool 2, draw 1, crop 2"),
        (FeatureKey(24, 90, 2, crop=2), "b24/p2/t90_d0_c2", "block 24, timestep 90, pool 2, crop 2"),
        (FeatureKey(12, None, "cls"), "b12/cls/tnone", "block 12, pool cls"),
    ],
)
def test_path_and_text(key: FeatureKey, path: str, text: str) -> None:
    assert key.path == path
    assert FeatureKey.from_path(path) == key
    assert str(key) == text


@given(KEYS)
def test_path_round_trip(key: FeatureKey) -> None:
    assert FeatureKey.from_path(key.path) == key


@given(KEYS, KEYS)
def test_different_keys_have_different_paths_and_orders(a: FeatureKey, b: FeatureKey) -> None:
    assert (a == b) == (a.path == b.path) == (a.order == b.order)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "b24",
        "b24/p2",
        "b24/p2/t90/x",
        "b24/p2/t90 ",
        "b24/p2/t90\n",
        "train/features/b24/p2/t90",
        "b24/2/t90",
        "b24/p2/90",
        "b24/p2/t-1",
        "b24/p2/t90_d",
        "b24/p2/t90_c1_d1",
        "b24/pcls/t90",
        "b24/p2/tNone",
        "b0/p2/t90",
        "b24/p0/t90",
    ],
)
def test_from_path_refuses(path: str) -> None:
    with pytest.raises(ValueError, match=r"not the path of a feature array|must be"):
        FeatureKey.from_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "b024/p2/t90",
        "b24/p2/t90_d0",
        "b24/p2/t90_c1",
        "b٢٤/p2/t90",
    ],
)
def test_from_path_refuses_other_spellings_of_a_path(path: str) -> None:
    """One setting has one path: whatever is read back must be where the setting is looked for."""
    with pytest.raises(ValueError, match=re.escape(repr(path))):
        FeatureKey.from_path(path)


@pytest.mark.parametrize(
    ("block", "timestep", "pool", "draw", "crop"),
    [
        (0, 90, 1, 0, 0),
        (1, -1, 1, 0, 0),
        (1, 90, 1, -1, 0),
        (1, 90, 1, 0, -1),
        (1, 90, 0, 0, 0),
        (1, 90, "full", 0, 0),
        (1, 90, "2", 0, 0),
        (1, 90, -2, 0, 0),
    ],
)
def test_constructor_refuses(block: int, timestep: int, pool: int | str, draw: int, crop: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        FeatureKey(block, timestep, pool, draw, crop)


def test_sorting_is_by_block_pool_timestep_draw_crop() -> None:
    ordered = [
        FeatureKey(1, 90, 2),
        FeatureKey(2, None, "cls"),
        FeatureKey(2, 5, "cls"),
        FeatureKey(2, 90, 1),
        FeatureKey(2, 5, 2),
        FeatureKey(2, 5, 2, 0, 1),
        FeatureKey(2, 5, 2, 1),
        FeatureKey(2, 10, 2),
        FeatureKey(10, 0, 1),
    ]
    assert sorted(random.Random(0).sample(ordered, len(ordered)), key=lambda key: key.order) == ordered


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ([], []),
        ([FeatureKey(24, 90, 2)], ["blocks 24 x timesteps 90 x pools 2"]),
        (
            [FeatureKey(block, t, p) for block in (3, 1, 2, 7) for t in (90, 10) for p in (16, 2)],
            ["blocks 1-3,7 x timesteps 10,90 x pools 2,16"],
        ),
        (
            [FeatureKey(1, 10, 1), FeatureKey(2, 10, 1), FeatureKey(2, 10, 1, draw=1)],
            ["blocks 1 x timesteps 10 x pools 1", "blocks 2 x timesteps 10 x pools 1 x draws 0,1"],
        ),
        ([FeatureKey(12, None, "cls"), FeatureKey(12, None, 1)], ["blocks 12 x timesteps none x pools 1,cls"]),
    ],
)
def test_grids(keys: list[FeatureKey], lines: list[str]) -> None:
    assert grids(keys) == lines


def test_grids_name_no_setting_that_is_not_there() -> None:
    """They are what an error says there is: block 1 has no pool 2 at timestep 10."""
    lines = grids([FeatureKey(1, 10, 1), FeatureKey(1, 90, 2)])
    assert lines == ["blocks 1 x timesteps 10 x pools 1", "blocks 1 x timesteps 90 x pools 2"]
