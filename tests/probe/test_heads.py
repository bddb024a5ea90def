"""StackedMLP against torch's own layers."""

from __future__ import annotations

import pytest
import torch
from diffssl.probe.heads import StackedMLP
from torch import nn

WIDTHS = [(6, 3), (6, 10, 3), (6, 10, 7, 3)]


def build(copies: int, widths: tuple[int, ...], seed: int = 0) -> StackedMLP:
    return StackedMLP(copies, widths, torch.Generator().manual_seed(seed))


def perturb(head: StackedMLP) -> StackedMLP:
    """Give every copy weights of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return head


def plain(head: StackedMLP, copy: int) -> nn.Sequential:
    """One copy out of torch.nn.Linear and torch.nn.ReLU."""
    layers: list[nn.Module] = []
    for weight, bias in zip(head.weights, head.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            linear.weight.copy_(weight[copy].T)
            linear.bias.copy_(bias[copy, 0])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_copy_is_a_plain_network(copies: int, widths: tuple[int, ...]) -> None:
    head = perturb(build(copies, widths))
    features = torch.randn(11, 6, generator=torch.Generator().manual_seed(2))
    logits = head(features)
    assert logits.shape == (copies, 11, 3)
    for copy in range(copies):
        torch.testing.assert_close(logits[copy], plain(head, copy)(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("widths", WIDTHS)
def test_gradients_of_a_copy_are_those_of_a_plain_network(widths: tuple[int, ...]) -> None:
    head = perturb(build(3, widths))
    features = torch.randn(11, 6, generator=torch.Generator().manual_seed(2))
    head(features)[1].square().sum().backward()
    other = plain(head, 1)
    other(features).square().sum().backward()
    gradients = [parameter.grad for parameter in other.parameters()]
    for weight, bias, own_weight, own_bias in zip(head.weights, head.biases, gradients[::2], gradients[1::2], strict=True):
        assert weight.grad is not None
        assert bias.grad is not None
        assert own_weight is not None
        assert own_bias is not None
        torch.testing.assert_close(weight.grad[1].T, own_weight, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bias.grad[1, 0], own_bias, rtol=1e-4, atol=1e-4)
        assert not weight.grad[[0, 2]].any()  # copies know nothing of each other


def test_copies_start_equal_and_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = build(3, (6, 10, 3)), build(1, (6, 10, 3)), build(3, (6, 10, 3), seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    for parameter, alone, different in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        for copy in parameter:
            assert torch.equal(copy, alone[0])
        assert not torch.equal(parameter, different)


@pytest.mark.parametrize("fan_in", [16, 400])
def test_weights_start_as_those_of_a_linear_layer(fan_in: int) -> None:
    weight = build(1, (fan_in, 500)).weights[0]
    bound = fan_in**-0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(nn.Linear(fan_in, 500).weight.std().item(), rel=0.05)
    assert abs(weight.mean().item()) < 0.05 * bound


def test_keep_leaves_one_copy() -> None:
    head = perturb(build(4, (6, 10, 3)))
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    before = head(features)[2]
    head.keep(2)
    assert head(features).shape == (1, 5, 3)
    torch.testing.assert_close(head(features)[0], before)
