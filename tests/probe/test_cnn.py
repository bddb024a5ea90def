"""The convolutional head: its formula, its size, and which maps it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffssl.probe import ProbeError
from diffssl.probe.cnn import ConvHead
from diffssl.probe.heads import build_head
from diffssl.store import FeatureKey, FeatureStore


def test_it_equals_its_formula() -> None:
    head = ConvHead((3, 5, 5), 4, 16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = head.state_dict()
    values = torch.randn(6, 3, 5, 5, generator=generator)
    x = F.conv2d(F.pad(values, (1, 1, 1, 1)), state["layers.0.weight"])
    x = F.relu(F.group_norm(x, 8, state["layers.1.weight"], state["layers.1.bias"]))
    x = F.conv2d(F.pad(x, (1, 1, 1, 1)), state["layers.3.weight"])[:, :, ::2, ::2]
    x = F.relu(F.group_norm(x, 8, state["layers.4.weight"], state["layers.4.bias"]))
    assert x.shape == (6, 16, 3, 3)
    expected = x.flatten(2).mean(2) @ state["output.weight"].T + state["output.bias"]
    torch.testing.assert_close(head([values]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "width", "classes"), [(1024, 128, 1000), (64, 32, 10)])
def test_its_size_does_not_depend_on_the_map(channels: int, width: int, classes: int) -> None:
    with torch.device("meta"):
        counts = {
            sum(parameter.numel() for parameter in ConvHead((channels, side, side), classes, width).parameters())
            for side in (4, 16)
        }
    assert counts == {9 * channels * width + 9 * width**2 + 4 * width + width * classes + classes}


@pytest.mark.parametrize("side", [1, 2, 3])
def test_small_maps_are_refused(side: int) -> None:
    with pytest.raises(ProbeError, match=f"--head cnn wants maps of 4x4 at least, got {side}x{side}"):
        build_head("cnn", [(8, side, side)], 1, 4, 1, {"width": 8}, 0)


def test_it_is_fitted_from_a_store(make_maps: Callable[..., FeatureStore], fits: Callable[..., list[dict[str, Any]]]) -> None:
    store = make_maps([FeatureKey(1, 10, 4)])
    (result,) = fits(store, "cnn")
    assert result["test_top1"] > 0.6  # chance is 0.25
    assert result["specification"]["options"]["width"] == 16
