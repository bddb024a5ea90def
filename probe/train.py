"""Fitting the torch heads: all trials in the same pass over the features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import Moments, SettingData
from .errors import ProbeError
from .heads import StackedMLP
from .optim import StackedAdamW
from .protocol import RowSet


class Trial(NamedTuple):
    """Hyper-parameters of one copy of a head."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class TrainOptions:
    """How a head is trained.

    Attributes:
        hidden: widths of the hidden layers, none for a linear head.
        steps: optimiser steps; the rate follows a cosine from its peak to zero.
        batch_size: rows of a step.
        device: torch device.
    """

    hidden: tuple[int, ...]
    steps: int
    batch_size: int
    device: torch.device


def train_head(
    data: SettingData,
    rows: RowSet,
    moments: Moments,
    classes: int,
    trials: Sequence[Trial],
    options: TrainOptions,
    seed: int,
) -> StackedMLP:
    """Train one head a trial with AdamW, all from the same start and on the same batches.

    Args:
        data: the setting.
        rows: to train on.
        moments: to standardise with.
        classes: number of classes K.
        trials: peak learning rates and weight decays, one a copy.
        options: see :class:`TrainOptions`.
        seed: of the start and of the order of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    head = StackedMLP(len(trials), (data.dimension, *options.hidden, classes), generator).to(options.device)
    rates, decays = torch.tensor(trials, device=options.device).unbind(dim=1)
    optimiser = StackedAdamW(head.parameters(), rates, decays)
    batches = data.shuffled(rows, moments, options.batch_size, np.random.default_rng(seed))
    for step in range(options.steps):
        features, labels = next(batches)
        logits = head(_tensor(features, options.device))
        target = _tensor(labels, options.device).expand(len(trials), -1)
        # Summed over copies: each gets the gradient of its own mean loss.
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(0.5 * (1 + math.cos(math.pi * step / options.steps)))
    return head


def pick_device(name: str) -> torch.device:
    """The torch device; ``auto`` is the first GPU, or the CPU. Raises ``ProbeError`` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ProbeError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@torch.inference_mode()
def score_head(
    head: StackedMLP, data: SettingData, rows: RowSet, moments: Moments, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(R, n, K) logits and (n,) labels of rows, in order."""
    logits, labels = [], []
    for features, own in data.in_order(rows, moments):
        logits.append(head(_tensor(features, device)).cpu().numpy())
        labels.append(own)
    return np.concatenate(logits, axis=1), np.concatenate(labels)


def _tensor(values: NDArray[np.float32] | NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
