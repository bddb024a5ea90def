"""DifFormer: the paper's size, who attends to whom, and what is shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffssl.probe import NothingToProbe, ProbeSpec
from diffssl.probe.attention import AttentionHead
from diffssl.probe.difformer import DifFormer
from diffssl.probe.saved import load_heads
from diffssl.probe.study import prepare
from diffssl.store import FeatureKey, FeatureStore
from torch import Tensor

Fits = Callable[..., list[dict[str, Any]]]
MakeStore = Callable[..., FeatureStore]

SHAPES = [(16, 2, 2), (8, 3, 3), (4, 4, 4)]
STEPS = 3


def make(timesteps: int = STEPS) -> DifFormer:
    """A small one, no weight at a value that could hide a mistake."""
    head = DifFormer(SHAPES, timesteps, classes=5, width=16, depth=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return head


def maps(seed: int = 1) -> list[Tensor]:
    """All blocks of the first timestep, then of the next."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, *shape, generator=generator) for _ in range(STEPS) for shape in SHAPES]


def test_parameters_of_arxiv_2311_17921() -> None:
    """Blocks 19@8, 24@16 and 30@16 at timesteps 90, 150 and 300, 1000 classes."""
    shapes = [(1024, 8, 8), (1024, 16, 16), (512, 16, 16)]
    with torch.device("meta"):
        head = DifFormer(shapes, 3, 1000)
    count = sum(parameter.numel() for parameter in head.parameters())
    assert count == 31802344
    assert round(count / 1e6, 2) == 31.80
    block = 2 * 2 * 1024 + 3 * 1024**2 + 1024**2 + 1024 + 2 * 4 * 1024**2 + 4 * 1024 + 1024
    tokenizers = sum(2 * c * h * w + c * 1024 + 1024 for c, h, w in shapes)
    assert count == 2 * block + 1024 + tokenizers + 3 * 1024 * 1000 + 1000


def test_it_equals_one_timestep_after_the_other() -> None:
    head, values = make(), maps()
    vectors = []
    for step in range(STEPS):
        own = values[step * 3 : step * 3 + 3]
        tokens = [tokenizer(one) for tokenizer, one in zip(head.tokenizers, own, strict=True)]
        vectors.append(head.transformer(torch.cat(tokens, dim=1)))
    expected = torch.cat(vectors, dim=1) @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(head(values), expected)


def vectors_of(head: DifFormer, values: list[Tensor]) -> Tensor:
    """(n, timesteps, width): what the last layer sees, read out by an identity in its place."""
    head.output = torch.nn.Identity()  # type: ignore[assignment]
    found: Tensor = head(values).view(len(values[0]), STEPS, -1)
    return found


def test_timesteps_do_not_attend_to_each_other() -> None:
    values, changed = maps(), maps()
    changed[4] = maps(2)[4]  # the second block of the second timestep
    before, after = vectors_of(make(), values), vectors_of(make(), changed)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert ((after[:, 1] - before[:, 1]).abs().amax(dim=1) > 1e-2).all()


def test_tokenizers_and_transformer_are_shared_over_timesteps() -> None:
    """The same maps at every timestep give the same vector, and swapping timesteps swaps vectors."""
    values = maps()
    vectors = vectors_of(make(), values[:3] * STEPS)
    torch.testing.assert_close(vectors[:, 0], vectors[:, 2])
    swapped = vectors_of(make(), values[3:6] + values[:3] + values[6:])
    torch.testing.assert_close(swapped, vectors_of(make(), values)[:, [1, 0, 2]])


def test_each_block_has_a_tokenizer_of_its_own() -> None:
    head = DifFormer([(8, 2, 2), (8, 2, 2)], 1, classes=3, width=8, depth=1)
    one, other = torch.randn(2, 3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    assert (head([one, other]) - head([other, one])).abs().max() > 1e-3


def test_one_block_and_one_timestep_are_the_attention_head_with_its_norm() -> None:
    torch.manual_seed(0)
    fused, single = DifFormer([(4, 3, 3)], 1, 5, width=16, depth=2), AttentionHead((4, 3, 3), 5, 16, 2, norm=True)
    names = {name: name.replace("tokenizers.0.", "tokenizer.") for name in fused.state_dict()}
    fused.load_state_dict({name: single.state_dict()[other] for name, other in names.items()})
    values = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(fused([values]), single([values]))


# From a store

GRID = [FeatureKey(block, timestep, pool) for block, pool in ((1, 4), (2, 2)) for timestep in (10, 90)]


def test_it_is_fitted_on_all_selected_settings_at_once(make_maps: MakeStore, fits: Fits, tmp_path: Path) -> None:
    store = make_maps(GRID)
    (result,) = fits(store, "difformer", save_heads=tmp_path / "heads")
    assert result["test_top1"] > 0.6  # chance is 0.25
    assert (result["block"], result["timestep"], result["pool"]) == ([1, 2, 1, 2], [10, 10, 90, 90], [4, 2, 4, 2])
    (head,) = load_heads(tmp_path / "heads")
    shapes = {name: value.shape for name, value in head.weights.items() if name.endswith("norm.weight")}
    assert shapes == {"tokenizers.0.norm.weight": (8, 4, 4), "tokenizers.1.norm.weight": (8, 2, 2)}
    assert head.weights["output.weight"].shape == (4, 2 * 16)


def test_pools_of_its_own_are_chosen_for_each_block(make_maps: MakeStore) -> None:
    store = make_maps([*GRID, FeatureKey(1, 10, 1), FeatureKey(1, 90, 1)])
    spec = ProbeSpec(store.path, ["difformer"], blocks={1: {1}, 2: set()}, timesteps=[90, 10], width=16)
    (group,) = prepare(spec, lambda _: None).groups
    assert group.input.setting == ["b1/p1/t10", "b2/p2/t10", "b1/p1/t90", "b2/p2/t90"]
    with pytest.raises(NothingToProbe, match=r"--head difformer wants each of its blocks at one pool.*pools 1,4"):
        prepare(ProbeSpec(store.path, ["difformer"]), lambda _: None)


def test_a_hole_in_the_grid_is_refused(make_maps: MakeStore) -> None:
    with pytest.raises(NothingToProbe, match=r"at each of its timesteps, such as"):
        prepare(ProbeSpec(make_maps(GRID[:3]).path, ["difformer"]), lambda _: None)
