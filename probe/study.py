"""A probing run: every head on every selected setting, results as they come, a ranked table."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..store import Block, FeatureKey, FeatureStore, canonical_json, common_keys, digest
from ..store.key import grids
from ..store.progress import progress_bar
from .data import Moments, SettingData
from .errors import NothingToProbe
from .fit import fit_logreg, fit_torch_head
from .metrics import classification_metrics
from .protocol import Protocol, make_protocol, size, used_splits
from .results import Results, result_key
from .spec import ProbeSpec
from .table import ranking
from .train import pick_device

Echo = Callable[[str], object]

PROTOCOL = 1  # number of the way a fit is made; part of its key, raised when results would change


def probe(spec: ProbeSpec, echo: Echo = print) -> list[dict[str, Any]]:
    """Fit every head on every selected setting, skipping what the results have, and print a ranked table.

    Returns:
        The results of all selected fits, new and old.

    Raises:
        DiffsslError: the store cannot be read, or there is nothing to fit. Results written until then are kept.
    """
    pick_device(spec.device)  # a wrong one is told before anything is read
    store = FeatureStore.open(spec.store)
    keys = select_keys(store, spec)
    protocol = make_protocol(store, keys, spec.limit, spec.refit)
    echo(f"store {spec.store}: {len(keys)} settings, heads {', '.join(spec.heads)}, results in {spec.results}")
    for note in protocol.notes:
        echo(note)
    if spec.seeds > 1 and "logreg" in spec.heads:
        echo("logreg has no randomness and is fitted once")
    results = Results(spec.results)
    known = {result["key"]: result for result in results.read()}
    fits = {key: _specifications(store, protocol, spec, key) for key in keys}
    wanted = [result_key(fit) for own in fits.values() for fit in own]
    there = sum(key in known for key in wanted)
    if there:
        echo(f"{there} of {len(wanted)} fits are there already")
    with progress_bar(len(wanted) - there, " fits", "probe") as bar:
        for key, own in fits.items():
            data = SettingData(store, key)
            map_size = next(block.size for block in store.header.blocks if block.number == key.block)
            moments = None
            for fit in own:
                if result_key(fit) in known:
                    continue
                moments = moments or data.moments(protocol.moments)
                result = _fit(fit, data, moments, protocol, len(store.classes), spec, key) | {"map_size": map_size}
                results.append(result)
                known[result["key"]] = result
                bar.update(1)
    found = [known[key] for key in wanted]
    for line in ranking(found):
        echo(line)
    return found


def select_keys(store: FeatureStore, spec: ProbeSpec) -> list[FeatureKey]:
    """Settings of the store that a spec selects. Raises ``NothingToProbe``, naming what the store has."""
    have = common_keys(store, used_splits(store))
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


def _specifications(store: FeatureStore, protocol: Protocol, spec: ProbeSpec, key: FeatureKey) -> list[dict[str, Any]]:
    """One per head and seed: everything that decides the fit's numbers. Its hash is the fit's key."""
    return [
        {
            "protocol": PROTOCOL,
            "feature_id": store.feature_id,
            "data_id": {split: store.data_id(split) for split in protocol.splits},
            "rows": protocol.digest,
            "setting": key.path,
            "head": head,
            "options": spec.head_options(head),
            "refit": spec.refit,
            "seed": seed,
        }
        for head in spec.heads
        for seed in range(1 if head == "logreg" else spec.seeds)
    ]


def _fit(
    specification: Mapping[str, Any],
    data: SettingData,
    moments: Moments,
    protocol: Protocol,
    classes: int,
    spec: ProbeSpec,
    key: FeatureKey,
) -> dict[str, Any]:
    """One fit and its result line."""
    started = time.perf_counter()
    head = specification["head"]
    # One fit's generators depend on its specification alone, not on what was fitted before.
    seed = int(digest(canonical_json(specification).decode(), 4), 16)
    if head == "logreg":
        fitted = fit_logreg(data, moments, protocol, classes, spec.refit)
    else:
        fitted = fit_torch_head(data, moments, protocol, classes, spec, head, seed)
    metrics = classification_metrics(fitted.scores, fitted.labels, np.random.default_rng(seed))
    return {
        "key": result_key(specification),
        **{name: specification[name] for name in ("feature_id", "data_id", "head", "seed")},
        "block": key.block,
        "timestep": key.timestep,
        "pool": key.pool,
        "draw": key.draw,
        "crop": key.crop,
        "n_train": size(protocol.refit),
        "n_select": size(protocol.select),
        "n_test": size(protocol.test),
        "classes": classes,
        **fitted.chosen,
        **{f"test_{name}": value for name, value in metrics.items()},
        "specification": dict(specification),
        "notes": list(protocol.notes),
        "seconds": time.perf_counter() - started,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {
        "diffssl": version("diffssl"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
