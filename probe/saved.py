"""Fitted heads on disk, a safetensors file each, and their use on other rows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..store import FeatureKey, FeatureStore, Identity, canonical_json
from .data import Moments, ProbeData
from .errors import ProbeError
from .fit import Fit
from .heads import Maker, Shape, build_head
from .own import load_maker
from .protocol import RowSet
from .spec import NUMPY_HEADS, own_head
from .targets import Targets
from .train import score_head

_MEAN, _SCALE = "moments.mean", "moments.scale"
_ANSWERS_MEAN, _ANSWERS_SCALE = "answers.mean", "answers.scale"


@dataclass(frozen=True)
class SavedHead:
    """A fitted head.

    Attributes:
        path: its file.
        about: the result line of its fit, ``identity`` of the features, ``names`` and ``task`` of the targets, ``shapes``.
        weights: as :attr:`diffssl.probe.fit.Fit.weights`.
        moments: that features are standardised with.
        answers: that undo the scale of its outputs; None where they have none.
    """

    path: Path
    about: Mapping[str, Any]
    weights: Mapping[str, NDArray[Any]]
    moments: Moments
    answers: Moments | None = None

    @property
    def keys(self) -> list[FeatureKey]:
        """The settings that it reads, in order."""
        setting = self.about["result"]["specification"]["setting"]
        return [FeatureKey.from_path(path) for path in ([setting] if isinstance(setting, str) else setting)]

    @property
    def identity(self) -> Identity:
        """What the features must be."""
        return Identity(self.about["identity"])

    def scores(self, data: ProbeData, rows: RowSet, device: torch.device) -> tuple[NDArray[np.floating], NDArray[Any]]:
        """(n, K) outputs for rows, and (n, ...) their answers. Raises ``ProbeError`` where a user's own head has changed."""
        specification = self.about["result"]["specification"]
        head, options = specification["head"], specification["options"]
        if head in NUMPY_HEADS:
            weight, bias = self.weights["weight"], self.weights["bias"]
            parts = [(values @ weight + bias, labels) for values, labels in data.in_order(rows, self.moments)]
            return np.concatenate([values for values, _ in parts]), np.concatenate([labels for _, labels in parts])
        timesteps = len({key.timestep for key in self.keys})
        shapes: list[Shape] = [(c, h, w) for c, h, w in self.about["shapes"]]
        made = build_head(head, shapes, timesteps, len(self.about["names"]), 1, options, 0, self._maker(head, options))
        made.load(0, {name: torch.from_numpy(value.copy()) for name, value in self.weights.items()})
        outputs, labels = score_head(made.to(device), data, rows, self.moments)
        return outputs[0] if self.answers is None else self.answers.undone(outputs[0]), labels

    def _maker(self, head: str, options: Mapping[str, Any]) -> Maker | None:
        """What makes a user's own head. Raises ``ProbeError`` unless its file is what it was."""
        try:
            own = own_head(head)
        except ValueError as error:
            raise ProbeError(f"{self.path}: its code is not here ({error}); run this where it was fitted") from error
        if own is None:
            return None
        if sha256(own[0].read_bytes()).hexdigest() != options["code_sha256"]:
            raise ProbeError(f"{self.path}: {own[0]} is not what it was fitted with; fit it again with --save-head")
        return load_maker(*own)


def save_head(
    folder: Path,
    result: Mapping[str, Any],
    fitted: Fit,
    moments: Moments,
    shapes: Sequence[Shape],
    targets: Targets,
    store: FeatureStore,
) -> None:
    """Write a fitted head to ``folder/KEY.safetensors``, whole or not at all; nothing for a head without weights."""
    if not fitted.weights:
        return
    about = {
        "result": {name: value for name, value in result.items() if name != "test_hits"},
        "identity": dict(store.identity.fields),
        "names": list(targets.names),
        "task": targets.task,
        "shapes": [list(shape) for shape in shapes],
        "log_odds": fitted.log_odds,
    }
    tensors = {name: np.asarray(value, order="C") for name, value in fitted.weights.items()}  # single numbers stay such
    tensors |= {_MEAN: moments.mean, _SCALE: moments.scale}
    if fitted.answers is not None:
        tensors |= {_ANSWERS_MEAN: fitted.answers.mean, _ANSWERS_SCALE: fitted.answers.scale}
    content = save(tensors, {"diffssl": canonical_json(about).decode()})
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}"
    temporary.write_bytes(content)
    temporary.replace(folder / f"{result['key']}.safetensors")


def load_heads(folder: Path) -> list[SavedHead]:
    """All heads of a folder. Raises ``ProbeError`` if there are none, or one cannot be read."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["diffssl"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            moments = Moments(weights.pop(_MEAN), weights.pop(_SCALE))
            scaled = _ANSWERS_MEAN in weights
            answers = Moments(weights.pop(_ANSWERS_MEAN), weights.pop(_ANSWERS_SCALE)) if scaled else None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ProbeError(f"{path}: cannot be read as a saved head ({error!r}); fit it again with --save-head") from error
        found.append(SavedHead(path, about, weights, moments, answers))
    if not found:
        raise ProbeError(f"{folder}: there are no saved heads; diffssl-probe --save-head {folder} keeps them")
    return found
