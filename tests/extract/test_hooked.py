from __future__ import annotations

import pytest
import torch
from diffssl.extract import ExtractError
from diffssl.extract.hooked import Unit, activations, trace
from torch import Tensor, nn


class Net(nn.Module):
    """Three layers, the second of which gives a tuple; the third runs as often as it is told."""

    def __init__(self, repeats: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.pair = _Pair(self.layers[1])
        self.repeats = repeats
        self.ended = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(self.layers[0](x))[0]
        for _ in range(self.repeats):
            x = self.layers[2](x)
        self.ended += 1
        return x

    def units(self) -> list[Unit]:
        return [Unit("First", self.layers[0]), Unit("Pair", self.pair), Unit("Last", self.layers[2])]


class _Pair(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.inner(x), None


def test_activations_are_what_the_modules_give() -> None:
    net, x = Net(), torch.randn(2, 4)
    found = activations(lambda: net(x), net.units(), {2, 3})
    assert list(found) == [2, 3]
    assert torch.equal(found[2], net.pair(net.layers[0](x))[0])
    assert torch.equal(found[3], net(x))


def test_the_forward_pass_ends_after_the_deepest_and_leaves_no_hooks() -> None:
    net, x = Net(), torch.randn(2, 4)
    assert list(activations(lambda: net(x), net.units(), [2])) == [2]
    assert list(activations(lambda: net(x), net.units(), [1, 3])) == [1, 3]
    assert net.ended == 0
    net(x)
    assert net.ended == 1
    assert not any(module._forward_hooks for module in net.modules())


def test_errors_of_the_network_are_its_own_and_leave_no_hooks() -> None:
    net = Net()
    with pytest.raises(RuntimeError, match="shapes"):
        activations(lambda: net(torch.randn(2, 5)), net.units(), [3])
    assert not any(module._forward_hooks for module in net.modules())


def test_a_trace_notes_every_unit_in_order() -> None:
    net = Net()
    noted: list[tuple[str, torch.Size]] = []
    trace(lambda: net(torch.randn(2, 4)), net.units(), lambda kind, output: noted.append((kind, output.shape)))
    assert noted == [(kind, torch.Size([2, 4])) for kind in ("First", "Pair", "Last")]
    assert net.ended == 1


@pytest.mark.parametrize(("repeats", "order"), [(0, [1, 2]), (2, [1, 2, 3, 3])])
def test_a_network_that_is_not_what_it_was_taken_for(repeats: int, order: list[int]) -> None:
    net = Net(repeats)
    with pytest.raises(ExtractError, match=f"an order that is not known here: {order}".replace("[", r"\[")):
        trace(lambda: net(torch.randn(2, 4)), net.units(), lambda *_: None)
    units = Net().units()
    with pytest.raises(ExtractError, match="not known here"):
        trace(lambda: Net()(torch.randn(2, 4)), units[::-1], lambda *_: None)
