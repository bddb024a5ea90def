from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffssl.extract import CheckpointMismatch
from diffssl.extract.tensors import tensors_sha256
from diffssl.extract.weights import state_sha256
from torch import nn


@pytest.fixture
def net() -> nn.ModuleDict:
    """A network whose names begin with its parts'."""
    parts = {"unet": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "vae": nn.Linear(5, 2, dtype=torch.bfloat16)}
    return nn.ModuleDict(parts)


def save(part: nn.Module, path: Path) -> Path:
    safetensors.torch.save_file(part.state_dict(), path)
    return path


def test_the_digest_is_that_of_the_network(net: nn.ModuleDict, tmp_path: Path) -> None:
    files = {name: [save(part, tmp_path / f"{name}.safetensors")] for name, part in net.items()}
    assert tensors_sha256(files) == state_sha256(net)
    assert tensors_sha256(dict(reversed(files.items()))) == state_sha256(net)
    assert tensors_sha256({"unet": files["unet"]}) != state_sha256(net)


def test_how_tensors_are_spread_over_files_does_not_matter(net: nn.ModuleDict, tmp_path: Path) -> None:
    state = net["unet"].state_dict()
    paths = []
    for i, (name, value) in enumerate(state.items()):
        paths.append(tmp_path / f"{9 - i}.safetensors")
        safetensors.torch.save_file({name: value}, paths[-1], metadata={"note": str(i)})
    whole = save(net["unet"], tmp_path / "whole.safetensors")
    assert tensors_sha256({"unet": paths}) == tensors_sha256({"unet": [whole]})


def test_every_bit_name_and_shape_matters(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    states = [{"a": one}, {"b": one}, {"a": one.view(2, 3)}, {"a": one.half()}, {"a": one + 2**-22}, {"a": one, "b": one[:0]}]
    found = set()
    for i, state in enumerate(states):
        safetensors.torch.save_file(state, tmp_path / f"{i}.safetensors")
        found.add(tensors_sha256({"unet": [tmp_path / f"{i}.safetensors"]}))
    assert len(found) == len(states)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_damaged_files_are_named(net: nn.ModuleDict, tmp_path: Path, cut: int) -> None:
    path = save(net["unet"], tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointMismatch, match=r"cut\.safetensors"):
        tensors_sha256({"unet": [path]})
