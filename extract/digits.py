"""scikit-learn's bundled handwritten digits."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .listing import Listing

DIGITS = "digits"


def list_digits() -> Listing:
    """1,797 handwritten digits of 8x8 pixels, as PNG."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    names = [str(int(digit)) for digit in data.target]
    contents = [_png(image) for image in images]
    return Listing([f"{name}/{i:04d}" for i, name in enumerate(names)], names, contents.__getitem__)


def _png(image: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()
