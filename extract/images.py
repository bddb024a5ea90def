"""From the bytes of an image file to the pixels a backbone sees."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .crops import RandomCrop

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

_ORIENTATION = 0x0112  # exif tag

# Pillow's own threshold for a suspicious image: a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485


class UndecodableImage(Exception):
    """The content of an image file cannot be decoded; the message is the reason that goes into the journal."""


def preprocessing(image_size: int) -> dict[str, Any]:
    """Identity of what :func:`decode` does, as JSON."""
    return {
        "size": image_size,
        "resize": "shorter side, box halvings then bicubic",
        "crop": "centre",
        "range": "[-1, 1]",
        "colour": "RGB, alpha dropped, 16-bit by its high byte",
        "orientation": "exif",
    }


def decode(content: bytes, image_size: int, crop: RandomCrop | None = None) -> NDArray[np.uint8]:
    """Decode an image as the papers' evaluation does: shorter side resized, centre crop; or a training crop.

    Resizing is guided-diffusion's ``center_crop_arr``: box filter by halves while the shorter side is at least twice
    the size, then bicubic.

    Args:
        content: of a JPEG, PNG, WebP, BMP or TIFF file.
        image_size: side of the result.
        crop: of the training augmentation; None for the canonical one.

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
            pixels = _crop(_to_rgb(upright), image_size, crop)
    except UndecodableImage:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged content
        raise UndecodableImage(f"{type(error).__name__}: {error}" if content else "the file is empty") from error
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UndecodableImage(f"pixels of mode {image.mode} (32 bits) have no defined range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")


def _crop(image: Image.Image, image_size: int, crop: RandomCrop | None) -> NDArray[np.uint8]:
    shorter = image_size if crop is None else crop.shorter
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = shorter / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if size[0] * size[1] > MAX_PIXELS:
        raise UndecodableImage(f"{image.width}x{image.height} pixels become {size[0]}x{size[1]}, more than {MAX_PIXELS}")
    image = image.resize(size, resample=Image.Resampling.BICUBIC)
    wide, high = image.width - image_size, image.height - image_size
    left, top = (wide // 2, high // 2) if crop is None else (int(crop.left * (wide + 1)), int(crop.top * (high + 1)))
    pixels = np.asarray(image.crop((left, top, left + image_size, top + image_size)))
    return pixels[:, ::-1] if crop is not None and crop.flip else pixels
