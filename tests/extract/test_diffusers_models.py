from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.extract import ExtractError, ExtractSpec, MissingLibrary, MissingWeights, UnknownBlock, UnknownModel, noise_for
from diffssl.extract.diffusers_source import DiffusersModel
from diffssl.extract.images import decode
from diffssl.extract.job import prepare
from diffssl.store import FeatureKey, FeatureStore, IdentityMismatch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

diffusers = pytest.importorskip("diffusers", reason="diffusers cannot be imported here")

from diffssl.extract.diffusers_models import DiffusersBackbone, units  # noqa: E402

RunMain = Callable[..., tuple[int, str, str]]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
MakeSpec = Callable[..., ExtractSpec]

CPU = torch.device("cpu")
WIDTHS = {"block_out_channels": (16, 32), "layers_per_block": 2, "norm_num_groups": 8}

# Which module of diffusers' own network gives each block, and what it is.
DDPM = {
    "conv_in": "Conv",
    "down_blocks.0.resnets.0": "Res",
    "down_blocks.0.resnets.1": "Res",
    "down_blocks.0.downsamplers.0": "Down",
    "down_blocks.1.attentions.0": "Res+Attn",
    "down_blocks.1.attentions.1": "Res+Attn",
    "mid_block": "Res+Attn+Res",
    "up_blocks.0.attentions.0": "Res+Attn",
    "up_blocks.0.attentions.1": "Res+Attn",
    "up_blocks.0.upsamplers.0": "Res+Attn+Up",
    "up_blocks.1.resnets.0": "Res",
    "up_blocks.1.resnets.1": "Res",
    "up_blocks.1.resnets.2": "Res",
}
TEXT = {
    "conv_in": "Conv",
    "down_blocks.0.attentions.0": "Res+Attn",
    "down_blocks.0.attentions.1": "Res+Attn",
    "down_blocks.0.downsamplers.0": "Down",
    "down_blocks.1.resnets.0": "Res",
    "down_blocks.1.resnets.1": "Res",
    "mid_block": "Res+Attn+Res",
    "up_blocks.0.resnets.0": "Res",
    "up_blocks.0.resnets.1": "Res",
    "up_blocks.0.upsamplers.0": "Res+Up",
    "up_blocks.1.attentions.0": "Res+Attn",
    "up_blocks.1.attentions.1": "Res+Attn",
    "up_blocks.1.attentions.2": "Res+Attn",
}
DIT = {f"transformer_blocks.{i}": "Attn+MLP" for i in range(3)}
MODULES: dict[str, Mapping[str, str]] = {"ddpm": DDPM, "dit": DIT, "text": TEXT}
CONDITIONS = {"ddpm": "none", "dit": "3", "text": "a photo of a cat"}


def randomised(net: Any, seed: int = 5) -> Any:
    """Every weight random: some of diffusers' layers begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            value.copy_((value.ndim == 1) + scale * torch.randn(value.shape, generator=generator))
    return net.eval()


def make_ddpm(folder: Path, **changes: Any) -> None:
    options: dict[str, Any] = {"sample_size": 16, "attention_head_dim": 8, **WIDTHS}
    options |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    net = randomised(diffusers.UNet2DModel(**{**options, **changes}))
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(folder)


def make_vae(**changes: Any) -> Any:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    options: dict[str, Any] = {**WIDTHS, **kinds, "layers_per_block": 1, "scaling_factor": 0.25, "shift_factor": 0.5}
    return randomised(diffusers.AutoencoderKL(**{**options, **changes}))


def make_dit(folder: Path, scheduler: Any = None, **changes: Any) -> None:
    options = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "sample_size": 8, "out_channels": 8}
    net = randomised(diffusers.DiTTransformer2DModel(**{**options, "num_embeds_ada_norm": 10, **changes}))
    diffusers.DiTPipeline(net, make_vae(), scheduler or diffusers.DDIMScheduler()).save_pretrained(folder)


def make_text(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="prompts want transformers, which is not here")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    files = {"vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}), "merges.txt": "#version: 0.2\n"}
    (folder / "tokenizer").mkdir(parents=True)
    for name, content in files.items():
        (folder / "tokenizer" / name).write_text(content)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=20)
    sizes = {"vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53, "max_position_embeddings": 20}
    widths = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(**sizes, **widths)
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    net = diffusers.UNet2DConditionModel(sample_size=8, cross_attention_dim=24, attention_head_dim=8, **kinds, **WIDTHS)
    pipeline = diffusers.StableDiffusionPipeline(
        make_vae(shift_factor=None),
        randomised(transformers.CLIPTextModel(config)),
        tokenizer,
        randomised(net),
        diffusers.PNDMScheduler(beta_start=0.001, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saved pipelines, made when they are first asked for. Tests leave them as they are."""
    root = tmp_path_factory.mktemp("pipelines")
    makers: dict[str, Callable[[Path], None]] = {"ddpm": make_ddpm, "dit": make_dit, "text": make_text}

    def get(name: str) -> Path:
        if not (root / name / "model_index.json").exists():
            makers[name](root / name)
        return root / name

    return get


