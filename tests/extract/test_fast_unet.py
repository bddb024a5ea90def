from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffssl.extract import fast_unet
from diffssl.extract.adm import ADM, load_adm
from diffssl.extract.convolution import PackedConvolution, PlainConvolution
from diffssl.extract.model import CHANNELS_LAST, CONTIGUOUS
from diffssl.extract.winograd import WinogradConvolution
from diffssl.extract.zoo import BUNDLED, DEFAULTS, ModelSource, find_model
from torch import Tensor, nn

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of a block's largest magnitude; float32, and what docs/benchmarks.md states

# Between them: both orders of attention, both ways to resize and to add the embedding, skips of 1x1, one and two heads,
# channels and sizes that are no powers of two, and 3x3 convolutions that are large enough for Winograd's algorithm.
CONFIGS: dict[str, dict[str, Any]] = {
    "conditional": {
        "image_size": 16,
        "num_channels": 64,
        "channel_mult": "1,2",
        "num_res_blocks": 1,
        "attention_resolutions": "8",
        "num_heads": 2,
        "class_cond": True,
        "use_scale_shift_norm": False,
        "noise_schedule": "cosine",
    },
    "deep": {
        "image_size": 24,
        "num_channels": 32,
        "channel_mult": "1,3,2",
        "num_res_blocks": 3,
        "attention_resolutions": "12,6",
        "num_head_channels": 16,
        "use_new_attention_order": True,
        "resblock_updown": True,
        "diffusion_steps": 400,
        "rescale_timesteps": True,
    },
    "wide": {
        "image_size": 32,
        "num_channels": 128,
        "channel_mult": "1,2",
        "num_res_blocks": 1,
        "attention_resolutions": "16",
        "num_head_channels": 64,
        "resblock_updown": True,
    },
}
MODELS = [BUNDLED, *CONFIGS]


