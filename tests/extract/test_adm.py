from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from diffssl.extract import CheckpointMismatch, ExtractError, UnknownBlock
from diffssl.extract.adm import ADM, build_unet, load_adm, measure_blocks
from diffssl.extract.zoo import BUNDLED, DEFAULTS, PUBLISHED, ModelSource, check_condition, find_model, model_config
from guided_diffusion.script_util import create_model_and_diffusion
from torch import Tensor, nn

CPU = torch.device("cpu")

CONFIGS: dict[str, dict[str, Any]] = {
    # Class-conditional; no scale-shift norm, convolutions that resize, heads by number, a learned variance. With 32
    # channels each channel would be a group of its own, whose normalisation takes the timestep out again.
    "conditional": {
        "image_size": 16,
        "num_channels": 64,
        "channel_mult": "1,2",
        "num_res_blocks": 1,
        "attention_resolutions": "8",
        "num_heads": 2,
        "class_cond": True,
        "use_scale_shift_norm": False,
        "learn_sigma": True,
        "noise_schedule": "cosine",
    },
    # Three levels of three blocks, the other order in attention, sizes that are no powers of two, rescaled timesteps.
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
}
MODELS = [BUNDLED, *CONFIGS]

# Section 1 of paper.md: (blocks, channels, size, attention, resampling, GMAC up to and including the last block).
PAPER: list[tuple[Sequence[int], int, int, bool, str, float]] = [
    ((1, 2, 3), 256, 256, False, "", 155.1),
    ((4,), 256, 128, False, "Down", math.nan),
    ((5, 6), 256, 128, False, "", 213.1),
    ((7,), 256, 64, False, "Down", math.nan),
    ((8, 9), 512, 64, False, "", 252.3),
    ((10,), 512, 32, False, "Down", math.nan),
    ((11, 12), 512, 32, True, "", 271.0),
    ((13,), 512, 16, False, "Down", math.nan),
    ((14, 15), 1024, 16, True, "", 283.3),
    ((16,), 1024, 8, False, "Down", math.nan),
    ((17, 18), 1024, 8, True, "", 287.4),
    ((19,), 1024, 8, True, "", 290.1),
    ((20, 21), 1024, 8, True, "", 294.6),
    ((22,), 1024, 16, True, "Up", 301.7),
    ((23,), 1024, 16, True, "", 310.6),
    ((24,), 1024, 16, True, "", 319.6),
    ((25,), 1024, 32, True, "Up", 346.6),
    ((26, 27), 512, 32, True, "", 369.2),
    ((28,), 512, 64, True, "Up", 398.4),
    ((29, 30), 512, 64, False, "", 460.7),
    ((31,), 512, 128, False, "Up", 563.8),
    ((32, 33), 256, 128, False, "", 636.8),
    ((34,), 256, 256, False, "Up", 745.3),
    ((35,), 256, 256, False, "", 869.8),
    ((36,), 256, 256, False, "", 994.4),
    ((37,), 256, 256, False, "", 1118.9),
]
FULL_GMAC = 1119.8

# Same section: t, sqrt(abar), sqrt(1 - abar), SNR.
SCHEDULE = [
    (0, 0.9999, 0.0100, 9999),
    (10, 0.9989, 0.0468, 455),
    (30, 0.9938, 0.1109, 80.4),
    (50, 0.9849, 0.1733, 32.3),
    (90, 0.9556, 0.2945, 10.5),
    (150, 0.8865, 0.4627, 3.67),
    (300, 0.6277, 0.7785, 0.65),
    (500, 0.2789, 0.9603, 0.084),
]


class Case(NamedTuple):
    """A model through diffssl, and the same weights in guided_diffusion's own classes."""

    adm: ADM
    unet: nn.Module
    diffusion: Any
    config: Mapping[str, Any]
    source: ModelSource

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.unet.input_blocks, self.unet.middle_block, *self.unet.output_blocks]  # type: ignore[list-item, misc]

    def x_t(self, n: int = 3) -> Tensor:
        size = self.config["image_size"]
        return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))

    def own_forward(self, x_t: Tensor, timestep: int, y: Tensor | None = None) -> dict[int, Tensor]:
        """Activation of every block, captured by hooks while guided_diffusion's own forward runs."""
        found: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                found[number] = output.detach().clone()

            return hook

        handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(self.blocks, start=1)]
        steps = torch.full((len(x_t),), timestep)
        with torch.no_grad():
            self.diffusion._wrap_model(self.unet)(x_t, steps, **({} if y is None else {"y": y}))
        for handle in handles:
            handle.remove()
        return found