@pytest.fixture(scope="module")
def backbone(folders: Callable[[str], Path]) -> Callable[[str], DiffusersBackbone]:
    made: dict[str, DiffusersBackbone] = {}

    def get(name: str) -> DiffusersBackbone:
        if name not in made:
            loaded = DiffusersModel(str(folders(name))).load(CPU, torch.float32, CONDITIONS[name])
            assert isinstance(loaded, DiffusersBackbone)
            made[name] = loaded
        return made[name]

    return get


class Own:
    """A pipeline as diffusers itself loads and runs it."""

    def __init__(self, name: str, folder: Path) -> None:
        kinds = {"ddpm": "DDPMPipeline", "dit": "DiTPipeline", "text": "StableDiffusionPipeline"}
        self.pipeline = getattr(diffusers, kinds[name]).from_pretrained(folder, low_cpu_mem_usage=False)
        self.net = self.pipeline.transformer if name == "dit" else self.pipeline.unet
        self.name = name

    def inputs(self, n: int) -> dict[str, Any]:
        if self.name == "dit":
            return {"class_labels": torch.full((n,), 3)}
        if self.name == "text":
            embedding, _ = self.pipeline.encode_prompt(CONDITIONS["text"], CPU, 1, False)
            return {"encoder_hidden_states": embedding.expand(n, -1, -1)}
        return {}

    def activations(self, x: Tensor, timestep: int) -> list[Tensor]:
        """Outputs of the modules of :data:`MODULES`, by hooks during the whole forward pass."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[name] = (output[0] if isinstance(output, tuple) else output).clone()

            return hook

        handles = [self.net.get_submodule(name).register_forward_hook(keep(name)) for name in MODULES[self.name]]
        with torch.inference_mode():
            self.net(x, timestep=torch.full((len(x),), timestep), **self.inputs(len(x)))
        for handle in handles:
            handle.remove()
        return [found[name] for name in MODULES[self.name]]


@pytest.fixture(scope="module")
def own(folders: Callable[[str], Path]) -> Callable[[str], Own]:
    made: dict[str, Own] = {}
    return lambda name: made.setdefault(name, made.get(name) or Own(name, folders(name)))


def x_t(backbone: DiffusersBackbone, n: int = 2) -> Tensor:
    return torch.randn(n, *backbone.sample_shape, generator=torch.Generator().manual_seed(n))


def collect(backbone: DiffusersBackbone, x: Tensor, timestep: int, blocks: Sequence[int]) -> dict[int, Tensor]:
    with torch.inference_mode():
        return dict(backbone.features(x, timestep, blocks))


each = pytest.mark.parametrize("name", ["ddpm", "dit", "text"])
Backbones = Callable[[str], DiffusersBackbone]
Folders = Callable[[str], Path]


# --- features


@each
@pytest.mark.parametrize(("n", "timestep"), [(3, 0), (2, 90), (1, 999)])
def test_features_equal_the_librarys_own_forward(
    name: str, n: int, timestep: int, backbone: Backbones, own: Callable[[str], Own]
) -> None:
    """Every block, exactly, against hooks on modules that are named one by one."""
    adapter = backbone(name)
    x = x_t(adapter, n)
    expected = own(name).activations(x, timestep)
    found = collect(adapter, x, timestep, range(1, len(expected) + 1))
    assert list(found) == list(range(1, len(expected) + 1))
    for block, theirs in zip(adapter.blocks, expected, strict=True):
        ours = found[block.number]
        assert ours.shape == (n, block.channels, block.size, block.size)
        if theirs.ndim == 3:
            for place in range(theirs.shape[1]):
                assert torch.equal(ours[:, :, place // block.size, place % block.size], theirs[:, place])
        else:
            assert torch.equal(ours, theirs), block
        assert ours.std() > 1e-3


@each
def test_features_depend_on_the_timestep_and_the_condition(name: str, backbone: Backbones, folders: Folders) -> None:
    adapter = backbone(name)
    x, last = x_t(adapter), len(adapter.blocks)
    one = collect(adapter, x, 10, [last])[last]
    assert not torch.allclose(one, collect(adapter, x, 500, [last])[last], rtol=1e-3)
    if name != "ddpm":
        other = DiffusersModel(str(folders(name))).load(CPU, torch.float32, "none")
        (value,) = (value for _, value in other.features(x, 10, [last]))
        assert isinstance(value, Tensor)
        assert not torch.allclose(one, value, rtol=1e-3)


@each
def test_any_selection_gives_the_same(name: str, backbone: Backbones) -> None:
    adapter = backbone(name)
    x, n = x_t(adapter), len(adapter.blocks)
    everything = collect(adapter, x, 90, range(1, n + 1))
    for blocks in ([n], [2], [n, 1], [3, 2, 3]):
        found = collect(adapter, x, 90, blocks)
        assert list(found) == sorted(set(blocks))
        for number, value in found.items():
            assert torch.equal(value, everything[number])


@each
def test_stops_after_the_deepest_block(name: str, backbone: Backbones) -> None:
    """Of all layers, those of the blocks up to there run and no others."""
    adapter = backbone(name)
    ran: list[str] = []
    leaves = [(path, module) for path, module in adapter._net.named_modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(lambda *_, path=path: ran.append(path)) for path, module in leaves]
    counts = []
    paths = list(MODULES[name])
    for deepest in range(1, len(adapter.blocks) + 1):
        ran.clear()
        collect(adapter, x_t(adapter, 1), 90, [deepest])
        counts.append(len(ran))
        for behind in paths[deepest:]:
            assert not [path for path in ran if path.startswith(f"{behind}.")], f"{behind} behind block {deepest}"
        assert not {"conv_norm_out", "conv_out", "proj_out_1", "proj_out_2"} & set(ran)
        assert ran[-1].startswith(paths[deepest - 1]) or not list(adapter._net.get_submodule(paths[deepest - 1]).children())
    assert counts == sorted(set(counts))
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in adapter._net.modules())


@each
def test_unknown_blocks_and_timesteps(name: str, backbone: Backbones) -> None:
    adapter = backbone(name)
    n = len(adapter.blocks)
    for blocks in ([0], [n + 1], [1, -2]):
        with pytest.raises(UnknownBlock, match=f"1 to {n}"):
            collect(adapter, x_t(adapter), 90, blocks)
    for timestep in (-1, 1000):
        with pytest.raises(UnknownBlock, match="0 to 999"):
            collect(adapter, x_t(adapter), timestep, [1])
    with pytest.raises(ValueError, match="wants a timestep from 0 to 999, got None"):
        next(adapter.features(x_t(adapter), None, [1]))


def test_compute_dtype(folders: Folders, backbone: Backbones) -> None:
    half = DiffusersModel(str(folders("ddpm"))).load(CPU, torch.bfloat16, "none")
    x = x_t(backbone("ddpm"))
    exact = collect(backbone("ddpm"), x, 90, [4])[4]
    (value,) = (value for _, value in half.features(x, 90, [4]))
    assert isinstance(value, Tensor)
    assert value.dtype == torch.bfloat16
    assert (value - exact).abs().max() < 0.05 * exact.abs().max()


# --- blocks, schedule, latents, prompts


@each
def test_blocks_and_their_cost(name: str, folders: Folders, own: Callable[[str], Own]) -> None:
    """Against a count of operations of diffusers' own network on the CPU."""
    model = DiffusersModel(str(folders(name)))
    blocks = model.measure_blocks()
    assert [block.kind for block in blocks] == list(MODULES[name].values())
    flops = [block.gflop for block in blocks]
    assert flops == sorted(set(flops))
    net = own(name).net
    x, inputs = torch.zeros(1, net.config.in_channels, model.sample_size, model.sample_size), own(name).inputs(1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, timestep=torch.tensor([3]), **inputs)
    assert blocks[-1].gflop / blocks[-1].share == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-3)
    if name == "ddpm":
        width = 16
        embedding = 2 * (width * 4 * width + (4 * width) ** 2)
        assert blocks[0].gflop * 1e9 == pytest.approx(2 * 9 * 3 * width * 16 * 16 + embedding, abs=1e3)


