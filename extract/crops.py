"""Training crops: the papers' augmentation, as a pure function of (seed, sample, crop)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from .noise import SCHEME

_SMALLEST_FRACTION = 0.8  # of the shorter side: for a model of 256 pixels, a crop of an image resized to 256..320


@dataclass(frozen=True)
class RandomCrop:
    """Where a training crop lies.

    Attributes:
        shorter: pixels of the image's shorter side after resizing.
        top, left: place of the crop, as fractions in [0, 1) of the places there are.
        flip: mirrored left to right.
    """

    shorter: int
    top: float
    left: float
    flip: bool


def crop_for(seed: int, sample_id: str, crop: int, image_size: int) -> RandomCrop | None:
    """The crop of a sample, the same at every timestep and draw; None for crop 0, the canonical one.

    The distribution is that of the papers' code, guided-diffusion's ``random_crop_arr``: shorter side uniform in 256..320
    for 256 pixels and in proportion for other sizes, place uniform, mirrored half of the time.

    Args:
        seed: of the store; 0 for clean images.
        sample_id: as in the store's ``rows/id``.
        crop: number of the crop.
        image_size: of the model, in pixels.
    """
    if crop == 0:
        return None
    message = json.dumps([SCHEME, int(seed), sample_id, int(crop)], ensure_ascii=False)
    key = blake2b(message.encode(), digest_size=16, person=b"diffssl-crop").digest()
    words = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64)).random_raw(4)
    shorter, top, left, flip = (float(word >> np.uint64(11)) * 2.0**-53 for word in words)
    choices = math.ceil(image_size / _SMALLEST_FRACTION) - image_size + 1
    return RandomCrop(image_size + int(shorter * choices), top, left, flip < 0.5)
