"""Classification data sets of torchvision by their names, ``torchvision://CIFAR10?root=/data``.

torchvision gives decoded images; they are handed on as PNG, which keeps every pixel.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image, ImageOps

from .errors import DataError
from .labels import class_names
from .listing import Listing

_HALVES = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}

# How torchvision is asked for each split.
SPLITS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "CIFAR10": _HALVES,
    "CIFAR100": _HALVES,
    "Caltech101": {"all": {}},
    "Caltech256": {"all": {}},
    "Country211": {**_THREE, "val": {"split": "valid"}},
    "DTD": _THREE,
    "EuroSAT": {"all": {}},
    "FashionMNIST": _HALVES,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "KMNIST": _HALVES,
    "MNIST": _HALVES,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _THREE,
    "STL10": _TRAIN_TEST,
    "SUN397": {"all": {}},
    "SVHN": _TRAIN_TEST,
    "USPS": _HALVES,
}
_LABELS = ("targets", "labels", "y", "_labels")  # where torchvision's classes keep them
_PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}
_DIGITS = 8


def list_torchvision(source: str) -> dict[str, Listing]:
    """The splits of a data set.

    Args:
        source: ``//NAME?root=FOLDER``, with ``&download=1`` if it is to be downloaded there.

    Raises:
        DataError: there is no such data set, it is not in the folder, or torchvision is not installed.
    """
    where = f"torchvision:{source}"
    name, _, query = source.removeprefix("//").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if name not in SPLITS:
        raise DataError(f"{where}: known data sets are {', '.join(SPLITS)}; others can be listed in a manifest")
    if not options.get("root") or options.keys() - {"root", "download"} or options.get("download", "0") not in ("0", "1"):
        raise DataError(f"{where}: expected torchvision://{name}?root=FOLDER, and &download=1 to download it there")
    kind = getattr(_import_datasets(), name)
    download = options.get("download") == "1"
    listings: dict[str, Listing] = {}
    for split, arguments in SPLITS[name].items():
        try:
            data = kind(root=options["root"], download=download, **arguments)
        except (RuntimeError, OSError, ImportError) as error:
            way = "" if download else f"; to download it, write torchvision://{name}?root={options['root']}&download=1"
            raise DataError(f"{where}: {split} cannot be opened ({error}){way}") from error
        listings[split] = _listing(data, f"{where}, {split}")
    return listings


def _import_datasets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: it is there, but was built for another torch
        raise DataError(
            f"torchvision cannot be imported ({error}); pip install 'diffssl[torchvision]', built for the torch that is there"
        ) from error
    return datasets


def _listing(data: Any, where: str) -> Listing:
    if not len(data) or not isinstance(data[0][0], Image.Image):
        raise DataError(f"{where}: has no images, or not as pictures of Pillow; list its files in a manifest")
    labels, notes = _labels(data, where)
    names = getattr(data, "classes", getattr(data, "categories", None))
    if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
        high = max(labels)
        if high >= len(names) or len(set(names)) < len(names):
            raise DataError(f"{where}: has labels up to {high}, and {len(set(names))} different names of classes")
        classes, more = class_names([None if label == -1 else names[label] for label in labels], where)
    else:
        classes, more = class_names(labels, where)
    ids = [f"{row:0{_DIGITS}d}" for row in range(len(data))]
    return Listing(ids, classes, lambda row: _png(data[row][0]), ["ids are torchvision's row numbers", *notes, *more])


def _labels(data: Any, where: str) -> tuple[list[int], list[str]]:
    """The label of each row, from a list of them if torchvision's class has one."""
    first = int(data[0][1])
    for name in _LABELS:
        found = getattr(data, name, None)
        if found is not None and len(found) == len(data):
            labels = [int(label) for label in found]
            if labels[0] != first or int(data[len(data) - 1][1]) != labels[-1]:
                raise DataError(f"{where}: {name!r} does not have the labels of the rows; use another version of torchvision")
            return labels, []
    return [int(data[row][1]) for row in range(len(data))], ["labels were read by loading every image once"]


def _png(image: Image.Image) -> bytes:
    """An image upright, as an uncompressed PNG of the same pixels."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    content = io.BytesIO()
    upright.save(content, format="PNG", compress_level=0)
    return content.getvalue()