@each
def test_the_schedule_is_the_schedulers(name: str, backbone: Backbones, own: Callable[[str], Own]) -> None:
    scheduler, adapter = own(name).pipeline.scheduler, backbone(name)
    x, noise = x_t(adapter, 2), torch.randn(2, *adapter.sample_shape)
    for timestep in (0, 90, 999):
        theirs = scheduler.add_noise(x, noise, torch.tensor([timestep, timestep]))
        torch.testing.assert_close(adapter.diffuse(x, noise, timestep), theirs, rtol=0, atol=1e-6)
        alpha, sigma = adapter.schedule(timestep)
        assert alpha**2 + sigma**2 == pytest.approx(1)
        assert alpha**2 == pytest.approx(float(scheduler.alphas_cumprod[timestep]))


@pytest.mark.parametrize("name", ["dit", "text"])
def test_latents_are_the_mode_scaled(name: str, backbone: Backbones, own: Callable[[str], Own]) -> None:
    images = torch.randn(2, 3, 16, 16)
    vae = own(name).pipeline.vae
    with torch.inference_mode():
        mode = vae.encode(images).latent_dist.mean
        ours = backbone(name).encode(images)
    assert torch.equal(ours, (mode - (0.5 if name == "dit" else 0.0)) * 0.25)
    assert ours.shape[1:] == backbone(name).sample_shape == (4, 8, 8)
    assert backbone(name).image_size == 16


