"""What a fit reads: one setting, or several side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..store import Block, FeatureKey, FeatureStore, common_keys
from ..store.key import grids
from .data import Copy
from .errors import NothingToProbe
from .protocol import used_splits
from .spec import FUSION_HEADS, ProbeSpec


@dataclass(frozen=True)
class FitInput:
    """The settings that a fit reads, and the copies of their rows.

    Attributes:
        keys: the settings; for heads that fuse, all blocks of the first timestep, then of the next.
        copies: split -> (draw, crop) that epochs take turns with; None for those of the keys alone.
    """

    keys: tuple[FeatureKey, ...]
    copies: Mapping[str, tuple[Copy, ...]] | None = field(default=None, hash=False)  # a mapping has no hash

    @property
    def timesteps(self) -> int:
        """How many timesteps there are among the settings."""
        return len({key.timestep for key in self.keys})

    @property
    def setting(self) -> str | list[str]:
        """Where the features are in a split; a list for several."""
        paths = [key.path for key in self.keys]
        return paths[0] if len(paths) == 1 else paths

    def fields(self) -> dict[str, Any]:
        """Block, timestep, pool, draw and crop for a result line; lists of the first three for several settings."""
        names = ("block", "timestep", "pool")
        one = len(self.keys) == 1
        fields = {name: getattr(self.keys[0], name) if one else [getattr(key, name) for key in self.keys] for name in names}
        return fields | {"draw": self.keys[0].draw, "crop": self.keys[0].crop}


def input_fields(store: FeatureStore, one: FitInput) -> dict[str, Any]:
    """What a store knows about an input, for a result line; lists where :meth:`FitInput.fields` has lists.

    Returns:
        ``map_size``, side of the block's map; ``log_snr`` of the timestep, None where there is no noise or no timestep;
        and what the input costs to compute and to keep, for an image that is trained on: ``gflop``, of the forward passes,
        one a timestep, draw and crop, each to the deepest block that is read at it; ``bytes``, of the stored features.
    """
    train = used_splits(store)[0]
    blocks = {block.number: block for block in store.header.blocks}
    copies = 1 if one.copies is None else len(one.copies[train])
    deepest: dict[int | None, float] = {}
    for key in one.keys:
        deepest[key.timestep] = max(deepest.get(key.timestep, 0), blocks[key.block].gflop)
    several: dict[str, list[Any]] = {
        "map_size": [blocks[key.block].size for key in one.keys],
        "log_snr": [store.attributes(key, train).get("log_snr") for key in one.keys],
    }
    fields = {name: values[0] if len(one.keys) == 1 else values for name, values in several.items()}
    size = sum(store.layout(key, train).row_bytes for key in one.keys)
    return fields | {"gflop": copies * sum(deepest.values()), "bytes": copies * size}


def make_inputs(store: FeatureStore, spec: ProbeSpec, head: str, keys: Sequence[FeatureKey]) -> list[FitInput]:
    """The inputs of all fits of a head, from the selected settings.

    Raises:
        NothingToProbe: the settings are not a grid, for a head that fuses one.
    """
    copies: dict[tuple[int, int | None, int | str], dict[str, tuple[Copy, ...]]] = {}
    if spec.mix_copies:
        keys = sorted({replace(key, draw=0, crop=0) for key in keys}, key=lambda key: key.order)
        there = {split: store.keys(split) for split in used_splits(store)}
        train = next(iter(there))
        for key in keys:
            same = {split: [k for k in own if _place(k) == _place(key)] for split, own in there.items()}
            copies[_place(key)] = {
                split: tuple(sorted((k.draw, k.crop) for k in own if split == train or k.crop == 0))
                for split, own in same.items()
            }
    if head in FUSION_HEADS:
        groups = [_grid(store, head, own) for own in _by_copy(keys)]
    elif spec.concat:
        groups = _by_copy(keys)
    else:
        groups = [[key] for key in keys]
    return [FitInput(tuple(group), _shared([copies[_place(key)] for key in group]) if copies else None) for group in groups]


def select_keys(store: FeatureStore, spec: ProbeSpec) -> list[FeatureKey]:
    """Settings of the store that a spec selects. Raises ``NothingToProbe``, naming what the store has."""
    # Other crops are for training on: they are mixed in, and never scored.
    have = [key for key in common_keys(store, used_splits(store)) if key.crop == 0]
    blocks = {block.number: block for block in store.header.blocks}

    def is_selected(key: FeatureKey) -> bool:
        pools = (spec.blocks or {}).get(key.block) or spec.pools
        return (
            (spec.blocks is None or key.block in spec.blocks)
            and (spec.timesteps is None or key.timestep in spec.timesteps)
            and (pools is None or key.pool in {_shown(blocks[key.block], pool) for pool in pools})
        )

    selected = [key for key in have if is_selected(key)]
    for name, absent in [
        *_absent(spec, blocks, have),
        ("settings", set() if selected else {"at all"}),
        *_absent(spec, blocks, selected),
    ]:
        if absent:
            text = ", ".join(sorted(map(str, absent)))
            raise NothingToProbe(
                f"{store.path} has no {name} {text} with the rest of the selection; it has "
                f"{'; '.join(grids(have)) or 'no settings yet'}"
            )
    return selected


def read_keys(inputs: Sequence[FitInput], splits: Sequence[str]) -> dict[str, list[FeatureKey]]:
    """Split -> every setting that any of the inputs reads of it."""
    found: dict[str, set[FeatureKey]] = {split: set() for split in splits}
    for one in inputs:
        for split, own in found.items():
            copies = None if one.copies is None else one.copies[split]
            for key in one.keys:
                own |= {key} if copies is None else {replace(key, draw=draw, crop=crop) for draw, crop in copies}
    return {split: sorted(own, key=lambda key: key.order) for split, own in found.items()}


def _place(key: FeatureKey) -> tuple[int, int | None, int | str]:
    return key.block, key.timestep, key.pool


def _by_copy(keys: Sequence[FeatureKey]) -> list[list[FeatureKey]]:
    groups: dict[Copy, list[FeatureKey]] = {}
    for key in keys:
        groups.setdefault((key.draw, key.crop), []).append(key)
    return list(groups.values())


def _shared(copies: Sequence[Mapping[str, tuple[Copy, ...]]]) -> dict[str, tuple[Copy, ...]]:
    """The copies that all of some settings have, by split."""
    first, *others = copies
    return {split: tuple(copy for copy in own if all(copy in other[split] for other in others)) for split, own in first.items()}


def _grid(store: FeatureStore, head: str, keys: Sequence[FeatureKey]) -> list[FeatureKey]:
    """Settings that are every one of some blocks at every one of some timesteps, by timestep, then by block."""
    blocks = {(key.block, key.pool) for key in keys}
    timesteps = {key.timestep for key in keys}
    if len(blocks) > len({block for block, _ in blocks}) or len(blocks) * len(timesteps) > len(keys):
        raise NothingToProbe(
            f"{store.path}: --head {head} wants each of its blocks at one pool and at each of its timesteps, such as "
            f"--blocks 19@8,24@16 --timesteps 90,150; selected are {'; '.join(grids(keys))}"
        )
    return sorted(keys, key=lambda key: (-1 if key.timestep is None else key.timestep, key.block))


def _absent(
    spec: ProbeSpec, blocks: Mapping[int, Block], keys: Sequence[FeatureKey]
) -> list[tuple[str, Collection[int | str]]]:
    """Blocks, timesteps and pools that a spec names and none of the settings has."""
    found = {(key.block, key.pool) for key in keys}
    own_pools = spec.blocks or {}
    own = {
        f"{p} of block {b}" for b, ps in own_pools.items() if b in blocks for p in ps if (b, _shown(blocks[b], p)) not in found
    }

    def is_there(pool: int | str) -> bool:
        """Whether a block has the pool, of those whose maps are large enough for it if there are any."""
        which = [b for b in spec.blocks or {key.block for key in keys} if b in blocks and not own_pools.get(b)]
        large = [b for b in which if isinstance(pool, str) or blocks[b].size >= pool]
        return not which or any((b, _shown(blocks[b], pool)) in found for b in large or which)

    return [
        ("blocks", set(own_pools) - {key.block for key in keys}),
        ("timesteps", set(spec.timesteps or ()) - {key.timestep for key in keys}),
        ("pools", own | {pool for pool in spec.pools or () if not is_there(pool)}),
    ]


def _shown(block: Block, pool: int | str) -> int | str:
    """The stored pool that an asked-for pool means."""
    return pool if pool == "cls" else block.pool(pool)
