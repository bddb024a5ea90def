"""The blocks of a backbone as a store keeps them, and how asked-for settings become stored ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .key import FeatureKey
from .selection import CLASS_TOKEN, FULL


@dataclass(frozen=True)
class Block:
    """One block of a backbone, numbered from 1 in the order the data flows.

    Attributes:
        number: 1-based number.
        kind: what it is made of, such as ``Res+Attn``.
        channels: C of its output.
        size: height and width of its output map.
        gflop: GFLOP (2 x multiply-adds) per image of a forward pass that stops after this block.
        share: ``gflop`` as a fraction of the full forward pass.
        class_token: it has a class token beside its map, which is the pool ``cls``.
    """

    number: int
    kind: str
    channels: int
    size: int
    gflop: float
    share: float
    class_token: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON value of the block; of a class token only where there is one, as in stores from before there were any."""
        value = asdict(self)
        if not self.class_token:
            del value["class_token"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Block:
        """Invert :meth:`to_json`; unknown fields are ignored."""
        plain = {name: value[name] for name in cls.__dataclass_fields__ if name != "class_token"}
        return cls(**plain, class_token=value.get("class_token", False))

    def pool(self, pool: int | str) -> int | str:
        """The stored pool: ``cls`` as it is, else the true side of the pooled map.

        ``full`` and a pool larger than the map both mean the map as it is.
        """
        if pool == CLASS_TOKEN:
            return CLASS_TOKEN
        return self.size if pool == FULL else min(int(pool), self.size)


def expand(
    blocks: Sequence[Block],
    wanted: Mapping[int, Iterable[int | str]],
    timesteps: Iterable[int | None],
    pools: Iterable[int | str],
    draws: Iterable[int] = (0,),
    crops: Iterable[int] = (0,),
) -> list[FeatureKey]:
    """All settings of a grid, duplicates merged, in the order of :attr:`FeatureKey.order`.

    Args:
        blocks: of the backbone.
        wanted: block number -> pools of its own; empty to use ``pools``. Numbers must be among ``blocks``.
        timesteps: to combine with.
        pools: of the blocks without pools of their own.
        draws: noise draws.
        crops: crops.
    """
    table = {block.number: block for block in blocks}
    pools, timesteps, draws, crops = list(pools), list(timesteps), list(draws), list(crops)
    keys = {
        FeatureKey(number, timestep, table[number].pool(pool), draw, crop)
        for number, own in wanted.items()
        for pool in (list(own) or pools)
        for timestep in timesteps
        for draw in draws
        for crop in crops
    }
    return sorted(keys, key=lambda key: key.order)


def merged_pools(blocks: Sequence[Block], wanted: Mapping[int, Iterable[int | str]], pools: Iterable[int | str]) -> list[str]:
    """What :func:`expand` merges because a map is smaller than a pool, in words; nothing for ``full``."""
    table = {block.number: block for block in blocks}
    pools = list(pools)
    return [
        f"block {number}: pool {pool} is stored as {table[number].size}, the size of its map"
        for number, own in wanted.items()
        for pool in (list(own) or pools)
        if pool not in (FULL, CLASS_TOKEN) and int(pool) > table[number].size
    ]
