"""Fitting the torch heads: all learning rates in the same pass over the features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import Moments, SettingData
from .heads import StackedMLP
from .optim import StackedAdamW
from .protocol import RowSet


@dataclass(frozen=True)
class TrainOptions:
    """How a head is trained.

    Attributes:
        hidden: widths of the hidden layers, none for a linear head.
        steps: optimiser steps; the rate follows a cosine from its peak to zero.
        batch_size: rows of a step.
        weight_decay: of AdamW.
        device: torch device.
    """

    hidden: tuple[int, ...]
    steps: int
    batch_size: int
    weight_decay: float
    device: torch.device


def train_head(
    data: SettingData,
    rows: RowSet,
    moments: Moments,
    classes: int,
    learning_rates: list[float],
    options: TrainOptions,
    seed: int,
) -> StackedMLP:
    """Train one head a learning rate, all from the same start and on the same batches.

    Args:
        data: the setting.
        rows: to train on.
        moments: to standardise with.
        classes: number of classes K.
        learning_rates: peak rates, one a copy.
        options: see :class:`TrainOptions`.
        seed: of the start and of the order of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    head = StackedMLP(len(learning_rates), (data.dimension, *options.hidden, classes), generator).to(options.device)
    rates = torch.tensor(learning_rates, device=options.device)
    optimiser = StackedAdamW(head.parameters(), rates, options.weight_decay)
    batches = data.shuffled(rows, moments, options.batch_size, np.random.default_rng(seed))
    for step in range(options.steps):
        features, labels = next(batches)
        logits = head(_tensor(features, options.device))
        target = _tensor(labels, options.device).expand(len(learning_rates), -1)
        # Summed over copies: each gets the gradient of its own mean loss.
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(0.5 * (1 + math.cos(math.pi * step / options.steps)))
    return head


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