def test_images_of_pixel_models_are_as_they_are(backbone: Backbones) -> None:
    images = torch.randn(2, 3, 16, 16)
    assert backbone("ddpm").encode(images) is images


def test_prompts_are_the_pipelines(folders: Folders, own: Callable[[str], Own]) -> None:
    """Padded and masked as the pipeline does, the empty one too; one that is too long is not cut."""
    model = DiffusersModel(str(folders("text")))
    for condition, text in (("none", ""), ("a cat", "a cat"), ("two dogs, one bone", "two dogs, one bone")):
        expected, _ = own("text").pipeline.encode_prompt(text, CPU, 1, False)
        loaded = model.load(CPU, torch.float32, condition)
        assert isinstance(loaded, DiffusersBackbone)
        assert torch.equal(loaded._condition["encoder_hidden_states"], expected)
    with pytest.raises(ExtractError, match=r"has 42 tokens; the text encoder takes 20"):
        model.load(CPU, torch.float32, "a" * 40)


def test_the_class_that_stands_for_no_class(folders: Folders, own: Callable[[str], Own]) -> None:
    """As the pipeline has it, the number after the last class."""
    loaded = DiffusersModel(str(folders("dit"))).load(CPU, torch.float32, "none")
    assert isinstance(loaded, DiffusersBackbone)
    assert loaded._condition["class_labels"].tolist() == [10]
    embedder = own("dit").net.transformer_blocks[0].norm1.emb.class_embedder
    assert len(embedder.embedding_table.weight) == 11


