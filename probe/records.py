"""The result line of a fit: what decides its numbers, and the numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from ..store import FeatureStore, canonical_json, digest
from .fit import Fit
from .inputs import FitInput
from .metrics import classification_metrics, hits, predictions
from .predictions import pack_hits, pack_missed
from .protocol import Protocol, size
from .results import result_key
from .scoring import score_name
from .spec import ProbeSpec, has_randomness
from .subsets import Subset
from .target_metrics import multilabel_metrics, regression_metrics
from .targets import Targets

_SCORED = ("data_id", "rows", "test_store")  # parts of a specification that the test rows have a say in
PROTOCOL = 2  # number of the way a fit is made; part of its key, raised when results would change


def specifications(
    store: FeatureStore,
    spec: ProbeSpec,
    targets: Targets,
    protocol: Protocol,
    one: FitInput,
    subset: Subset | None,
    heads: Sequence[str],
    tested: FeatureStore,
) -> list[dict[str, Any]]:
    """One per head and seed: everything that decides the fit's numbers. Its hash is the fit's key."""
    shared = {
        "protocol": PROTOCOL,
        "preset": spec.protocol,
        "standardise": spec.preset.standardise,
        "feature_id": store.feature_id,
        "data_id": {split: store.data_id(split) for split in protocol.splits if split in store.splits},
        "rows": protocol.digest,
        "trained": protocol.trained,
        "setting": one.setting,
        "copies": None if one.copies is None else {split: list(map(list, own)) for split, own in one.copies.items()},
        "task": targets.task,
        "targets": targets.source,
        "subset": None if subset is None else subset.to_json(),
        "test_store": None if tested is store else tested.feature_id,
        "refit": spec.refit,
    }
    return [
        {**shared, "head": head, "options": spec.head_options(head), "seed": seed}
        for head in heads
        for seed in range(spec.seeds if has_randomness(head) else 1)
    ]


def fit_seed(specification: Mapping[str, Any]) -> int:
    """Seed of a fit's generators: of what decides the fitted head, not of its test rows, nor of what was fitted before."""
    decisive = {name: value for name, value in specification.items() if name not in _SCORED}
    return int(digest(canonical_json(decisive).decode(), 4), 16)


def stream_seed(specification: Mapping[str, Any]) -> int:
    """Seed of the order of row blocks, the same for all heads and seeds of an input, which are trained together."""
    return fit_seed({name: specification[name] for name in ("feature_id", "trained", "setting", "copies")})


def make_record(
    specification: Mapping[str, Any], one: FitInput, fitted: Fit, protocol: Protocol, targets: Targets, test_rows: str
) -> dict[str, Any]:
    """The result line of a fit; ``seconds`` and what it was made with are added where they are known."""
    rng = np.random.default_rng(fit_seed(specification))
    return {
        "key": result_key(specification),
        **{name: specification[name] for name in ("feature_id", "data_id", "head", "seed", "task")},
        **one.fields(),
        **(specification["subset"] or {}),
        "n_train": size(protocol.refit),
        "n_select": size(protocol.select),
        "n_test": len(fitted.labels),
        "classes": len(targets.names),
        **fitted.chosen,
        **_tested(fitted, targets, rng),
        "test_rows": test_rows,
        "specification": dict(specification),
        "notes": list(protocol.notes),
        "versions": versions(),
    }


def failure(specification: Mapping[str, Any]) -> dict[str, Any]:
    """What names a fit that could not be made, in the results and to people."""
    return {"key": result_key(specification), **{name: specification[name] for name in ("head", "seed", "setting")}}


def scored_record(result: Mapping[str, Any], fitted: Fit, targets: Targets, rng: np.random.Generator) -> dict[str, Any]:
    """What a head that was kept scores on other rows, with the setting and the fit it comes from."""
    names = ("key", "head", "seed", "task", "block", "timestep", "pool", "draw", "crop")
    return {name: result[name] for name in names} | {"n_test": len(fitted.labels)} | _tested(fitted, targets, rng)


def _tested(fitted: Fit, targets: Targets, rng: np.random.Generator) -> dict[str, Any]:
    """Metrics of the test rows by one noise draw, and of their mean over draws where there are several."""
    found = {f"test_{name}": value for name, value in _metrics(fitted, fitted.scores[0], targets, rng).items()}
    if targets.task == "classify":
        hit = hits(fitted.scores[0], fitted.labels, 1)
        found["test_hits"] = pack_hits(hit)
        found["test_missed"] = pack_missed(predictions(fitted.scores[0])[~hit], len(targets.names))
    if len(fitted.scores) > 1:
        name = score_name(targets.task)
        each = [_metrics(fitted, own, targets, rng)[name] for own in fitted.scores]
        together = _metrics(fitted, _mean(fitted, targets), targets, rng)
        found |= {f"test_{name}_draws": each}
        found |= {f"test_{name}_ensemble{end}": together[f"{name}{end}"] for end in ("", "_low", "_high")}
    return found


def _metrics(fitted: Fit, scores: NDArray[np.floating], targets: Targets, rng: np.random.Generator) -> Mapping[str, Any]:
    if targets.task == "classify":
        return classification_metrics(scores, fitted.labels, rng, fitted.log_odds)
    measure = multilabel_metrics if targets.task == "multilabel" else regression_metrics
    return measure(scores, fitted.labels, rng)


def _mean(fitted: Fit, targets: Targets) -> NDArray[np.floating]:
    """Mean over draws: of probabilities where the scores are log-odds of classes, given as log-odds, else of scores."""
    stacked = np.stack(fitted.scores)
    if targets.task != "classify" or not fitted.log_odds:
        mean: NDArray[np.floating] = stacked.mean(axis=0)
        return mean
    with np.errstate(divide="ignore"):
        logs: NDArray[np.floating] = np.log(softmax(stacked, axis=2).mean(axis=0))
    return logs


def versions() -> dict[str, str]:
    """Versions, and the threads of a fit."""
    return {
        "diffssl": version("diffssl"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
