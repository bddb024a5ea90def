from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import DataError, torchvision_sets
from diffssl.extract.sources import DataSet, load_data
from numpy.typing import NDArray
from PIL import Image

Write = Callable[[Path, Iterable[str]], None]


def load(source: str) -> DataSet:
    return load_data([source])


# --- what can be said without torchvision


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision://CIFAR?root=/data", r"torchvision://CIFAR\?root=/data: known data sets are CIFAR10, CIFAR100"),
        ("torchvision://CIFAR10", r"expected torchvision://CIFAR10\?root=FOLDER"),
        ("torchvision://CIFAR10?root=", "expected torchvision"),
        ("torchvision://CIFAR10?root=/data&split=train", "expected torchvision"),
        ("torchvision://CIFAR10?root=/data&download=yes", "expected torchvision"),
    ],
)
def test_what_is_not_understood(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(source)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_pixels_are_kept(mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    again = Image.open(io.BytesIO(torchvision_sets._png(image)))
    np.testing.assert_array_equal(np.asarray(again.convert("RGB")), np.asarray(image.convert("RGB")))


def test_images_are_upright() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    image.getexif()[0x0112] = 6
    again = Image.open(io.BytesIO(torchvision_sets._png(image)))
    assert again.size == (3, 4)
    assert again.getexif().get(0x0112, 1) == 1


# --- torchvision's own classes on files in their formats


@pytest.fixture
def torchvision() -> None:
    """Skips where torchvision is not there."""
    pytest.importorskip("torchvision", reason="TORCHVISION IS NOT HERE", exc_type=ImportError)


@pytest.fixture
def mnist(tmp_path: Path) -> tuple[Path, dict[str, tuple[NDArray[np.uint8], list[int]]]]:
    """MNIST's files, with fewer images."""
    rng = np.random.default_rng(0)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    content: dict[str, tuple[NDArray[np.uint8], list[int]]] = {}
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).tolist()
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (tmp_path / f"MNIST/raw/{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (tmp_path / f"MNIST/raw/{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(labels))
        content[split] = images, labels
    return tmp_path, content


@pytest.mark.usefixtures("torchvision")
def test_halves(mnist: tuple[Path, dict[str, tuple[NDArray[np.uint8], list[int]]]]) -> None:
    root, content = mnist
    data = load(f"torchvision://MNIST?root={root}")
    assert data.splits.keys() == content.keys()
    for split, (images, labels) in content.items():
        own = data.splits[split]
        assert sorted(own.ids) == [f"{i:08d}" for i in range(len(images))]
        for row, sample in enumerate(own.ids):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(own.read(row)))), images[int(sample)])
            assert data.classes[own.labels[row]].startswith(f"{labels[int(sample)]} - ")
    assert "train: ids are torchvision's row numbers" in data.notes
    assert load(f"test=torchvision://MNIST?root={root}").splits.keys() == {"test"}


@pytest.mark.usefixtures("torchvision")
def test_splits_by_name(tmp_path: Path, write_images: Write) -> None:
    names = [f"country211/{split}/{place}/{i}.png" for split in ("train", "valid", "test") for place in "AB" for i in range(2)]
    write_images(tmp_path, names)
    data = load(f"torchvision://Country211?root={tmp_path}")
    assert {name: len(split.ids) for name, split in data.splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert data.classes == ["A", "B"]
    split = data.splits["val"]
    for row, sample in enumerate(split.ids):
        path = tmp_path / "country211/valid" / "AB"[int(sample) // 2] / f"{int(sample) % 2}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(split.read(row)))), np.asarray(Image.open(path)))
        assert split.labels[row] == int(sample) // 2


@pytest.mark.usefixtures("torchvision")
def test_labels_without_a_list(tmp_path: Path, write_images: Write) -> None:
    """Read from the rows themselves, and said; without names they are integers."""
    write_images(tmp_path / "gtsrb/GTSRB/Training", ["00000/0.png", "00007/1.png", "00007/2.png"])
    for path in (tmp_path / "gtsrb/GTSRB/Training").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".ppm"))
        path.unlink()
    write_images(tmp_path / "gtsrb/GTSRB/Final_Test/Images", ["0.png"])
    image = tmp_path / "gtsrb/GTSRB/Final_Test/Images/0.ppm"
    Image.open(image.with_suffix(".png")).save(image)
    (tmp_path / "gtsrb/GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;1\n")
    data = load(f"torchvision://GTSRB?root={tmp_path}")
    assert sum("labels were read by loading every image once" in note for note in data.notes) == 2
    assert data.classes == ["00000", "00001"]


@pytest.mark.usefixtures("torchvision")
def test_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened .*torchvision://CIFAR10\?root=.*&download=1"):
        load(f"torchvision://CIFAR10?root={tmp_path}")


@pytest.mark.usefixtures("torchvision")
def test_every_data_set_of_the_table_is_torchvision_s() -> None:
    import inspect

    from torchvision import datasets

    for name, splits in torchvision_sets.SPLITS.items():
        parameters = inspect.signature(getattr(datasets, name)).parameters
        assert {"root", "download"} <= parameters.keys()
        for arguments in splits.values():
            assert arguments.keys() <= parameters.keys()