@pytest.fixture(scope="module")
def sources(save_model: Callable[..., Mapping[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    """Each model with its weights on disk."""
    found = {BUNDLED: find_model(None, None, None)}
    for name, config in CONFIGS.items():
        checkpoint = save_model(tmp_path_factory.mktemp(name), config)["checkpoint"]
        found[name] = ModelSource(name, checkpoint, {**DEFAULTS, **config})
    return found


def load(source: ModelSource, memory_format: str, dtype: torch.dtype = torch.float32) -> ADM:
    return load_adm(source, CPU, "7" if source.config["class_cond"] else None, dtype, memory_format)


@pytest.fixture(params=MODELS)
def source(request: pytest.FixtureRequest, sources: dict[str, ModelSource]) -> ModelSource:
    """Each model in turn."""
    return sources[request.param]


def x_t(adm: ADM, n: int = 3) -> Tensor:
    return torch.randn(n, *adm.sample_shape, generator=torch.Generator().manual_seed(n))


def collect(adm: ADM, x: Tensor, timestep: int, blocks: Collection[int]) -> dict[int, Tensor]:
    with torch.inference_mode():
        return dict(adm.features(x, timestep, blocks))


@pytest.mark.parametrize(("n", "timestep"), [(3, 0), (1, 90), (8, 399)])
def test_agrees_with_guided_diffusions_blocks(source: ModelSource, n: int, timestep: int) -> None:
    """Every block; that those are guided_diffusion's own forward exactly is what test_adm.py says."""
    exact, fast = load(source, CONTIGUOUS), load(source, CHANNELS_LAST)
    blocks = range(1, len(exact.blocks) + 1)
    expected, found = (collect(adm, x_t(exact, n), timestep, blocks) for adm in (exact, fast))
    assert list(found) == list(expected) == list(blocks)
    for number in blocks:
        assert found[number].shape == expected[number].shape
        assert found[number].dtype == torch.float32
        assert found[number].is_contiguous(memory_format=torch.channels_last)
        error = (found[number] - expected[number]).abs().max() / expected[number].abs().max()
        assert error <= TOLERANCE, f"block {number}: {error:.1e}"


def test_a_sample_does_not_depend_on_its_neighbours(source: ModelSource) -> None:
    """With one batch size, exactly: neither on what stands in the other slots, nor on its own."""
    adm = load(source, CHANNELS_LAST)
    x = x_t(adm, 4)
    other = torch.cat([5 * torch.ones_like(x[1:]), x[:1]])
    blocks = range(1, len(adm.blocks) + 1)
    ours, theirs = collect(adm, x, 90, blocks), collect(adm, other, 90, blocks)
    assert all(torch.equal(ours[number][0], theirs[number][3]) for number in blocks)


def test_any_selection_gives_the_same_maps(source: ModelSource) -> None:
    """Whatever the first call was, and for which blocks weights were laid out then."""
    adm, later = load(source, CHANNELS_LAST), load(source, CHANNELS_LAST)
    n = len(adm.blocks)
    expected = collect(adm, x_t(adm), 90, range(1, n + 1))
    for selection in ([2], [n // 2, 3], [n], [1, n // 2 + 2]):
        for number, activation in collect(later, x_t(adm), 90, selection).items():
            assert torch.equal(activation, expected[number]), f"block {number} of {selection}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)])
def test_lower_precision_is_close(sources: dict[str, ModelSource], dtype: torch.dtype, tolerance: float) -> None:
    exact, rough = load(sources[BUNDLED], CONTIGUOUS), load(sources[BUNDLED], CHANNELS_LAST, dtype)
    expected, found = (collect(adm, x_t(exact, 2), 90, [9, 19, 24]) for adm in (exact, rough))
    for number in expected:
        assert found[number].dtype == dtype
        error = (expected[number] - found[number].float()).abs().max() / expected[number].abs().max()
        assert 0 < error < tolerance


def test_nothing_behind_the_deepest_is_laid_out_or_run(sources: dict[str, ModelSource]) -> None:
    adm = load(sources["deep"], CHANNELS_LAST)
    for module in adm._modules[15:]:
        module.register_forward_pre_hook(lambda *_: pytest.fail("a block behind the deepest was run"))
    collect(adm, x_t(adm), 90, [15])
    assert [len(module._layers) > 0 for module in adm._modules] == [True] * 15 + [False] * (len(adm.blocks) - 15)  # type: ignore[arg-type]


def test_the_blocks_own_weights_are_let_go(sources: dict[str, ModelSource]) -> None:
    adm = load(sources["deep"], CHANNELS_LAST)
    block = adm._modules[2]
    own = weakref.ref(block._block.get_submodule("0.in_layers.2"))  # type: ignore[union-attr]
    collect(adm, x_t(adm), 90, [2])
    assert own() is not None
    collect(adm, x_t(adm), 90, [3])
    assert own() is None


@pytest.mark.parametrize("deepest", [1, 12, 13, 14, 18, 25])
def test_skips_live_only_as_long_as_they_are_needed(sources: dict[str, ModelSource], deepest: int) -> None:
    """As with guided_diffusion's own blocks: when a block starts, its input and the skips to come are alive, no more."""
    adm = load(sources["deep"], CHANNELS_LAST)
    outputs: dict[int, weakref.ref[Tensor]] = {}
    alive: dict[int, set[int]] = {}

    def before(number: int) -> Callable[..., None]:
        return lambda *_: alive.update({number: {i for i, output in outputs.items() if output() is not None}})

    def after(number: int) -> Callable[..., None]:
        return lambda _m, _i, output: outputs.update({number: weakref.ref(output)})

    for i, module in enumerate(adm._modules, start=1):
        module.register_forward_pre_hook(before(i))
        module.register_forward_hook(after(i))
    with torch.inference_mode():
        for _, activation in adm.features(x_t(adm, 1), 90, [deepest]):
            del activation
    assert list(alive) == list(range(1, deepest + 1))
    for number, found in alive.items():
        readers = {26 - reader for reader in range(14, deepest + 1) if reader > number}
        direct = {number - 1} - {0} if number <= 13 else set()
        assert found == {made for made in readers if made < number} | direct, f"block {number}"


def test_large_convolutions_are_winograds(sources: dict[str, ModelSource]) -> None:
    """Else the tests above would say nothing of them; those of the bundled model are too small."""
    counts = []
    for name in ("wide", BUNDLED):
        adm = load(sources[name], CHANNELS_LAST)
        collect(adm, x_t(adm, 1), 90, [len(adm.blocks)])
        counts.append(sum(isinstance(part, WinogradConvolution) for module in adm._modules for part in module.modules()))
    assert counts[0] > 10
    assert counts[1] == 0


def test_without_packed_weights(sources: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, or where torch has no oneDNN: torch's own convolutions, the same values."""
    source = sources["wide"]
    exact = load(source, CONTIGUOUS)
    monkeypatch.setattr(fast_unet, "can_pack", lambda _: False)
    plain = load(source, CHANNELS_LAST)
    blocks = range(1, len(exact.blocks) + 1)
    expected, found = (collect(adm, x_t(exact, 2), 90, blocks) for adm in (exact, plain))
    assert all((found[n] - expected[n]).abs().max() <= TOLERANCE * expected[n].abs().max() for n in blocks)
    kinds = {type(part) for module in plain._modules for part in module.modules()}
    assert PlainConvolution in kinds
    assert not kinds & {PackedConvolution, WinogradConvolution}


@pytest.mark.parametrize("channels", [32, 96, 256])
@pytest.mark.parametrize("size", [4, 16, 32])
def test_normalisation_is_torchs(channels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = 3 + 2 * torch.randn(5, channels, size, size, generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator)
    expected = nn.functional.group_norm(x.double(), 32, weight.double(), bias.double())
    found = fast_unet._normalise(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_of_a_constant() -> None:
    """A variance of rounding errors may not be negative."""
    x = torch.full((2, 32, 4, 4), 1234.567).contiguous(memory_format=torch.channels_last)
    found = fast_unet._normalise(x, torch.ones(32), torch.zeros(32))
    assert found.isfinite().all()
    assert found.abs().max() < 1


def test_does_not_change_its_input(source: ModelSource) -> None:
    adm = load(source, CHANNELS_LAST)
    x = x_t(adm).contiguous(memory_format=torch.channels_last)
    before = copy.deepcopy(x)
    collect(adm, x, 90, [len(adm.blocks)])
    assert torch.equal(x, before)
