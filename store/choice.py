"""Which settings of a store are meant by lists of splits, blocks, timesteps and pools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .errors import UnknownFeatures
from .feature_store import FeatureStore
from .key import FeatureKey, grids
from .selection import FULL


@dataclass(frozen=True)
class Choice:
    """Lists of what is wanted; None wants all.

    Attributes:
        splits: names.
        blocks: number -> pools of its own, empty for ``pools``.
        timesteps: 0-based diffusion timesteps.
        pools: sizes as they are stored (``p2`` is 2), and ``full`` for the whole map.
        draws: numbers of noise draws.
        crops: numbers of crops.
    """

    splits: Sequence[str] | None = None
    blocks: Mapping[int, Collection[int | str]] | None = None
    timesteps: Collection[int] | None = None
    pools: Collection[int | str] | None = None
    draws: Collection[int] | None = None
    crops: Collection[int] | None = None

    @property
    def wants_all(self) -> bool:
        """Whether nothing is said."""
        return self == Choice()


def choose(store: FeatureStore, choice: Choice, there: Mapping[str, Sequence[FeatureKey]]) -> dict[str, list[FeatureKey]]:
    """The settings that are meant, in the order given.

    Args:
        store: whose settings they are.
        choice: what is wanted.
        there: split -> settings to choose from.

    Returns:
        Each wanted split -> its settings among the wanted, if it has any.

    Raises:
        UnknownFeatures: a split, block, timestep or pool is in none of the settings; with those that are.
    """
    unknown = [name for name in choice.splits or () if name not in there]
    if unknown:
        raise UnknownFeatures(store.path, f"there is no split {unknown[0]!r}; the store has: {', '.join(there) or 'none yet'}")
    chosen = matching(store, choice, there)
    all_keys = list(dict.fromkeys(key for split in chosen for key in there[split]))
    sizes = _map_sizes(store)
    for keys, among in ((all_keys, ""), ([key for own in chosen.values() for key in own], " with the rest of the selection")):
        absent = _absent(choice, keys, sizes)
        if absent:
            known = "; ".join(grids(all_keys)) or "no settings yet"
            where = f" in {', '.join(chosen)}"
            raise UnknownFeatures(store.path, f"there is no {absent[0]}{among}{where}; there are: {known}")
    return chosen


def matching(store: FeatureStore, choice: Choice, there: Mapping[str, Sequence[FeatureKey]]) -> dict[str, list[FeatureKey]]:
    """What :func:`choose` returns, whether everything that is named is there or not."""
    sizes = _map_sizes(store)
    splits = [split for split in there if choice.splits is None or split in choice.splits]
    return {split: [key for key in there[split] if _is_meant(choice, key, sizes.get(key.block))] for split in splits}


def _map_sizes(store: FeatureStore) -> dict[int, int]:
    return {block.number: block.size for block in store.header.blocks}


def _is_meant(choice: Choice, key: FeatureKey, size: int | None) -> bool:
    pools = (choice.blocks or {}).get(key.block) or choice.pools
    return (
        (choice.blocks is None or key.block in choice.blocks)
        and (choice.timesteps is None or key.timestep in choice.timesteps)
        and (pools is None or key.pool in pools or (FULL in pools and key.pool == size))
        and (choice.draws is None or key.draw in choice.draws)
        and (choice.crops is None or key.crop in choice.crops)
    )


def _absent(choice: Choice, chosen: Sequence[FeatureKey], sizes: Mapping[int, int]) -> list[str]:
    """What is asked for by name and in none of the chosen settings."""
    blocks, timesteps = {key.block for key in chosen}, {key.timestep for key in chosen}
    pools = {key.pool for key in chosen} | {FULL for key in chosen if key.pool == sizes.get(key.block)}
    absent = [f"block {block}" for block in choice.blocks or () if block not in blocks]
    absent += [f"draw {draw}" for draw in choice.draws or () if draw not in {key.draw for key in chosen}]
    absent += [f"crop {crop}" for crop in choice.crops or () if crop not in {key.crop for key in chosen}]
    absent += [f"timestep {timestep}" for timestep in choice.timesteps or () if timestep not in timesteps]
    absent += [f"pool {pool}" for pool in choice.pools or () if pool not in pools]
    for block, own in (choice.blocks or {}).items():
        has = {key.pool for key in chosen if key.block == block}
        has |= {FULL} & pools if sizes.get(block) in has else set()
        absent += [f"pool {pool} of block {block}" for pool in own if pool not in has]
    return absent