@pytest.mark.parametrize(
    ("name", "conditional", "right", "wrong"),
    [
        ("ddpm", False, {None: "none", "none": "none"}, {"3": "is not conditional"}),
        (
            "dit",
            True,
            {"007": "7", "none": "none"},
            {None: "none or a class number from 0 to 9, got None", "10": "got 10", "cat": "got cat", "": "got "},
        ),
        ("text", True, {"none": "none", "": "none", "a cat": "a cat"}, {None: "choose --condition TEXT"}),
    ],
)
def test_conditions(
    name: str, conditional: bool, right: dict[str | None, str], wrong: dict[str | None, str], folders: Folders
) -> None:
    model = DiffusersModel(str(folders(name)))
    assert model.conditional == conditional
    assert {wanted: model.condition(wanted) for wanted in right} == right
    for wanted, message in wrong.items():
        with pytest.raises(ExtractError, match=message):
            model.condition(wanted)


def test_a_class_conditional_unet(tmp_path: Path) -> None:
    """Of pixels; it has no class that stands for none."""
    make_ddpm(tmp_path / "a", num_class_embeds=4)
    model = DiffusersModel(str(tmp_path / "a"))
    with pytest.raises(ExtractError, match="--condition is a class number from 0 to 3, got none"):
        model.condition("none")
    x = torch.randn(1, 3, 16, 16)
    found = []
    for condition in ("0", "3"):
        (value,) = (value for _, value in model.load(CPU, torch.float32, condition).features(x, 10, [5]))
        found.append(value)
    assert not torch.equal(found[0], found[1])  # type: ignore[arg-type]


# --- identity


def test_identity_is_of_what_features_depend_on(folders: Folders, tmp_path: Path) -> None:
    """Not of how weights are spread over files, nor of which scheduler has the schedule; but of every weight."""
    model = DiffusersModel(str(folders("dit")))
    copy = tmp_path / "copy"
    pipeline = diffusers.DiTPipeline.from_pretrained(folders("dit"), low_cpu_mem_usage=False)
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(copy, max_shard_size="50KB")
    assert len(list((copy / "transformer").glob("*.safetensors"))) > 1
    again = DiffusersModel(str(copy))
    assert again.weights_sha256() == model.weights_sha256()
    assert again.identity() == model.identity()
    assert again.preprocessing() == model.preprocessing()
    json.dumps(model.identity(), allow_nan=False)
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.bias[0] += 1e-6
    pipeline.save_pretrained(tmp_path / "other")
    assert DiffusersModel(str(tmp_path / "other")).weights_sha256() != model.weights_sha256()
    pipeline.scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    pipeline.save_pretrained(tmp_path / "other")
    assert DiffusersModel(str(tmp_path / "other")).identity() != model.identity()


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"transformer": ["diffusers", "FluxTransformer2DModel"]}, "a FluxTransformer2DModel as transf"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "has vae AutoencoderTiny"),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "has vqvae: it wants inputs"),
        ("model_index.json", {"vae": [None, None]}, "in_channels 4 for samples of 3"),
        ("transformer/config.json", {"norm_type": "ada_norm_single"}, "has norm_type ada_norm_single"),
        ("transformer/config.json", {"sample_size": [8, 4]}, r"sample_size \[8, 4\]; known are squares"),
        ("transformer/config.json", {"sample_size": None}, "sample_size None"),
        ("transformer/config.json", {"addition_embed_type": "text_time"}, "has addition_embed_type text_time"),
        ("vae/config.json", {"latents_mean": [0.1] * 4}, "latents_mean and latents_std"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "not given by alphas_cumprod"),
        ("scheduler/scheduler_config.json", {"_class_name": "NoScheduler"}, "scheduler NoScheduler, which this diffusers"),
    ],
    ids=str,
)
def test_pipelines_of_another_kind_are_refused(
    folders: Folders, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(folders("dit"), tmp_path / "copy"))
    change_json(copy / file, **changes)
    with pytest.raises(UnknownModel, match=message):
        DiffusersModel(str(copy)).load(CPU, torch.float32, "none")


