from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.analysis import accuracy_maps
from diffssl.extract import ExtractError, ExtractSpec
from diffssl.extract.backbone import Backbone
from diffssl.extract.images import decode
from diffssl.extract.job import load_backbone, open_store, prepare
from diffssl.extract.own import OwnModel
from diffssl.probe.spec import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore, IdentityMismatch
from diffssl.store.verify import verify

RunMain = Callable[..., tuple[int, str, str]]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
MakeSpec = Callable[..., ExtractSpec]

DOCS = Path(__file__).parents[2] / "docs" / "backbones.md"
SOURCE = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]

# The same network with a linear schedule of four timesteps.
DENOISER = SOURCE.replace("diffusion_steps = 32, (3, 32, 32), GUIDED, None", "diffusion_steps = 32, (3, 32, 32), GUIDED, 4")
DENOISER += """
    net = Net(device, dtype)
    net.schedule = lambda timestep: (1 - timestep / 3, timestep / 3)
    net.diffuse = lambda x_0, noise, timestep: (1 - timestep / 3) * x_0 + timestep / 3 * noise
    return net
"""
DENOISER = DENOISER.replace("    return Net(device, dtype)\n", "")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example of the docs as a file, and the option that names it."""
    monkeypatch.chdir(tmp_path)
    Path("my_module.py").write_text(SOURCE)
    return "my_module.py:make_backbone"


@pytest.fixture
def spec(example: str, make_spec: MakeSpec) -> Callable[..., ExtractSpec]:
    """A spec of the example, on 72 photographs."""

    def make(**changes: Any) -> ExtractSpec:
        options: dict[str, Any] = {"backbone": example, "blocks": {1: set(), 3: {1, 2}}, "timesteps": (), "model": None}
        return make_spec(**{**options, **changes})

    return make


def test_the_example_of_the_docs_from_images_to_a_table(example: str, run_main: RunMain) -> None:
    """As a user would: list, plan, extract, do it again, probe, draw."""
    assert len(SOURCE.splitlines()) < 45
    code, out, _ = run_main("--list-blocks", "--backbone", example)
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["1", "Conv", "16", "16"],
        ["2", "Conv", "32", "8"],
        ["3", "Conv", "64", "4"],
    ]
    options = ["--backbone", example, "--blocks", "1-3", "--pools", "1,2", "--limit", "256", "--device", "cpu"]
    code, out, err = run_main(*options, "--plan", "--measure")
    assert (code, err) == (0, "")
    assert not Path("feats.zarr").exists()
    code, out, err = run_main(*options)
    assert code == 0, err
    assert out.splitlines()[0].startswith(f"model {example}, images handwritten digits")
    assert "nothing to do" in run_main(*options)[1]
    store = FeatureStore.open("feats.zarr")
    assert store.keys("all") == [FeatureKey(block, None, pool) for block in (1, 2, 3) for pool in (1, 2)]
    assert store.header.model == example
    assert list(verify(store)) == []
    assert {path.name[6:13] for path in Path("feats.zarr/journal/all").iterdir()} == {"-tnone-"}
    lines: list[str] = []
    found = probe(ProbeSpec(Path("feats.zarr"), ["linear"], steps=100, device="cpu"), lines.append)
    assert len(found) == 6
    assert lines[-1].startswith("best by val: linear on block ")
    assert "None" not in " ".join(lines)
    assert max(result["test_top1"] for result in found) > 0.5
    (one, _) = accuracy_maps(found)
    assert one.val.shape == (3, 1)


def test_features_are_what_the_backbone_gives(
    spec: Callable[..., ExtractSpec], run_extract: RunExtract, photos: Path, tmp_path: Path
) -> None:
    """On clean images, in batches, pooled; and nothing about noise in the store."""
    store, _ = run_extract(spec())
    net = load_backbone(prepare(spec(), lambda _: None))
    ids = store.ids("all")[16:24]
    pixels = np.stack([decode((photos / name).read_bytes(), 32) for name in ids])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    with torch.inference_mode():
        maps = {number: value for number, value in net.features(x, None, [1, 3]) if isinstance(value, torch.Tensor)}
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps[3], 2).half().numpy()
    np.testing.assert_array_equal(store.read(FeatureKey(3, None, 2), "all", slice(16, 24)), pooled)
    assert store.identity.fields["noise"] == {"scheme": "none"}
    attributes = (tmp_path / "feats.zarr/all/features/b3/p2/tnone/zarr.json").read_text()
    assert '"timestep": null' in attributes
    assert '"log_snr": null' in attributes


def test_identity_is_what_was_said_and_the_source(spec: Callable[..., ExtractSpec]) -> None:
    fields = prepare(spec(), lambda _: None).header.identity.fields
    assert fields["weights_sha256"] == "none: random, seed 0"
    assert fields["model_config"] == {
        "function": "make_backbone",
        "source_sha256": sha256(SOURCE.encode()).hexdigest(),
        "identity": {"weights_sha256": "none: random, seed 0"},
    }
    assert fields["condition"] == "none"
    assert fields["preprocessing"]["size"] == 32


def test_another_source_is_another_store(spec: Callable[..., ExtractSpec], run_extract: RunExtract) -> None:
    run_extract(spec(limit=8))
    Path("my_module.py").write_text(SOURCE.replace("seed(0)", "seed(1)"))
    with pytest.raises(IdentityMismatch, match=r"model_config\.source_sha256"):
        prepare(spec(limit=8), lambda _: None)
    with pytest.raises(ExtractError, match=r"made with --backbone my_module\.py:make_backbone; give it again"):
        prepare(spec(limit=8, backbone=None), lambda _: None)


def test_the_function_is_called_once_with_device_and_dtype(spec: Callable[..., ExtractSpec]) -> None:
    line = "    with open('calls', 'a') as file:\n        print(device, dtype, file=file)\n    return Net("
    Path("my_module.py").write_text(SOURCE.replace("    return Net(", line))
    job = prepare(spec(dtype="bfloat16"), lambda _: None)
    backbone: Backbone = load_backbone(job)
    open_store(job, backbone)
    assert Path("calls").read_text() == "cpu torch.bfloat16\n"
    (activation,) = (value for _, value in backbone.features(torch.zeros(1, 3, 32, 32), None, [2]))
    assert isinstance(activation, torch.Tensor)
    assert activation.dtype == torch.bfloat16


def test_a_backbone_with_timesteps(spec: Callable[..., ExtractSpec], run_extract: RunExtract) -> None:
    Path("my_module.py").write_text(DENOISER)
    store, _ = run_extract(spec(timesteps=[1, 3], limit=8))
    assert [key.timestep for key in store.keys("all")] == [1, 3, 1, 3, 1, 3]
    assert store.identity.fields["noise"] == {"scheme": 1, "seed": 0}
    found = [json.loads((Path(store.path) / f"all/features/b1/p1/t{t}/zarr.json").read_text())["attributes"] for t in (1, 3)]
    assert [one["alpha"] for one in found] == pytest.approx([2 / 3, 0.0])
    assert found[0]["log_snr"] == pytest.approx(2 * np.log(2))
    assert found[1]["log_snr"] is None  # nothing but noise
    with pytest.raises(ExtractError, match="has 0 to 3"):
        prepare(spec(), lambda _: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": [10, 11, 12]}, "--timesteps 10-12 means nothing"),
        ({"seed": 0}, "--seed 0 means nothing"),
        ({"noise": "gaussian"}, "--noise gaussian means nothing"),
        ({"draws": 2}, "--draws 2 means nothing"),
        ({"condition": "3"}, "--condition 3 means nothing"),
        ({"pools": ("cls",), "blocks": {2: set()}}, "no class token at block 2"),
        ({"blocks": {4: set()}}, "no block 4; its blocks are 1-3"),
        ({"backbone": "my_module.py"}, "FILE.py:FUNCTION, such as"),
        ({"backbone": "my_module:make"}, "FILE.py:FUNCTION, such as"),
        ({"backbone": "other.py:make_backbone"}, "other.py: there is no such file"),
        ({"backbone": "my_module.py:make"}, "has no function make"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(spec: Callable[..., ExtractSpec], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExtractError, match=re.escape(message)):
        prepare(spec(**options), lambda _: None)
    assert not Path(spec().store).exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def encode(", "def encodes(", "it has no encode (docs"),
        ("GUIDED, None", "GUIDED, 1000", "it has no diffuse, schedule (docs"),
        ('{"weights_sha256": "none: random, seed 0"}', "{}", "JSON values that tells its weights from others"),
        ('{"weights_sha256": "none: random, seed 0"}', '{"loss": float("nan")}', "JSON values"),
        ("))\n\n    def walk", "))[1:]\n\n    def walk", "are [2, 3]"),
        ("device, dtype\n        self.identity", 'torch.device("meta"), dtype\n        self.identity', "made one on meta"),
    ],
    ids=["method", "schedule", "no identity", "no JSON", "numbers", "device"],
)
def test_what_is_no_backbone_is_refused(spec: Callable[..., ExtractSpec], old: str, new: str, message: str) -> None:
    assert SOURCE.count(old) == 1
    Path("my_module.py").write_text(SOURCE.replace(old, new))
    with pytest.raises(ExtractError, match=re.escape(message)):
        load_backbone(prepare(spec(), lambda _: None))


def test_errors_of_the_module_keep_their_traceback(spec: Callable[..., ExtractSpec]) -> None:
    Path("my_module.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        prepare(spec(), lambda _: None)


def test_what_lies_beside_the_file_can_be_imported(spec: Callable[..., ExtractSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    Path("my_module.py").write_text("from beside_my_module import make_backbone\n")
    Path("beside_my_module.py").write_text(SOURCE)
    assert len(prepare(spec(), lambda _: None).header.blocks) == 3


def test_a_wrong_call_of_load(example: str) -> None:
    model = OwnModel(example, "cpu", "float32")
    with pytest.raises(ValueError, match=r"made for float32.*torch\.float16"):
        model.load(torch.device("cpu"), torch.float16, "none")
