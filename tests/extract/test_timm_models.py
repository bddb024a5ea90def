from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffssl.extract import CheckpointMismatch, ExtractError, ExtractSpec, MissingWeights, UnknownBlock, UnknownModel
from diffssl.extract.images import decode
from diffssl.extract.job import load_backbone, prepare
from diffssl.extract.pooling import Tokens
from diffssl.probe.spec import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore
from torch import Tensor

# It wants torchvision, of which not every torch has a build that fits.
timm = pytest.importorskip("timm", reason="timm cannot be imported here")

from diffssl.extract.timm_models import TimmEncoder, TimmModel  # noqa: E402

RunMain = Callable[..., tuple[int, str, str]]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
MakeSpec = Callable[..., ExtractSpec]

CPU = torch.device("cpu")
# Basic and bottleneck blocks; a class token; registers and no class token, another norm.
NAMES = ["test_resnet", "test_vit", "test_vit4"]


def random_net(name: str, classes: int = 10) -> Any:
    """timm's own network with its classifier, every weight random."""
    net = timm.create_model(name, num_classes=classes).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in net.parameters():
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            value.copy_((value.ndim == 1) + scale * torch.randn(value.shape, generator=generator))
    return net


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of all networks."""
    folder = tmp_path_factory.mktemp("timm")
    for name in NAMES:
        safetensors.torch.save_file(random_net(name).state_dict(), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in NAMES}


@pytest.fixture(scope="module")
def encoders(files: dict[str, Path]) -> dict[str, TimmEncoder]:
    return {name: TimmModel(name, file).load(CPU, torch.float32, "none") for name, file in files.items()}


def images(n: int = 2, size: int = 160) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def own_forward(net: Any, x: Tensor) -> list[Tensor]:
    """What every block gives while timm's own forward runs, by hooks."""
    found: list[Tensor] = []
    modules = list(net.blocks) if hasattr(net, "blocks") else [net.maxpool, *net.layer1, *net.layer2, *net.layer3, *net.layer4]
    handles = [module.register_forward_hook(lambda _m, _i, output: found.append(output.clone())) for module in modules]
    with torch.inference_mode():
        net(x)
    for handle in handles:
        handle.remove()
    return found


def collect(encoder: TimmEncoder, x: Tensor, blocks: list[int]) -> dict[int, Tensor | Tokens]:
    with torch.inference_mode():
        return dict(encoder.features(x, None, blocks))


# --- features


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_timms_own_forward(name: str, encoders: dict[str, TimmEncoder]) -> None:
    """Every block, exactly; of a ViT the patches in their places and the class token, of timm's own sorting too."""
    encoder, net, x = encoders[name], random_net(name), images()
    expected = own_forward(net, x)
    found = collect(encoder, x, list(range(1, len(expected) + 1)))
    assert list(found) == list(range(1, len(expected) + 1)) == [block.number for block in encoder.blocks]
    for number, value in found.items():
        block, theirs = encoder.blocks[number - 1], expected[number - 1]
        whole = value.map if isinstance(value, Tokens) else value
        assert whole.shape == (2, block.channels, block.size, block.size)
        assert isinstance(value, Tokens) == block.class_token == (name == "test_vit")
        if theirs.ndim == 3:
            height = block.size
            places = theirs[:, 1:].reshape(2, height, height, -1)  # one token before the patches in both
            for row, column in ((0, 0), (0, 3), (height - 1, 2)):
                assert torch.equal(whole[:, :, row, column], places[:, row, column])
            theirs_map = net.forward_intermediates(x, [number - 1], norm=False, intermediates_only=True)[0]
            assert torch.equal(whole, theirs_map)
        else:
            assert torch.equal(whole, theirs)
        if isinstance(value, Tokens):
            assert torch.equal(value.cls, theirs[:, 0])
        assert whole.std() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_stops_after_the_deepest_block(name: str, encoders: dict[str, TimmEncoder]) -> None:
    """Nothing behind it runs, and nothing before the caller asks for it."""
    encoder = encoders[name]
    net = encoder._model
    modules = list(net.blocks) if hasattr(net, "blocks") else [net.conv1, *net.layer1, *net.layer2, *net.layer3, *net.layer4]
    ran: list[int] = []
    handles = [module.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, module in enumerate(modules, 1)]
    steps: Iterator[Any] = encoder.features(images(1), None, [2, 4])
    assert next(steps)[0] == 2
    assert ran == [1, 2]
    assert [number for number, _ in steps] == [4]
    assert ran == [1, 2, 3, 4]
    for handle in handles:
        handle.remove()