def test_blocks_of_stable_diffusion_are_numbered_as_its_authors_do() -> None:
    """Their 12 input blocks, middle block and 12 output blocks; the default configuration has the sizes of version 1."""
    with torch.device("meta"):
        kinds = [unit.kind for unit in units(diffusers.UNet2DConditionModel())]
    assert len(kinds) == 12 + 1 + 12
    assert [i for i, kind in enumerate(kinds, 1) if kind == "Down"] == [4, 7, 10]
    assert kinds[12] == "Res+Attn+Res"
    assert [i for i, kind in enumerate(kinds, 1) if kind.endswith("+Up")] == [16, 19, 22]
    assert kinds[:2] + kinds[10:12] + kinds[13:16] == ["Conv", "Res+Attn", "Res", "Res", "Res", "Res", "Res+Up"]


def test_blocks_of_another_kind_are_refused(tmp_path: Path) -> None:
    kinds = {"down_block_types": ("SkipDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "SkipUpBlock2D")}
    make_ddpm(tmp_path / "a", **kinds)
    with pytest.raises(UnknownModel, match=r"a SkipDownBlock2D has .*skip_conv besides its lists"):
        DiffusersModel(str(tmp_path / "a")).measure_blocks()


def test_the_oldest_pipelines_have_no_folder_for_the_network(folders: Folders, tmp_path: Path) -> None:
    for path in folders("ddpm").rglob("*.*"):
        shutil.copy(path, tmp_path / path.name)
    model, whole = DiffusersModel(str(tmp_path)), DiffusersModel(str(folders("ddpm")))
    assert model.weights_sha256() == whole.weights_sha256()
    assert model.identity() == whole.identity()
    x = torch.randn(1, 3, 16, 16)
    (ours,), (theirs,) = (list(one.load(CPU, torch.float32, "none").features(x, 9, [13])) for one in (model, whole))
    assert torch.equal(ours[1], theirs[1])  # type: ignore[arg-type]


def test_weights_that_would_be_unpickled_are_not_read(folders: Folders, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders("ddpm"), tmp_path / "copy"))
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    model = DiffusersModel(str(copy))
    assert model.weights_sha256() is None
    with pytest.raises(MissingWeights, match=r"but config\.json, diffusion_pytorch_model\.bin; nothing else is read"):
        model.fetch(lambda _: None)
    with pytest.raises(ExtractError, match="cannot load it"):
        model.load(CPU, torch.float32, "none")


@pytest.mark.parametrize(
    ("where", "message"),
    [("nowhere", "neither a folder nor"), ("/no/where", "neither a folder nor"), ("a/b/c", "neither a folder nor")],
)
def test_there_is_no_such_pipeline(where: str, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        DiffusersModel(where)


def test_a_folder_that_is_no_pipeline(folders: Folders) -> None:
    with pytest.raises(ExtractError, match=r"model_index\.json: cannot be read.*is this a pipeline"):
        DiffusersModel(str(folders("ddpm") / "unet"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which itself is out of reach."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_pipeline_of_the_hubs_cache(folders: Folders, hub: Path) -> None:
    with pytest.raises(MissingWeights, match="owner/name is not in the hub's cache and cannot be downloaded"):
        DiffusersModel("owner/name")
    (hub / "models--owner--name/refs").mkdir(parents=True)
    (hub / "models--owner--name/refs/main").write_text("0" * 40)
    snapshot = hub / "models--owner--name/snapshots" / ("0" * 40)
    shutil.copytree(folders("ddpm"), snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    model = DiffusersModel("owner/name")
    assert model.name == "diffusers:owner/name"
    assert model.weights_sha256() is None
    assert len(model.measure_blocks()) == 13
    lines: list[str] = []
    with pytest.raises(MissingWeights, match=r"has no diffusion_pytorch_model\.safetensors"):
        model.fetch(lines.append)
    assert lines == ["downloading the weights of diffusers:owner/name to the hub's cache"]
    weights = "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(folders("ddpm") / weights, snapshot / weights)
    model.fetch(lines.append)
    assert len(lines) == 1
    assert model.weights_sha256() == DiffusersModel(str(folders("ddpm"))).weights_sha256()


def test_a_library_that_is_not_installed(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known by the files alone is known; the rest says what to install."""
    folder = folders("ddpm")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "diffssl.extract.diffusers_models")
    monkeypatch.delattr("diffssl.extract.diffusers_models")
    model = DiffusersModel(str(folder))
    assert model.weights_sha256() is not None
    with pytest.raises(MissingLibrary, match=r"diffusers cannot be used here.*pip install 'diffssl\[diffusers\]'"):
        model.measure_blocks()


# --- from images to a store


def test_an_extraction_of_latents(
    folders: Folders,
    backbone: Backbones,
    photos: Path,
    make_spec: MakeSpec,
    run_extract: RunExtract,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is stored is decoded, encoded once, noised in latent space, run and pooled; the model is the store's later."""
    encoded: list[int] = []
    encode = DiffusersBackbone.encode

    def counted(self: DiffusersBackbone, images: Tensor) -> Tensor:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(DiffusersBackbone, "encode", counted)
    asked: dict[str, Any] = {"model": f"diffusers:{folders('dit')}", "condition": "3"}
    grid: dict[str, Any] = {"blocks": {2: {1, 2}}, "timesteps": [10, 90], "draws": 2, "limit": 32}
    store, _ = run_extract(make_spec(**asked, **grid))
    assert encoded == [8] * 4
    assert store.header.model == f"diffusers:{folders('dit')}"
    assert store.identity.fields["condition"] == "3"
    ids = store.ids("all")[8:16]
    pixels = np.stack([decode((photos / name).read_bytes(), 16) for name in ids])
    adapter = backbone("dit")
    with torch.inference_mode():
        x_0 = encode(adapter, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1)
        noise = np.stack([noise_for(0, name, 90, (4, 8, 8), 1) for name in ids])
        maps = collect(adapter, adapter.diffuse(x_0, torch.from_numpy(noise), 90), 90, [2])[2]
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 2).half().numpy()
    np.testing.assert_array_equal(store.read(FeatureKey(2, 90, 2, draw=1), "all", slice(8, 16)), pooled)
    _, lines = run_extract(make_spec(model=None, checkpoint=None, model_config=None, **grid))
    assert "nothing to do" in lines[-1]
    with pytest.raises(IdentityMismatch, match="condition: store has '3', now 'none'"):
        prepare(make_spec(**{**asked, "condition": "none"}, **grid), lambda _: None)


def test_finding_nothing_to_do_imports_no_torch(folders: Folders, photos: Path, run_main: RunMain, tmp_path: Path) -> None:
    options = ["--model", f"diffusers:{folders('ddpm')}", "--data", str(photos), "--store", str(tmp_path / "feats.zarr")]
    options += ["--blocks", "2,13", "--timesteps", "90", "--limit", "8", "--row-block", "8", "--device", "cpu"]
    code, _, err = run_main(*options)
    assert code == 0, err
    code_of = "import sys; from diffssl.extract.cli import main; main(); assert not {'torch', 'diffusers'} & set(sys.modules)"
    found = subprocess.run([sys.executable, "-c", code_of, *options], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "nothing to do" in found.stdout


def test_blocks_on_the_command_line(folders: Folders, run_main: RunMain) -> None:
    code, out, _ = run_main("--list-blocks", "--model", f"diffusers:{folders('ddpm')}")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[1:]] == list(DDPM.values())
