from __future__ import annotations

import pytest
from diffssl.store import Block, FeatureKey, expand, merged_pools

BLOCKS = [Block(1, "Conv", 32, 8, 0.5, 0.25), Block(2, "Res+Attn", 64, 4, 2.0, 1.0)]


def test_json_round_trip_ignores_unknown_fields() -> None:
    for block in BLOCKS:
        assert Block.from_json({**block.to_json(), "later": 1}) == block
    assert BLOCKS[1].to_json() == {"number": 2, "kind": "Res+Attn", "channels": 64, "size": 4, "gflop": 2.0, "share": 1.0}


@pytest.mark.parametrize(("pool", "side"), [(1, 1), (4, 4), (5, 4), (64, 4), ("full", 4)])
def test_pool_never_upsamples(pool: int | str, side: int) -> None:
    assert BLOCKS[1].pool(pool) == side


def test_expand_is_the_grid_in_order() -> None:
    keys = expand(BLOCKS, {2: set(), 1: {2}}, [90, 10], [1], [1, 0])
    assert keys == [
        FeatureKey(1, 10, 2, 0),
        FeatureKey(1, 10, 2, 1),
        FeatureKey(1, 90, 2, 0),
        FeatureKey(1, 90, 2, 1),
        FeatureKey(2, 10, 1, 0),
        FeatureKey(2, 10, 1, 1),
        FeatureKey(2, 90, 1, 0),
        FeatureKey(2, 90, 1, 1),
    ]


def test_expand_merges_what_is_the_same_map() -> None:
    assert expand(BLOCKS, {2: set()}, [10], [4, 8, "full"]) == [FeatureKey(2, 10, 4)]


def test_expand_reads_iterators_once() -> None:
    keys = expand(BLOCKS, {1: set(), 2: set()}, iter([10, 90]), iter([1, 2]), iter([0]))
    assert len(keys) == 8


def test_expand_without_timesteps() -> None:
    assert expand(BLOCKS, {1: set()}, [None], [1]) == [FeatureKey(1, None, 1)]


def test_merged_pools_says_what_is_too_large() -> None:
    pools: list[int | str] = [4, 8, "full"]
    assert merged_pools(BLOCKS, {1: set(), 2: {16}}, [4, 8]) == ["block 2: pool 16 is stored as 4, the size of its map"]
    assert merged_pools(BLOCKS, {2: set()}, iter(pools)) == ["block 2: pool 8 is stored as 4, the size of its map"]


def test_a_class_token_is_in_the_json_only_where_there_is_one() -> None:
    block = Block(3, "Attn+MLP", 64, 4, 2.0, 1.0, class_token=True)
    assert block.to_json()["class_token"] is True
    assert Block.from_json(block.to_json()) == block
    assert not Block.from_json(BLOCKS[0].to_json()).class_token


def test_expand_with_class_tokens() -> None:
    keys = expand(BLOCKS, {1: {"cls"}, 2: set()}, [None], ["cls", 8])
    assert keys == [FeatureKey(1, None, "cls"), FeatureKey(2, None, "cls"), FeatureKey(2, None, 4)]
    assert merged_pools(BLOCKS, {2: set()}, ["cls", 8]) == ["block 2: pool 8 is stored as 4, the size of its map"]