def test_any_selection_gives_the_same(encoders: dict[str, TimmEncoder]) -> None:
    x = images()
    everything = collect(encoders["test_resnet"], x, [1, 2, 3, 4, 5])
    for blocks in ([5], [3, 1], [2, 4, 2]):
        found = collect(encoders["test_resnet"], x, blocks)
        assert list(found) == sorted(set(blocks))
        for number, value in found.items():
            assert torch.equal(value, everything[number])  # type: ignore[arg-type]


@pytest.mark.parametrize("blocks", [[0, 1], [6], [-1]])
def test_unknown_blocks_and_timesteps(encoders: dict[str, TimmEncoder], blocks: list[int]) -> None:
    encoder = encoders["test_resnet"]
    with pytest.raises(UnknownBlock, match="1 to 5"):
        collect(encoder, images(), blocks)
    with pytest.raises(ValueError, match="no timesteps, got 10"):
        next(encoder.features(images(), 10, [1]))
    with pytest.raises(ValueError, match="no timesteps"):
        encoder.schedule(10)
    with pytest.raises(ValueError, match="no timesteps"):
        encoder.diffuse(images(), images(), 10)


def test_compute_dtype(files: dict[str, Path], encoders: dict[str, TimmEncoder]) -> None:
    encoder = TimmModel("test_resnet", files["test_resnet"]).load(CPU, torch.bfloat16, "none")
    x = images()
    ours, exact = collect(encoder, x, [4])[4], collect(encoders["test_resnet"], x, [4])[4]
    assert isinstance(ours, Tensor)
    assert isinstance(exact, Tensor)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


# --- what is known of a model


def test_blocks_and_their_cost_by_hand() -> None:
    """ResNet-50 without its weights: 4.1 GMAC, as its authors have it; a ViT-B/16: 16.9 to 17.6 by what is counted."""
    blocks = TimmModel("resnet50", None).measure_blocks()
    assert len(blocks) == 1 + 16
    assert [block.kind for block in blocks][:5] == ["Stem", *(f"Bottleneck 1.{i}" for i in (1, 2, 3)), "Bottleneck 2.1"]
    assert [(block.channels, block.size) for block in blocks][::8] == [(64, 56), (1024, 14), (2048, 7)]
    assert blocks[0].gflop == pytest.approx(2 * 49 * 3 * 64 * 112**2 / 1e9, rel=1e-4)
    assert blocks[-1].gflop / 2 == pytest.approx(4.09, abs=0.01)
    blocks = TimmModel("vit_base_patch16_224", None).measure_blocks()
    tokens, width = 197, 768
    layer = 2 * tokens * (4 + 8) * width**2 + 2 * 2 * tokens**2 * width
    assert blocks[0].gflop * 1e9 == pytest.approx(layer + 2 * 196 * 768 * width, rel=1e-6)
    assert blocks[-1].gflop * 1e9 == pytest.approx(12 * layer + 2 * 196 * 768 * width, rel=1e-6)
    assert blocks[-1].share == 1.0