@pytest.fixture(scope="module")
def cases(
    bundled: ADM, save_model: Callable[..., dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Case]:
    """All models: weights on disk, loaded by diffssl and by plain torch."""
    sources = {BUNDLED: find_model(None, None, None)}
    for name, config in CONFIGS.items():
        files = save_model(tmp_path_factory.mktemp(name), config)
        sources[name] = ModelSource(name, files["checkpoint"], {**DEFAULTS, **config})
    cases = {}
    for name, source in sources.items():
        unet, diffusion = create_model_and_diffusion(**source.config)
        state = safetensors.torch.load_file(source.weights)
        unet.load_state_dict({key: value.float() for key, value in state.items()})
        condition = "7" if source.config["class_cond"] else None
        adm = bundled if name == BUNDLED else load_adm(source, CPU, condition, torch.float32)
        cases[name] = Case(adm, unet.eval(), diffusion, source.config, source)
    return cases


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each model in turn."""
    return cases[request.param]


def label(case: Case, n: int) -> Tensor | None:
    return torch.full((n,), 7) if case.config["class_cond"] else None


def collect(adm: ADM, x_t: Tensor, timestep: int, blocks: Sequence[int]) -> dict[int, Tensor]:
    with torch.inference_mode():
        found = list(adm.features(x_t, timestep, blocks))
    numbers = [number for number, _ in found]
    assert len(numbers) == len(set(numbers))
    return dict(found)


# --- features


@pytest.mark.parametrize(("n", "timestep"), [(3, 0), (3, 90), (8, 399), (1, 90)])
def test_features_equal_the_models_own_forward(case: Case, n: int, timestep: int) -> None:
    """The core of the project: every block, exactly, against hooks on the unmodified model."""
    x_t = case.x_t(n)
    expected = case.own_forward(x_t, timestep, label(case, n))
    blocks = range(1, len(case.blocks) + 1)
    found = collect(case.adm, x_t, timestep, blocks)
    assert list(found) == list(blocks) == list(expected)
    for number in blocks:
        assert torch.equal(found[number], expected[number]), f"block {number}"
        assert found[number].dtype == torch.float32
        block = case.adm.blocks[number - 1]
        assert found[number].shape == (n, block.channels, block.size, block.size)
        assert block.number == number


def test_features_are_not_trivial(case: Case) -> None:
    """Every block changes with the image and with the timestep, so that equality above says something."""
    x_t = case.x_t(2)
    everything = range(1, len(case.blocks) + 1)
    early, late = collect(case.adm, x_t, 10, everything), collect(case.adm, x_t, 300, everything)
    for number in everything:
        assert early[number].std() > 1e-3
        assert not torch.allclose(early[number][0], early[number][1], rtol=1e-3)
        if number > 1:  # the first block is a convolution that does not see the timestep
            assert not torch.allclose(early[number], late[number], rtol=1e-3)


def test_any_selection_gives_the_same_maps(case: Case) -> None:
    x_t = case.x_t(2)
    n = len(case.blocks)
    expected = collect(case.adm, x_t, 90, range(1, n + 1))
    rng = random.Random(0)
    middle = len(case.unet.input_blocks) + 1  # type: ignore[arg-type]
    selections: list[list[int]] = [[1], [n], [middle, middle], [middle + 1, middle - 1, middle + 1], [middle, 1]]
    selections.append(rng.choices(range(1, n + 1), k=4))
    for selection in selections:
        found = collect(case.adm, x_t, 90, selection)
        assert list(found) == sorted(set(selection))
        for number, activation in found.items():
            assert torch.equal(activation, expected[number]), f"block {number} of {selection}"


@pytest.mark.parametrize("kind", [set, tuple, frozenset, dict.fromkeys])
def test_any_collection_of_blocks(cases: dict[str, Case], kind: Callable[[list[int]], Any]) -> None:
    case = cases["deep"]
    assert list(collect(case.adm, case.x_t(1), 5, kind([9, 3]))) == [3, 9]


@pytest.fixture
def ran(case: Case) -> Iterator[list[int]]:
    """Numbers of the blocks that were run by the adapter."""
    numbers: list[int] = []
    modules = case.adm._modules
    handles = [
        module.register_forward_pre_hook(lambda *_, number=number: numbers.append(number))
        for number, module in enumerate(modules, start=1)
    ]
    yield numbers
    for handle in handles:
        handle.remove()


def test_stops_after_the_deepest_block(case: Case, ran: list[int]) -> None:
    n_inputs, n = len(case.unet.input_blocks), len(case.blocks)  # type: ignore[arg-type]
    for deepest in (1, n_inputs, n_inputs + 1, n_inputs + 2, n - 1, n):
        ran.clear()
        collect(case.adm, case.x_t(1), 90, [deepest, 1])
        assert ran == list(range(1, deepest + 1))


def test_runs_no_further_than_the_caller_goes(case: Case, ran: list[int]) -> None:
    """The caller pools a map and lets it go before the next block runs."""
    found = case.adm.features(case.x_t(1), 90, [2, 4])
    assert ran == []
    assert next(found)[0] == 2
    assert ran == [1, 2]
    assert next(found)[0] == 4
    assert next(found, None) is None
    assert ran == [1, 2, 3, 4]


def test_nothing_behind_the_deepest_is_ever_run(cases: dict[str, Case]) -> None:
    """A model whose deeper blocks cannot run at all is good up to there."""
    case = cases["deep"]
    broken = copy.deepcopy(case.adm)
    for module in broken._modules[15:]:
        module.register_forward_pre_hook(lambda *_: pytest.fail("a block behind the deepest was run"))
    expected = collect(case.adm, case.x_t(), 90, [15])
    assert torch.equal(collect(broken, case.x_t(), 90, [15])[15], expected[15])


@pytest.mark.parametrize("everything", [False, True], ids=["deepest alone", "all blocks"])
@pytest.mark.parametrize("deepest", [1, 5, 12, 13, 14, 18, 25])
def test_skips_live_only_as_long_as_they_are_needed(cases: dict[str, Case], deepest: int, everything: bool) -> None:
    """When a block starts, the only activations alive are its input and the skips that a block to come reads."""
    case = cases["deep"]
    modules = case.adm._modules
    n_inputs = 12
    outputs: dict[int, weakref.ref[Tensor]] = {}
    alive: dict[int, set[int]] = {}

    def before(number: int) -> Callable[..., None]:
        return lambda *_: alive.update({number: {i for i, output in outputs.items() if output() is not None}})

    def after(number: int) -> Callable[..., None]:
        return lambda _m, _i, output: outputs.update({number: weakref.ref(output)})

    handles = [module.register_forward_pre_hook(before(i)) for i, module in enumerate(modules, start=1)]
    handles += [module.register_forward_hook(after(i)) for i, module in enumerate(modules, start=1)]
    with torch.inference_mode():
        for _, activation in case.adm.features(case.x_t(1), 90, range(1, deepest + 1) if everything else [deepest]):
            del activation
    for handle in handles:
        handle.remove()
    assert list(alive) == list(range(1, deepest + 1))
    for number in alive:
        # Output block k, which is block 13 + k, reads what input block 13 - k made.
        readers = {26 - reader for reader in range(14, deepest + 1) if reader > number}
        skips = {made for made in readers if made < number}
        direct = {number - 1} - {0} if number <= n_inputs + 1 else set()  # an output block is given a copy
        assert alive[number] == skips | direct, f"block {number}"
    assert all(output() is None for output in outputs.values())


def test_up_to_the_middle_no_skip_is_kept(cases: dict[str, Case]) -> None:
    case = cases["deep"]
    middle = len(case.unet.input_blocks) + 1  # type: ignore[arg-type]
    held: list[int] = []
    inputs: list[weakref.ref[Tensor]] = []

    def remember(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        inputs.append(weakref.ref(output))
        held.append(sum(ref() is not None for ref in inputs))

    handles = [module.register_forward_hook(remember) for module in case.adm._modules[:middle]]
    collect(case.adm, case.x_t(1), 90, [middle])
    for handle in handles:
        handle.remove()
    assert len(held) == middle
    assert max(held) == 2  # what a block was given, and what it made


def test_does_not_change_its_input(case: Case) -> None:
    x_t = case.x_t()
    before = x_t.clone()
    collect(case.adm, x_t, 90, [len(case.blocks)])
    assert torch.equal(x_t, before)


def test_a_sample_does_not_depend_on_its_neighbours(case: Case) -> None:
    """With one batch size, exactly: what stands in the other slots is nothing to it."""
    x_t = case.x_t(4)
    other = torch.cat([x_t[:1], 5 * torch.ones_like(x_t[1:])])
    blocks = range(1, len(case.blocks) + 1)
    ours, theirs = collect(case.adm, x_t, 90, blocks), collect(case.adm, other, 90, blocks)
    for number in blocks:
        assert torch.equal(ours[number][0], theirs[number][0])


@pytest.mark.parametrize("blocks", [[0], [-1, 3], [1, 1000], [10_000]])
def test_unknown_blocks(case: Case, blocks: list[int]) -> None:
    with pytest.raises(UnknownBlock, match=f"1 to {len(case.blocks)}"):
        collect(case.adm, case.x_t(1), 90, blocks)


@pytest.mark.parametrize("timestep", [-1, 400, 1000])
def test_unknown_timesteps(cases: dict[str, Case], timestep: int) -> None:
    adm, x = cases["deep"].adm, cases["deep"].x_t(1)
    with pytest.raises(UnknownBlock, match="0 to 399"):
        adm.schedule(timestep)
    with pytest.raises(UnknownBlock, match="0 to 399"):
        adm.diffuse(x, x, timestep)


@pytest.mark.parametrize("timestep", [-1, 400])
def test_features_of_unknown_timesteps(cases: dict[str, Case], timestep: int) -> None:
    """Clean images meet no noise schedule, so the forward itself has to refuse; -1 must not mean the last."""
    with pytest.raises(UnknownBlock, match="0 to 399"):
        collect(cases["deep"].adm, cases["deep"].x_t(1), timestep, [1])


# --- conditions


def test_condition_is_the_models_own_label(cases: dict[str, Case]) -> None:
    case = cases["conditional"]
    x_t = case.x_t()
    blocks = range(1, len(case.blocks) + 1)
    seen = []
    for number in (0, 999):
        adm = load_adm(case.source, CPU, str(number), torch.float32)
        expected = case.own_forward(x_t, 90, torch.full((3,), number))
        found = collect(adm, x_t, 90, blocks)
        assert all(torch.equal(found[block], expected[block]) for block in blocks)
        seen.append(found[5])
    assert not torch.allclose(seen[0], seen[1], rtol=1e-3)


def test_condition_none_adds_nothing(cases: dict[str, Case]) -> None:
    case = cases["conditional"]
    silent = case._replace(unet=copy.deepcopy(case.unet))
    nn.init.zeros_(silent.unet.label_emb.weight)  # type: ignore[union-attr, arg-type]
    expected = silent.own_forward(case.x_t(), 90, torch.tensor([0, 3, 999]))
    found = collect(load_adm(case.source, CPU, "none", torch.float32), case.x_t(), 90, range(1, 10))
    assert all(torch.equal(found[block], expected[block]) for block in expected)


def test_condition_mean_adds_the_mean_of_all_classes(cases: dict[str, Case]) -> None:
    case = cases["conditional"]
    averaged = case._replace(unet=copy.deepcopy(case.unet))
    weight: Tensor = averaged.unet.label_emb.weight.data  # type: ignore[union-attr, assignment]
    weight[0] = (weight.double().sum(dim=0) / 1000).float()
    expected = averaged.own_forward(case.x_t(), 90, torch.zeros(3, dtype=torch.int64))
    found = collect(load_adm(case.source, CPU, "mean", torch.float32), case.x_t(), 90, range(1, 10))
    for block in expected:
        torch.testing.assert_close(found[block], expected[block], rtol=0, atol=1e-4)
    without = collect(load_adm(case.source, CPU, "none", torch.float32), case.x_t(), 90, [5])
    assert (found[5] - without[5]).abs().max() > 1e-3


@pytest.mark.parametrize("condition", ["1000", "-1", "cat", "", "1.5", "²", "null "])
def test_unknown_conditions(condition: str) -> None:
    with pytest.raises(ExtractError, match="none, mean"):
        check_condition({"class_cond": True}, condition)


def test_a_conditional_model_asks_for_a_condition() -> None:
    with pytest.raises(ExtractError, match="--condition"):
        check_condition({"class_cond": True}, None)


@pytest.mark.parametrize("condition", ["7", "mean"])
def test_an_unconditional_model_takes_no_condition(condition: str) -> None:
    with pytest.raises(ExtractError, match="not class-conditional"):
        check_condition({"class_cond": False}, condition)
    assert check_condition({"class_cond": False}, None) == "none"
    assert check_condition({"class_cond": False}, "none") == "none"


# --- noise schedule


@pytest.mark.parametrize(("timestep", "alpha", "sigma", "snr"), SCHEDULE)
def test_schedule_as_the_paper_prints_it(bundled: ADM, timestep: int, alpha: float, sigma: float, snr: float) -> None:
    ours = bundled.schedule(timestep)
    assert round(ours[0], 4) == alpha
    assert round(ours[1], 4) == sigma
    assert ours[0] ** 2 / ours[1] ** 2 == pytest.approx(snr, rel=0.01)
    assert ours[0] ** 2 + ours[1] ** 2 == pytest.approx(1, abs=1e-12)


def test_schedule_from_its_definition(bundled: ADM) -> None:
    """beta from 1e-4 to 0.02 in 1,000 equal steps; abar is the product of 1 - beta up to and including t."""
    abar = 1.0
    for timestep in range(1000):
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * timestep / 999)
        assert bundled.schedule(timestep) == pytest.approx((math.sqrt(abar), math.sqrt(1 - abar)), rel=1e-9)
    assert bundled.diffusion_steps == 1000


@pytest.mark.parametrize("timestep", [0, 90, 399])
def test_diffuse_is_q_sample(case: Case, timestep: int) -> None:
    x_0, noise = case.x_t(3).clamp(-1, 1), case.x_t(4)[:3]
    steps = torch.full((3,), timestep)
    torch.testing.assert_close(
        case.adm.diffuse(x_0, noise, timestep), case.diffusion.q_sample(x_0, steps, noise), rtol=1e-6, atol=1e-7
    )
    assert case.adm.diffuse(x_0, noise, timestep).dtype == torch.float32


def test_pixels_are_their_own_encoding(case: Case) -> None:
    assert torch.equal(case.adm.encode(case.x_t()), case.x_t())
    size = case.config["image_size"]
    assert case.adm.sample_shape == (3, size, size)


def test_respaced_timesteps_are_refused(tmp_path: Path, save_model: Callable[..., dict[str, Path]]) -> None:
    files = save_model(tmp_path, CONFIGS["deep"])
    source = ModelSource("x", files["checkpoint"], {**DEFAULTS, **CONFIGS["deep"], "timestep_respacing": "50"})
    with pytest.raises(ExtractError, match="timestep_respacing"):
        load_adm(source, CPU, None, torch.float32)


# --- compute dtype


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)])
def test_lower_precision_is_close(bundled: ADM, dtype: torch.dtype, tolerance: float) -> None:
    adm = load_adm(find_model(None, None, None), CPU, None, dtype)
    x_t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    exact, rough = collect(bundled, x_t, 90, [9, 19, 24]), collect(adm, x_t, 90, [9, 19, 24])
    for number in exact:
        error = (exact[number] - rough[number].float()).abs().max() / exact[number].abs().max()
        assert 0 < error < tolerance


# --- block tables


@pytest.fixture(scope="module")
def paper_blocks() -> Any:
    """The block table of the 256-pixel unconditional model, from its configuration alone."""
    return measure_blocks(model_config("adm256-uncond"))


def test_the_paper_model_has_the_papers_blocks(paper_blocks: Any) -> None:
    table = {block.number: block for block in paper_blocks}
    assert list(table) == list(range(1, 38)) == [number for row in PAPER for number in row[0]]
    for numbers, channels, size, attention, resampling, gmac in PAPER:
        for number in numbers:
            block = table[number]
            wanted = channels if number != 7 else 256
            assert (block.channels, block.size) == (wanted, size), f"block {number}"
            assert ("Attn" in block.kind) == attention, f"block {number}: {block.kind}"
            assert ("Down" in block.kind, "Up" in block.kind) == (resampling == "Down", resampling == "Up")
        if not math.isnan(gmac):
            assert round(table[numbers[-1]].gflop / 2, 1) == gmac, f"block {numbers[-1]}"
    assert table[1].kind == "Conv"
    assert table[19].kind == "Res+Attn+Res"


def test_the_papers_shares_of_the_full_pass(paper_blocks: Any) -> None:
    shares = {block.number: block.share for block in paper_blocks}
    gflop = {block.number: block.gflop for block in paper_blocks}
    assert round(gflop[37] / shares[37] / 2, 1) == FULL_GMAC
    assert [round(100 * shares[number], 1) for number in (19, 24)] == [25.9, 28.5]
    assert [round(100 * shares[number]) for number in (30, 33)] == [41, 57]
    assert list(shares.values()) == sorted(shares.values())
    assert shares[37] < 1


def test_parameters_of_the_paper_model() -> None:
    unet = build_unet(model_config("adm256-uncond"))
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    assert sum(p.numel() for p in unet.parameters()) == 552_814_086
    assert all(p.device.type == "meta" for p in unet.parameters())
    assert unet.out[2].out_channels == 6

    def needed(deepest: int) -> float:
        modules = [unet.time_embed, *blocks[:deepest]]
        return float(round(sum(p.numel() for module in modules for p in module.parameters()) / 1e6, 1))

    assert (needed(19), needed(24)) == (210.9, 415.5)


def test_the_bundled_model_mirrors_the_paper_model(bundled: ADM, paper_blocks: Any) -> None:
    """The same block numbers name the same places, at an eighth of width and resolution; attention sits elsewhere."""
    assert len(bundled.blocks) == 37
    for ours, theirs in zip(bundled.blocks, paper_blocks, strict=True):
        assert (ours.number, ours.channels * 8, ours.size * 8) == (theirs.number, theirs.channels, theirs.size)
        assert ours.kind.replace("+Attn", "") == theirs.kind.replace("+Attn", "")
    assert [(b.number, b.size) for b in bundled.blocks if b.number in (24, 27, 30)] == [(24, 2), (27, 4), (30, 8)]


def test_convolutions_that_resize_have_names(cases: dict[str, Case]) -> None:
    kinds = [block.kind for block in cases["conditional"].adm.blocks]
    assert kinds == [
        "Conv",
        "Res",
        "Down",
        "Res+Attn",
        "Res+Attn+Res",
        "Res+Attn",
        "Res+Attn+Up",
        "Res",
        "Res",
    ]


def test_cost_of_a_convolution_by_hand(cases: dict[str, Case]) -> None:
    """Block 1 is a 3x3 convolution of 3 to 64 channels at 16x16: two operations a multiply-add."""
    assert cases["conditional"].adm.blocks[0].gflop == pytest.approx(2 * 9 * 3 * 64 * 16 * 16 / 1e9, rel=1e-3)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_model_can_be_built(name: str) -> None:
    unet = build_unet(model_config(name))
    millions = {"adm64": 296, "adm128": 422, "adm256": 554, "adm512": 559}
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == millions.get(name, 553)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 48, "channel_mult": ""}, "unsupported image size"),
        ({"num_channels": 20}, "num_channels|divisible"),
        ({"num_head_channels": 7}, "head"),
        ({"noise_schedule": "quadratic"}, "quadratic"),
        ({"attention_resolutions": "0"}, "zero"),
        ({"channel_mult": "1,x"}, "x"),
    ],
    ids=str,
)
def test_impossible_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExtractError, match=message):
        build_unet({**DEFAULTS, **CONFIGS["deep"], **change})


# --- weights


def test_bundled_weights_are_those_of_the_card() -> None:
    source = find_model(BUNDLED, None, None)
    card = json.loads(source.weights.with_suffix(".json").read_text())
    assert sha256(source.weights.read_bytes()).hexdigest() == card["sha256"] == source.sha256()
    state = safetensors.torch.load_file(source.weights)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert sum(value.numel() for value in state.values()) == card["parameters"] == 8_095_459


def test_float16_weights_become_float32(bundled: ADM) -> None:
    state = safetensors.torch.load_file(find_model(None, None, None).weights)
    loaded = bundled._model.state_dict()
    assert set(loaded) == set(state)
    for name, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_a_loaded_model_is_frozen(bundled: ADM) -> None:
    assert not any(parameter.requires_grad for parameter in bundled._model.parameters())
    assert not any(module.training for module in bundled._model.modules())


SMALL = {**DEFAULTS, **CONFIGS["conditional"]}


@pytest.fixture(scope="module")
def state(random_unet: Callable[[Mapping[str, Any]], nn.Module]) -> dict[str, Tensor]:
    """Weights of the small conditional model."""
    return random_unet(SMALL).state_dict()


def load(path: Path, config: Mapping[str, Any] = SMALL) -> ADM:
    return load_adm(ModelSource(path.name, path, config), CPU, "none" if config["class_cond"] else None, torch.float32)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pt of old torch", "pt in half precision"])
def test_kinds_of_checkpoints(tmp_path: Path, state: dict[str, Tensor], kind: str) -> None:
    path = tmp_path / ("unet.safetensors" if kind == "safetensors" else "unet.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "pt in half precision":
        torch.save({name: value.half() for name, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    loaded = load(path)._model.state_dict()
    assert set(loaded) == set(state)
    tolerance = 1e-3 if "half" in kind else 0
    for name, value in state.items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["unet.safetensors", "unet.pt"])
def test_a_loaded_model_does_not_change_with_its_file(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    """Training goes on and overwrites its checkpoint: the run keeps the weights whose digest it has recorded."""
    if name == "unet.pt":
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    adm = load(tmp_path / name)
    with (tmp_path / name).open("r+b") as file:
        file.write(bytes((tmp_path / name).stat().st_size))
    for key, value in adm._model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_missing_extra_and_misshapen_weights_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    wrong = dict(state)
    del wrong["time_embed.0.bias"]
    wrong["head.weight"] = torch.zeros(3, 4)
    wrong["out.2.weight"] = torch.zeros(3, 64, 3, 3)
    torch.save(wrong, tmp_path / "unet.pt")
    with pytest.raises(CheckpointMismatch) as caught:
        load(tmp_path / "unet.pt")
    message = str(caught.value)
    assert str(tmp_path / "unet.pt") in message
    assert "missing: time_embed.0.bias (256,)" in message
    assert "not expected: head.weight (3, 4)" in message
    assert "shape: out.2.weight is (3, 64, 3, 3), the configuration has (6, 64, 3, 3)" in message


def test_weights_of_another_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A long list is cut, and says so."""
    torch.save(state, tmp_path / "unet.pt")
    with pytest.raises(CheckpointMismatch, match=r"and \d+ more") as caught:
        load(tmp_path / "unet.pt", {**DEFAULTS, **CONFIGS["deep"]})
    assert 5 < len(str(caught.value).splitlines()) < 30


def test_a_conditional_checkpoint_in_an_unconditional_configuration(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "unet.pt")
    with pytest.raises(CheckpointMismatch, match=r"not expected: label_emb.weight \(1000, 256\)"):
        load(tmp_path / "unet.pt", {**SMALL, "class_cond": False})


class Evil:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["torch", "torch, old", "plain pickle", "beside weights"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, state: dict[str, Tensor], kind: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / "unet.pt"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Evil(trace)))
    elif kind == "beside weights":
        torch.save({**state, "extra": Evil(trace)}, path)
    else:
        torch.save(Evil(trace), path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointMismatch, match=r"unet\.pt"):
        load(path)
    assert not trace.exists()
    with path.open("rb") as file:  # the same file does run its code for whoever trusts it
        torch.load(file, weights_only=False) if kind != "plain pickle" else pickle.load(file)  # noqa: S301
    assert trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unet.pt", b"", "cannot be read"),
        ("unet.pt", b"PK\x03\x04 half a download", "cannot be read"),
        ("unet.pt", b"<html>404</html>", "unet.pt"),
        ("unet.pt", b"hello", "cannot be read"),
        ("unet.pt", b"version https://git-lfs.github.com/spec/v1", "unet.pt"),
        ("unet.safetensors", b"", "cannot be read"),
        ("unet.safetensors", b"\xff" * 64, "cannot be read"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=message):
        load(tmp_path / name)


def test_a_truncated_checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for name in ("unet.pt", "unet.safetensors"):
        if name.endswith("pt"):
            torch.save(state, tmp_path / name)
        else:
            safetensors.torch.save_file(state, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointMismatch, match="cannot be read"):
            load(tmp_path / name)


@pytest.mark.parametrize("wrapped", [{"state_dict": {}}, {"step": 5}, [1, 2], "weights"], ids=str)
def test_a_checkpoint_that_is_not_a_state_dict(tmp_path: Path, wrapped: Any) -> None:
    torch.save(wrapped, tmp_path / "unet.pt")
    with pytest.raises(CheckpointMismatch, match="state_dict"):
        load(tmp_path / "unet.pt")
