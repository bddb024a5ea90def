"""Attention heads: the papers' sizes, and their formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffssl.probe import ProbeError
from diffssl.probe.attention import AttentionHead, AttentionPool, Block, Tokenizer, Transformer
from diffssl.probe.presets import load_preset
from diffssl.probe.train import Recipe
from diffssl.store import FeatureKey, FeatureStore
from torch import Tensor, nn

Fits = Callable[..., list[dict[str, Any]]]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """No weight at a value, such as 0 or 1, that could hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Sizes


@pytest.mark.parametrize(
    ("depth", "millions", "exactly"),
    [(1, 13.62, 13619176), (2, 26.21, 26212328), (3, 38.81, 38805480), (4, 51.40, 51398632), (5, 63.99, 63991784)],
)
def test_parameters_of_arxiv_2307_08702(depth: int, millions: float, exactly: int) -> None:
    """64 tokens of 1024 channels, 1000 classes; the number does not depend on the number of tokens."""
    with torch.device("meta"):
        for side in (8, 16):
            head = AttentionHead((1024, side, side), 1000, depth=depth)
            assert parameters(head) == exactly
    assert round(exactly / 1e6, 2) == millions
    # Written out: two norms, qkv without bias, projection, perceptron of four times the width; class token; linear layer.
    block = 2 * 2 * 1024 + 3 * 1024**2 + 1024**2 + 1024 + 2 * 4 * 1024**2 + 4 * 1024 + 1024
    assert exactly == depth * block + 1024 + 1024 * 1000 + 1000


def test_parameters_of_arxiv_2311_17921() -> None:
    """Block 24 at 16x16, with its tokenizer: a norm over the whole map and a projection."""
    with torch.device("meta"):
        head = AttentionHead((1024, 16, 16), 1000, norm=True)
    assert parameters(head) == 27786216 == 26212328 + 2 * 1024 * 16 * 16 + 1024**2 + 1024
    assert round(27786216 / 1e6, 2) == 27.79


# Formulas