def test_preprocessing_is_the_models_own(photos: Path, encoders: dict[str, TimmEncoder]) -> None:
    """Decoded and normalised here, and by timm's own transform."""
    from PIL import Image

    model, encoder = TimmModel("test_resnet", None), encoders["test_resnet"]
    own = timm.data.resolve_model_data_config(encoder._model)
    fields = model.preprocessing()
    assert fields["size"] == own["input_size"][1] == 160
    assert fields["resize"] == f"shorter side to {int(160 / own['crop_pct'])}, {own['interpolation']}"
    assert (fields["crop_pct"], fields["mean"], fields["std"]) == (own["crop_pct"], list(own["mean"]), list(own["std"]))
    transform = timm.data.create_transform(**own, is_training=False)
    for path in sorted(photos.rglob("*.png"))[:4]:
        pixels = torch.from_numpy(decode(path.read_bytes(), 160, None, model.resize).copy()).permute(2, 0, 1)
        ours = encoder.encode(pixels[None].float() / 127.5 - 1)[0]
        with Image.open(path) as image:
            torch.testing.assert_close(ours, transform(image.convert("RGB")), rtol=0, atol=1e-5)


def test_the_digest_of_the_weights(files: dict[str, Path], tmp_path: Path) -> None:
    """By its definition; the same of every kind of file, whatever the classifier."""
    digest = TimmModel("test_vit", files["test_vit"]).weights_sha256()
    expected = sha256()
    state = safetensors.torch.load_file(files["test_vit"])
    for name in sorted(state):
        if not name.startswith("head."):
            values = state[name].numpy()
            expected.update(f"{name}\0{values.dtype}\0{','.join(map(str, values.shape))}\0".encode() + values.tobytes())
    assert digest == expected.hexdigest()
    torch.save(random_net("test_vit").state_dict(), tmp_path / "a.pth")
    assert TimmModel("test_vit", tmp_path / "a.pth").weights_sha256() == digest
    bare = {name: value for name, value in state.items() if not name.startswith("head.")}
    safetensors.torch.save_file(bare | {"head.weight": torch.zeros(3, 64)}, tmp_path / "b.safetensors")
    assert TimmModel("test_vit", tmp_path / "b.safetensors").weights_sha256() == digest
    bare["cls_token"] = bare["cls_token"] + 1e-6
    safetensors.torch.save_file(bare, tmp_path / "c.safetensors")
    assert TimmModel("test_vit", tmp_path / "c.safetensors").weights_sha256() != digest


