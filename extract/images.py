"""From the bytes of an image file to the pixels a backbone sees."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .crops import RandomCrop

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

_ORIENTATION = 0x0112  # exif tag

# Pillow's own threshold for a suspicious image: a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485


class UndecodableImage(Exception):
    """The content of an image file cannot be decoded; the message is the reason that goes into the journal."""


@dataclass(frozen=True)
class Resize:
    """How images are resized before they are cropped.

    Attributes:
        interpolation: name of Pillow's filter, such as ``bicubic`` or ``bilinear``.
        halvings: the box filter by halves comes first, while the shorter side is at least twice the wanted one, as in
            guided-diffusion; without, numbers are rounded as torchvision does.
        crop_pct: side of the canonical crop as a fraction of the shorter side after resizing.
        squash: both sides are made equally long, whatever the shape of the image.
    """

    interpolation: str = "bicubic"
    halvings: bool = True
    crop_pct: float = 1.0
    squash: bool = False

    def __post_init__(self) -> None:
        if self.interpolation.upper() not in Image.Resampling.__members__:
            known = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"interpolation is one of {known}, got {self.interpolation!r}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is above 0 and at most 1, got {self.crop_pct}")

    def target(self, width: int, height: int, shorter: int) -> tuple[int, int]:
        """(width, height) of an image whose shorter side becomes ``shorter``."""
        if self.squash:
            return shorter, shorter
        if self.halvings:
            scale = shorter / min(width, height)
            return round(width * scale), round(height * scale)
        longer = int(shorter * max(width, height) / min(width, height))
        return (shorter, longer) if width <= height else (longer, shorter)


GUIDED = Resize()  # what guided-diffusion's evaluation does


def preprocessing(image_size: int, resize: Resize = GUIDED) -> dict[str, Any]:
    """Identity of what :func:`decode` does, as JSON."""
    sides = "both sides" if resize.squash else "shorter side"
    sides += "" if resize.crop_pct == 1 else f" to {math.floor(image_size / resize.crop_pct)}"
    return {
        "size": image_size,
        "resize": f"{sides}, {'box halvings then ' if resize.halvings else ''}{resize.interpolation}",
        "crop": "centre",
        "range": "[-1, 1]",
        "colour": "RGB, alpha dropped, 16-bit by its high byte",
        "orientation": "exif",
    }


def decode(content: bytes, image_size: int, crop: RandomCrop | None = None, resize: Resize = GUIDED) -> NDArray[np.uint8]:
    """Decode an image as the papers' evaluation does: shorter side resized, centre crop; or a training crop.

    Resizing is by default guided-diffusion's ``center_crop_arr``: box filter by halves while the shorter side is at
    least twice the size, then bicubic.

    Args:
        content: of a JPEG, PNG, WebP, BMP or TIFF file.
        image_size: side of the result.
        crop: of the training augmentation; None for the canonical one.
        resize: how; a training crop says itself to which side.

    Returns:
        (image_size, image_size, 3) uint8 RGB.

    Raises:
        UndecodableImage: the content is damaged, empty, too large or of an unknown kind.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            image.load()
            upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            pixels = _crop(_to_bytes(upright), image_size, crop, resize)
    except UndecodableImage:
        raise
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its message has an address in memory: another in every run
        raise UndecodableImage("not an image of a known kind" if content else "the file is empty") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged content
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    return pixels


def _to_bytes(image: Image.Image) -> Image.Image:
    """The image as RGB, or as grey (L) where it is: one channel is resized in a third of the time, to the same values."""
    if image.mode == "L":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UndecodableImage(f"pixels of mode {image.mode} (32 bits) have no defined range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")


def _crop(image: Image.Image, image_size: int, crop: RandomCrop | None, resize: Resize) -> NDArray[np.uint8]:
    shorter = math.floor(image_size / resize.crop_pct) if crop is None else crop.shorter
    while resize.halvings and min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    size = resize.target(image.width, image.height, shorter)
    if size[0] * size[1] > MAX_PIXELS:
        raise UndecodableImage(f"{image.width}x{image.height} pixels become {size[0]}x{size[1]}, more than {MAX_PIXELS}")
    image = image.resize(size, resample=Image.Resampling[resize.interpolation.upper()])
    left, top = _place(image.width - image_size, image.height - image_size, crop, resize)
    pixels = np.asarray(image.crop((left, top, left + image_size, top + image_size)).convert("RGB"))
    return pixels[:, ::-1] if crop is not None and crop.flip else pixels


def _place(wide: int, high: int, crop: RandomCrop | None, resize: Resize) -> tuple[int, int]:
    """(left, top) of a crop that leaves so many pixels of the width and of the height."""
    if crop is not None:
        return int(crop.left * (wide + 1)), int(crop.top * (high + 1))
    return (wide // 2, high // 2) if resize.halvings else (round(wide / 2), round(high / 2))