def test_a_block_equals_torchs_encoder_layer() -> None:
    ours = randomised(Block(24, 4))
    theirs = nn.TransformerEncoderLayer(24, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    state = ours.state_dict()
    own = {
        "self_attn.in_proj_weight": state["qkv.weight"],
        "self_attn.in_proj_bias": torch.zeros(72),
        "self_attn.out_proj.weight": state["proj.weight"],
        "self_attn.out_proj.bias": state["proj.bias"],
        "linear1.weight": state["mlp.0.weight"],
        "linear1.bias": state["mlp.0.bias"],
        "linear2.weight": state["mlp.2.weight"],
        "linear2.bias": state["mlp.2.bias"],
        **{f"{name}.{kind}": state[f"{name}.{kind}"] for name in ("norm1", "norm2") for kind in ("weight", "bias")},
    }
    theirs.load_state_dict(own)
    tokens = randn(5, 7, 24)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def written_out(head: AttentionHead, values: Tensor) -> Tensor:
    """The head from its weights, one token and one attention head at a time."""
    state = head.state_dict()
    width = head.output.in_features
    tokens = values.flatten(2).transpose(1, 2)
    if "tokenizer.norm.weight" in state:
        mean, variance = values.mean((1, 2, 3), keepdim=True), values.var((1, 2, 3), correction=0, keepdim=True)
        normed = (values - mean) / torch.sqrt(variance + 1e-5) * state["tokenizer.norm.weight"] + state["tokenizer.norm.bias"]
        tokens = normed.flatten(2).transpose(1, 2)
    if "tokenizer.project.weight" in state:
        tokens = tokens @ state["tokenizer.project.weight"][:, :, 0, 0].T + state["tokenizer.project.bias"]
    x = torch.cat([state["transformer.cls"].expand(len(values), 1, width), tokens], dim=1)
    for number, block in enumerate(head.transformer.blocks):
        assert isinstance(block, Block)
        own = {name: state[f"transformer.blocks.{number}.{name}"] for name in block.state_dict()}
        y = F.layer_norm(x, (width,), own["norm1.weight"], own["norm1.bias"])
        q, k, v = (y @ part.T for part in own["qkv.weight"].chunk(3))
        size = width // 8
        parts = []
        for first in range(0, width, size):
            one = slice(first, first + size)
            weights = torch.softmax(q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(size), dim=-1)
            parts.append(weights @ v[..., one])
        x = x + torch.cat(parts, dim=-1) @ own["proj.weight"].T + own["proj.bias"]
        y = F.layer_norm(x, (width,), own["norm2.weight"], own["norm2.bias"])
        y = y @ own["mlp.0.weight"].T + own["mlp.0.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + y @ own["mlp.2.weight"].T + own["mlp.2.bias"]
    logits: Tensor = x[:, 0] @ state["output.weight"].T + state["output.bias"]
    return logits


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("channels", [16, 5])
def test_the_head_equals_its_formula(norm: bool, channels: int) -> None:
    head = AttentionHead((channels, 3, 3), 4, width=16, depth=2, norm=norm)
    randomised(head)
    values = randn(6, channels, 3, 3)
    torch.testing.assert_close(head([values]), written_out(head, values))


@pytest.mark.parametrize(("channels", "norm", "projected"), [(16, False, False), (5, False, True), (16, True, True)])
def test_tokens_are_projected_only_where_they_must_be(channels: int, norm: bool, projected: bool) -> None:
    tokenizer = Tokenizer((channels, 2, 2), 16, norm)
    assert isinstance(tokenizer.project, nn.Conv2d) == projected
    assert isinstance(tokenizer.norm, nn.LayerNorm) == norm
    assert tokenizer(randn(3, channels, 2, 2)).shape == (3, 4, 16)


def test_tokens_are_the_places_row_by_row() -> None:
    values = randn(2, 16, 2, 3)
    tokens = Tokenizer((16, 2, 3), 16, norm=False)(values)
    torch.testing.assert_close(tokens[1, 4], values[1, :, 1, 1], rtol=0, atol=0)


def test_the_class_token_starts_at_zero() -> None:
    assert not Transformer(16, 1).cls.any()


def test_places_have_no_order() -> None:
    """There is no positional embedding."""
    head = AttentionHead((16, 3, 3), 4, width=16)
    randomised(head)
    values = randn(2, 16, 9)
    shuffled = values[:, :, torch.tensor([3, 8, 1, 0, 2, 7, 6, 4, 5])]
    torch.testing.assert_close(head([values.view(2, 16, 3, 3)]), head([shuffled.view(2, 16, 3, 3)]))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"--width 20 cannot be divided among 8 attention heads; take a multiple of 8"):
        AttentionHead((16, 2, 2), 4, width=20)


# One learned query


@pytest.mark.parametrize(("channels", "heads"), [(16, 8), (5, 1)])
def test_attention_pooling_equals_its_formula(channels: int, heads: int) -> None:
    head = AttentionPool((channels, 2, 2), 4)
    randomised(head)
    values = randn(3, channels, 2, 2)
    tokens = values.flatten(2).transpose(1, 2)
    keys, found = head.key(tokens), head.value(tokens)
    size = channels // heads
    pooled = []
    for number in range(heads):
        one = slice(number * size, (number + 1) * size)
        weights = torch.softmax((keys[..., one] * head.query[number, 0]).sum(-1) / math.sqrt(size), dim=1)
        pooled.append((weights[..., None] * found[..., one]).sum(1))
    torch.testing.assert_close(head([values]), head.output(torch.cat(pooled, dim=1)))


def test_attention_pooling_has_no_more_weights_than_two_projections_a_query_and_the_output() -> None:
    with torch.device("meta"):
        head = AttentionPool((1024, 8, 8), 1000)
    assert parameters(head) == 3125224 == 2 * (1024**2 + 1024) + 1024 + 1024 * 1000 + 1000


# From a store


def test_the_heads_are_fitted_from_a_store(make_maps: Callable[..., FeatureStore], fits: Fits) -> None:
    store = make_maps([FeatureKey(1, 10, 4)])
    before = torch.get_rng_state()
    results = fits(store, "attention,attnpool")
    results += fits(store, "attention", tokenizer="norm", width=24)
    assert torch.equal(torch.get_rng_state(), before)
    assert [result["head"] for result in results] == ["attention", "attnpool", "attention"]
    assert min(result["test_top1"] for result in results) > 0.6  # chance is 0.25
    assert len({result["key"] for result in results}) == 3
    assert results[2]["specification"]["options"]["tokenizer"] == "norm"


@pytest.mark.parametrize(("steps", "warmup"), [(4000, 200), (400, 200), (40, 20), (1, 0)])
def test_few_steps_reach_the_peak_rate_too(steps: int, warmup: int) -> None:
    recipe = Recipe.of(load_preset("default").options("attention") | {"steps": steps}, 1000)
    assert recipe.factor(warmup) == 1.0
    assert [recipe.factor(step) for step in range(warmup)] == [(step + 1) / warmup for step in range(warmup)]


def test_several_maps_are_refused(make_maps: Callable[..., FeatureStore], fits: Fits) -> None:
    store = make_maps([FeatureKey(1, 10, 2), FeatureKey(2, 10, 2)])
    with pytest.raises(ProbeError, match=r"--head attention reads one map at a time, got 2 settings; leave out --concat"):
        fits(store, "attention", concat=True)