def test_a_folder_that_timm_saved(tmp_path: Path) -> None:
    """As from the hub: weights are loaded when they are asked for, by timm itself."""
    net = random_net("test_vit")
    timm.models.save_for_hf(net, tmp_path / "hub", safe_serialization=True)
    model = TimmModel(f"local-dir:{tmp_path / 'hub'}", None)
    assert model.weights_sha256() is None
    assert len(model.measure_blocks()) == 6
    lines: list[str] = []
    model.fetch(lines.append)
    model.fetch(lines.append)
    assert lines == [f"weights of {model.name}: timm's, from its cache or downloaded"]
    encoder = model.load(CPU, torch.float32, "none")
    value = collect(encoder, images(), [6])[6]
    assert isinstance(value, Tokens)
    assert torch.equal(value.cls, own_forward(net, images())[5][:, 0])
    assert model.identity() == {"library": "timm", "architecture": "test_vit"}
    (tmp_path / "hub/model.safetensors").unlink()
    with pytest.raises(MissingWeights, match="they can be given as --checkpoint FILE"):
        TimmModel(f"local-dir:{tmp_path / 'hub'}", None).fetch(lambda _: None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "timm has no model 'resnet5'; near are resnet50"),
        ("test_convnext", "is a ConvNeXt; known here are ResNet and VisionTransformer"),
        ("resnet50.nonsense", "cannot make resnet50.nonsense: Invalid pretrained tag"),
        ("local-dir:/nowhere", "cannot make local-dir:/nowhere"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        TimmModel(name, None)


def test_checkpoints_that_do_not_fit(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="does not fit"):
        TimmModel("test_vit", files["test_resnet"]).fetch(lambda _: None)
    with pytest.raises(ExtractError, match=r"nowhere\.pt: there is no such checkpoint file"):
        TimmModel("test_vit", tmp_path / "nowhere.pt")


# --- from images to a table


def test_a_vit_from_images_to_a_table(
    files: dict[str, Path], photos: Path, run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "timm:test_vit", "--checkpoint", str(files["test_vit"]), "--device", "cpu"]
    options = [*model, "--data", str(photos), "--row-block", "16", "--batch-size", "8"]
    code, out, err = run_main(*options, "--blocks", "2,6", "--pools", "cls,1,2")
    assert code == 0, err
    assert out.splitlines()[0].startswith(f"model timm:test_vit with {files['test_vit']}, images {photos}")
    store = FeatureStore.open("feats.zarr")
    assert store.keys("all") == [FeatureKey(block, None, pool) for block in (2, 6) for pool in ("cls", 1, 2)]
    assert store.header.model == "timm:test_vit with test_vit.safetensors"
    assert store.read(FeatureKey(6, None, "cls"), "all").shape == (72, 64, 1, 1)
    encoder = TimmModel("test_vit", files["test_vit"]).load(CPU, torch.float32, "none")
    pixels = np.stack([decode((photos / name).read_bytes(), 160, None, encoder.resize) for name in store.ids("all")[8:16]])
    with torch.inference_mode():
        x = encoder.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1)
    value = collect(encoder, x, [6])[6]
    assert isinstance(value, Tokens)
    np.testing.assert_array_equal(
        store.read(FeatureKey(6, None, "cls"), "all", slice(8, 16))[:, :, 0, 0], value.cls.half().numpy()
    )
    assert "nothing to do" in run_main(*options, "--blocks", "2,6", "--pools", "cls,1,2")[1]
    assert run_main("--blocks", "3", "--data", str(photos))[0] == 1  # the checkpoint has to be given again
    code, _, err = run_main(*options, "--blocks", "2", "--timesteps", "10")
    assert (code, err.count("means nothing to it")) == (1, 1)
    lines: list[str] = []
    results = probe(ProbeSpec(Path("feats.zarr"), ["logreg"], pools=["cls"]), lines.append)
    assert {result["pool"] for result in results} == {"cls"}
    assert lines[-1].startswith("best by val: logreg on block ")
    assert ", pool cls: test top-1" in lines[-1]


def test_training_crops_of_an_encoder(files: dict[str, Path], make_spec: MakeSpec, run_extract: RunExtract) -> None:
    """They need no noise."""
    options: dict[str, Any] = {"model": "timm:test_resnet", "checkpoint": files["test_resnet"], "timesteps": (), "crops": 2}
    store, _ = run_extract(make_spec(**options, blocks={5: set()}, limit=8))
    plain, crop = (store.read(FeatureKey(5, None, 1, crop=i), "all", slice(8)) for i in (0, 1))
    assert np.isfinite(crop).all()
    assert not np.array_equal(plain, crop)


def test_class_tokens_of_a_resnet_are_refused(files: dict[str, Path], make_spec: MakeSpec) -> None:
    spec = make_spec(model="timm:test_resnet", checkpoint=files["test_resnet"], timesteps=(), pools=("cls",))
    with pytest.raises(UnknownBlock, match=r"no class token at block 3,5 \(pool cls\); none of its blocks has one"):
        prepare(spec, lambda _: None)


def test_the_plan_loads_no_weights(tmp_path: Path, make_spec: MakeSpec) -> None:
    timm.models.save_for_hf(random_net("test_vit"), tmp_path / "hub", safe_serialization=True)
    spec = make_spec(model=f"timm:local-dir:{tmp_path / 'hub'}", timesteps=())
    job = prepare(spec, lambda _: None, fetch=False)
    assert job.header.identity.fields["weights_sha256"] == "not downloaded"
    assert "_loaded" not in vars(job.model)
    fetched = prepare(spec, lambda _: None)
    assert load_backbone(fetched).sample_shape == (3, 160, 160)
    assert len(fetched.header.identity.fields["weights_sha256"]) == 64
    json.dumps(fetched.header.to_json())
