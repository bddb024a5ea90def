"""Stacked heads against torch's own layers, copies of modules, and heads by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
import torch
from diffssl.probe import ProbeError
from diffssl.probe.attention import AttentionHead, AttentionPool
from diffssl.probe.cnn import ConvHead
from diffssl.probe.difformer import DifFormer
from diffssl.probe.heads import Copies, StackedMLP, build_head
from torch import Tensor, nn

WIDTHS = [(6, 3), (6, 10, 3), (6, 10, 7, 3)]


Head = StackedMLP | Copies
H = TypeVar("H", StackedMLP, Copies, Head)


def build(copies: int, widths: tuple[int, ...], seed: int = 0, batch_norm: bool = False) -> StackedMLP:
    return StackedMLP(copies, widths, torch.Generator().manual_seed(seed), batch_norm)


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturb(head: H) -> H:
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
    features = random(11, 6)
    logits = head(features)
    assert logits.shape == (copies, 11, 3)
    for copy in range(copies):
        torch.testing.assert_close(logits[copy], plain(head, copy)(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("widths", WIDTHS)
def test_gradients_of_a_copy_are_those_of_a_plain_network(widths: tuple[int, ...]) -> None:
    head = perturb(build(3, widths))
    features = random(11, 6)
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
    features = random(5, 6)
    before = head(features)[2]
    head.keep(2)
    assert head(features).shape == (1, 5, 3)
    torch.testing.assert_close(head(features)[0], before)


# Batch normalisation


@pytest.mark.parametrize("widths", WIDTHS)
def test_batch_normalisation_comes_first_and_is_torch_s(widths: tuple[int, ...]) -> None:
    head = perturb(build(3, widths, batch_norm=True))
    norm = nn.BatchNorm1d(6, affine=False)
    batches = [3 * random(11, 6, seed=seed) + 5 for seed in range(4)]
    for mode in (True, False):
        head.train(mode)
        norm.train(mode)
        for batch in batches:
            logits, normal = head(batch), norm(batch)
            for copy in range(3):
                torch.testing.assert_close(logits[copy], plain(head, copy)(normal), rtol=1e-5, atol=1e-5)


def test_batch_normalisation_has_nothing_to_train() -> None:
    names = [name for name, _ in build(2, (6, 3), batch_norm=True).named_parameters()]
    assert names == [name for name, _ in build(2, (6, 3)).named_parameters()]


# Copies of modules

SHAPES = [(3, 2, 2), (5, 1, 1)]


class Own(nn.Module):
    """Linear in all maps, with a buffer."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(shapes[0][0])
        self.layers = nn.ModuleList(nn.Linear(math.prod(shape), outputs) for shape in shapes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        maps = [self.norm(maps[0]), *maps[1:]]
        parts = [layer(values.flatten(1)) for layer, values in zip(self.layers, maps, strict=True)]
        return torch.stack(parts).sum(0)


def make_copies(copies: int, seed: int = 0) -> Copies:
    head = build_head("mine.py:own", SHAPES, 1, 4, copies, {}, seed, Own)
    assert isinstance(head, Copies)
    return head


def test_copies_take_the_maps_of_the_settings_in_their_order() -> None:
    head = perturb(make_copies(3)).eval()
    maps = [random(7, *shape, seed=i) for i, shape in enumerate(SHAPES)]
    logits = head(torch.cat([values.flatten(1) for values in maps], dim=1))
    assert logits.shape == (3, 7, 4)
    for copy, member in enumerate(head.members):
        torch.testing.assert_close(logits[copy], member(maps))
    assert not torch.equal(logits[0], logits[1])


def test_copies_of_a_module_start_equal_and_share_nothing() -> None:
    head = make_copies(3)
    states = [head.state(copy) for copy in range(3)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        assert len({state[name].data_ptr() for state in states}) == 3
    head(random(7, 17))[1].square().sum().backward()
    gradients = [[p.grad for p in member.parameters() if p.grad is not None and p.grad.any()] for member in head.members]
    assert [len(own) > 0 for own in gradients] == [False, True, False]


# Weights out and in


def some_head(kind: str, copies: int, seed: int = 0) -> Head:
    return make_copies(copies, seed) if kind == "copies" else build(copies, (17, 6, 4), seed, kind == "batch norm")


KINDS = pytest.mark.parametrize("kind", ["stacked", "batch norm", "copies"])


@KINDS
def test_weights_of_a_copy_make_another_head_the_same(kind: str) -> None:
    head = perturb(some_head(kind, 3))
    head(random(50, 17) + 2)  # so that what normalises has seen something
    other = some_head(kind, 1, seed=1)
    other.load(0, {name: value.clone() for name, value in head.state(2).items()})
    features = random(9, 17)
    torch.testing.assert_close(other.eval()(features)[0], head.eval()(features)[2], rtol=1e-5, atol=1e-5)
    head.keep(2)
    assert head(features).shape == (1, 9, 4)
    torch.testing.assert_close(other(features), head(features), rtol=1e-5, atol=1e-5)
    assert other.state(0).keys() == head.state(0).keys()


@KINDS
def test_loading_a_copy_leaves_the_others(kind: str) -> None:
    head = perturb(some_head(kind, 3)).eval()
    features = random(9, 17)
    before = head(features)
    head.load(1, {name: value.clone() for name, value in perturb(some_head(kind, 1, seed=1)).state(0).items()})
    after = head(features)
    for copy, same in enumerate([True, False, True]):
        assert torch.equal(before[copy], after[copy]) == same


@KINDS
def test_weights_are_without_a_gradient(kind: str) -> None:
    state = some_head(kind, 2).state(1)
    assert len(state) >= 4
    assert not any(value.requires_grad for value in state.values())


# Heads by name

MAP = (16, 4, 4)
SMALL: dict[str, Any] = {"width": 64, "depth": 1, "tokenizer": "norm", "hidden": [5]}


@pytest.mark.parametrize(
    ("name", "shapes", "timesteps", "kind"),
    [
        ("linear", [MAP], 1, StackedMLP),
        ("linear", SHAPES, 1, StackedMLP),
        ("mlp", SHAPES, 1, StackedMLP),
        ("cnn", [MAP], 1, ConvHead),
        ("attention", [MAP], 1, AttentionHead),
        ("attnpool", [MAP], 1, AttentionPool),
        ("difformer", [MAP, (8, 2, 2)] * 2, 2, DifFormer),
        ("mine.py:own", SHAPES, 1, Own),
    ],
)
def test_a_head_is_built_by_its_name_from_its_seed_alone(
    name: str, shapes: list[tuple[int, int, int]], timesteps: int, kind: type[nn.Module]
) -> None:
    state = torch.random.get_rng_state()
    own = Own if name == "mine.py:own" else None
    head, same, other = (build_head(name, shapes, timesteps, 4, 2, SMALL, seed, own) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(head.members[1] if isinstance(head, Copies) else head, kind)
    weights, again = head.state(0), same.state(1)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert not all(torch.equal(value, other.state(0)[name]) for name, value in weights.items())
    assert head(random(3, sum(map(math.prod, shapes)))).shape == (2, 3, 4)


def test_widths_and_normalisation_are_those_of_the_options() -> None:
    head = build_head("mlp", SHAPES, 1, 4, 2, {"hidden": [9, 7]}, 0)
    assert isinstance(head, StackedMLP)
    assert [tuple(weight.shape) for weight in head.weights] == [(2, 17, 9), (2, 9, 7), (2, 7, 4)]
    assert isinstance(head.norm, nn.Identity)
    normal = build_head("linear", SHAPES, 1, 4, 2, {"batch_norm": True}, 0)
    assert isinstance(normal, StackedMLP)
    assert isinstance(normal.norm, nn.BatchNorm1d)


@pytest.mark.parametrize("name", ["cnn", "attention", "attnpool"])
def test_a_head_of_one_map_refuses_several(name: str) -> None:
    with pytest.raises(ProbeError, match=f"--head {name} reads one map at a time, got 2 settings; leave out --concat"):
        build_head(name, [MAP, MAP], 1, 4, 1, SMALL, 0)


def test_a_map_that_is_too_small_to_convolve_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"maps of 4x4 at least, got 2x2"):
        build_head("cnn", [(8, 2, 2)], 1, 4, 1, SMALL, 0)
