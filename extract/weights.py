"""Weights as files: read without unpickling, compared with a network, and hashed."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import CheckpointMismatch

_SHOWN = 12


def read_state(path: Path) -> dict[str, Tensor]:
    """A ``state_dict`` from a ``.safetensors`` file or one of ``torch.save``; nothing is unpickled.

    Raises:
        CheckpointMismatch: the file is damaged, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle protocol; what matters is an error
            state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # torch raises nearly anything on bytes that are no pickle, such as KeyError
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointMismatch(
                f"{path}: holds more than weights, such as code, which is never run; save its state_dict alone"
            ) from error
        raise CheckpointMismatch(f"{path}: cannot be read as weights ({error!r})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointMismatch(f"{path}: is not a state_dict of tensors; save the model's state_dict alone")
    return state


def load_state(path: Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network its weights, in float32.

    Args:
        path: where they come from, for the error.
        model: may be on the meta device.
        state: exactly its parameters and buffers.

    Raises:
        CheckpointMismatch: the two do not fit; the differing names are listed.
    """
    expected = model.state_dict()
    lines = [f"missing: {name} {tuple(expected[name].shape)}" for name in expected if name not in state]
    lines += [f"not expected: {name} {tuple(state[name].shape)}" for name in state if name not in expected]
    lines += [
        f"shape: {name} is {tuple(state[name].shape)}, the configuration has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        shown = "\n  ".join(lines[:_SHOWN] + more)
        raise CheckpointMismatch(f"{path} does not fit its model configuration:\n  {shown}")
    model.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in state.items()}, assign=True)


def state_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's weights: of every parameter and buffer, sorted by name, name, dtype, shape and bytes.

    The first three are followed by a zero byte each; bytes are little-endian, in C order.
    """
    checksum = sha256()
    for name, value in sorted(model.state_dict().items()):
        dtype = str(value.dtype).removeprefix("torch.")
        shape = ",".join(map(str, value.shape))
        checksum.update(f"{name}\0{dtype}\0{shape}\0".encode())
        checksum.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return checksum.hexdigest()
