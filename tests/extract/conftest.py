"""Real images on disk, real U-Nets with their weights, and ways to run an extraction."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffssl.extract import ExtractSpec, adm, extract, zoo
from diffssl.extract.adm import ADM, load_adm
from diffssl.extract.cli import main
from diffssl.extract.zoo import DEFAULTS, find_model
from diffssl.store import Block, FeatureStore
from guided_diffusion.script_util import create_model_and_diffusion
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

Outcome = tuple[int, str, str]

PHOTO_SIZE = (40, 36)  # width, height: neither a square nor the size of a model
CLASSES = ("bridge", "flower", "roof")
SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".tif", ".JPEG")

# A small U-Net: nine blocks, maps of 16 and 8 pixels.
TINY = {
    "image_size": 16,
    "num_channels": 32,
    "channel_mult": "1,2",
    "num_res_blocks": 1,
    "attention_resolutions": "8",
    "num_head_channels": 32,
    "resblock_updown": True,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, like the processes that tests start: batches are small, and the cores belong to others too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _blocks_measured_once() -> Iterator[None]:
    """The block table is a pure function of the configuration and takes a second: one measurement of each is enough."""
    tables: dict[str, list[Block]] = {}
    measure = adm.measure_blocks

    def once(config: Mapping[str, Any]) -> list[Block]:
        key = json.dumps(dict(config), sort_keys=True)
        if key not in tables:
            tables[key] = measure(config)
        return list(tables[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adm, "measure_blocks", once)
        yield


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever downloaded from the public address: here nobody listens."""
    monkeypatch.setattr(zoo, "_PUBLIC", "http://127.0.0.1:1")


@pytest.fixture(scope="session")
def random_unet() -> Callable[[Mapping[str, Any]], torch.nn.Module]:
    """A U-Net as guided_diffusion makes it, every weight random: its zero convolutions would hide half of each block."""

    def make(config: Mapping[str, Any]) -> torch.nn.Module:
        model: torch.nn.Module = create_model_and_diffusion(**{**DEFAULTS, **config})[0]
        generator = torch.Generator().manual_seed(20231129)
        with torch.no_grad():
            for parameter in model.parameters():
                scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
                centre = 1.0 if parameter.ndim == 1 else 0.0
                parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def save_model(random_unet: Callable[[Mapping[str, Any]], torch.nn.Module]) -> Callable[..., dict[str, Path]]:
    """Weights and configuration of a random U-Net as files, as the options of a spec that name them."""

    def save(
        folder: Path, config: Mapping[str, Any], change: Callable[[dict[str, torch.Tensor]], object] = lambda _: None
    ) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        state = random_unet(config).state_dict()
        change(state)
        safetensors.torch.save_file(state, folder / "unet.safetensors")
        (folder / "unet.json").write_text(json.dumps(dict(config)))
        return {"checkpoint": folder / "unet.safetensors", "model_config": folder / "unet.json"}

    return save


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    """The small U-Net as a user's own checkpoint."""
    return save_model(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(scope="session")
def bundled() -> ADM:
    """The bundled model on the CPU."""
    return load_adm(find_model(None, None, None), torch.device("cpu"), None, torch.float32)


@pytest.fixture(scope="session")
def write_images() -> Callable[..., None]:
    """Write crops of a photograph below a folder; the same name below the folder is always the same crop."""
    photograph: NDArray[np.uint8] = load_sample_image("china.jpg")
    width, height = PHOTO_SIZE

    def write(root: Path, names: Iterable[str]) -> None:
        for name in names:
            number = int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "little")
            top = number % (photograph.shape[0] - height)
            left = number // 1000 % (photograph.shape[1] - width)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph[top : top + height, left : left + width]).save(root / name)

    return write


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, write_images: Callable[..., None]) -> Path:
    """Class folders with 72 images of six formats. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("photos")
    write_images(root, [f"{CLASSES[i % 3]}/{i:02d}{SUFFIXES[i % 6]}" for i in range(72)])
    return root


@pytest.fixture(scope="session")
def make_tar() -> Callable[..., Path]:
    """Archive files of a folder under other names; in the order given."""

    def make(path: Path, folder: Path, names: Iterable[str], prefix: str = "", mode: str = "w") -> Path:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name in names:
                archive.add(folder / name, arcname=prefix + name)
        return path

    return make


@pytest.fixture
def make_spec(tmp_path: Path, tiny: dict[str, Path], photos: Path) -> Callable[..., ExtractSpec]:
    """A small extraction: the small U-Net, 72 photographs in row blocks of 16, blocks 3 and 5 at timestep 90."""

    def make(**changes: Any) -> ExtractSpec:
        options: dict[str, Any] = {
            "blocks": {3: set(), 5: set()},
            "timesteps": [90],
            "data": (str(photos),),
            "store": tmp_path / "feats.zarr",
            "row_block": 16,
            "batch_size": 8,
            "device": "cpu",
        }
        options |= {} if changes.keys() & {"checkpoint", "model"} else tiny
        return ExtractSpec(**{**options, **changes})

    return make


@pytest.fixture(scope="session")
def run_extract() -> Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]:
    """Run an extraction; the store and the lines that were printed."""

    def run(spec: ExtractSpec) -> tuple[FeatureStore, list[str]]:
        lines: list[str] = []
        store = extract(spec, lines.append)
        return FeatureStore.open(store.path), lines

    return run


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, str]]:
    """SHA-256 of every file below a folder, by its relative name; temporary files of a killed writer apart."""

    def files(root: Path) -> dict[str, str]:
        paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("tmp-")]
        return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in paths}

    return files


@pytest.fixture(scope="session")
def same_values() -> Callable[[FeatureStore, FeatureStore], None]:
    """Assert that two stores hold the same splits, ids, labels, settings and values, NaN included."""

    def check(ours: FeatureStore, theirs: FeatureStore) -> None:
        assert ours.splits == theirs.splits
        for split in ours.splits:
            assert ours.ids(split).tolist() == theirs.ids(split).tolist()
            assert ours.labels(split).tolist() == theirs.labels(split).tolist()
            assert ours.keys(split) == theirs.keys(split)
            assert ours.keys(split)
            assert ours.rows(split).left_out == theirs.rows(split).left_out
            for key in ours.keys(split):
                np.testing.assert_array_equal(ours.read(key, split), theirs.read(key, split), err_msg=f"{split}, {key}")

    return check


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``diffssl-extract`` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> Outcome:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", ["diffssl-extract", *arguments])
        capsys.readouterr()
        try:
            main()
            code: str | int | None = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert code is None or isinstance(code, int)
        return code or 0, out, err

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``diffssl-extract`` as a process of its own, in a folder of the test.

    With ``gate``, the process imports everything first, makes the file ``<name>.ready`` and starts when the gate appears.
    What it prints is in ``<name>.out`` and ``<name>.err``. Whatever is still running at the end of the test is killed.
    """
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, name: str = "run", gate: Path | None = None) -> subprocess.Popen[str]:
        # What is started in the background of a script inherits that SIGINT is ignored.
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "import sys; from diffssl.extract.cli import main; "
        if gate is not None:
            code += "import time, pathlib, diffssl.extract.pipeline, diffssl.extract.adm\n"
            code += f"pathlib.Path({f'{name}.ready'!r}).touch(); gate = pathlib.Path({str(gate)!r})\n"
            code += "while not gate.exists(): time.sleep(0.001)\n"
        with (tmp_path / f"{name}.out").open("w") as out, (tmp_path / f"{name}.err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-c", code + "main()", *arguments],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
