from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from diffssl.extract.crops import RandomCrop
from diffssl.extract.images import MAX_PIXELS, SUFFIXES, Resize, UndecodableImage, decode, preprocessing
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

EXIF_ORIENTATION = 0x0112

# What a camera that writes this orientation stores, so that viewers show ``shown``.
STORED = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),
}


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    """(427, 640, 3) uint8 photograph."""
    photo: NDArray[np.uint8] = load_sample_image("china.jpg")
    return photo


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def center_crop_arr(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Preprocessing of the papers' evaluation, as its authors define it."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), Image.Resampling.BICUBIC)
    pixels = np.array(image.convert("RGB"))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def crop(photo: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(photo[100 : 100 + height, 50 : 50 + width]))


@pytest.mark.parametrize("image_size", [16, 32, 64, 50])
@pytest.mark.parametrize(
    ("width", "height"),
    [(640, 427), (200, 64), (64, 200), (64, 64), (65, 131), (63, 63), (32, 32), (31, 33), (127, 40), (8, 8), (7, 31), (1, 1)],
)
def test_resizes_and_crops_as_guided_diffusion(photo: NDArray[np.uint8], width: int, height: int, image_size: int) -> None:
    image = crop(photo, width, height) if width < 640 else Image.fromarray(photo)
    pixels = decode(encoded(image, "PNG"), image_size)
    assert pixels.shape == (image_size, image_size, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, center_crop_arr(image, image_size))


def test_the_model_size_itself_is_left_alone(photo: NDArray[np.uint8]) -> None:
    image = crop(photo, 32, 32)
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), 32), np.asarray(image))


def test_crop_is_the_centre() -> None:
    """Columns left, middle, right of a wide image: the middle is what remains."""
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, :32], pixels[:, 32:64], pixels[:, 64:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert (decode(encoded(Image.fromarray(pixels), "PNG"), 32) == (0, 255, 0)).all()
    assert (decode(encoded(Image.fromarray(pixels.transpose(1, 0, 2)), "PNG"), 32) == (0, 255, 0)).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_kinds(photo: NDArray[np.uint8], kind: str, options: dict[str, Any]) -> None:
    image = crop(photo, 100, 70)
    np.testing.assert_array_equal(decode(encoded(image, kind, **options), 32), center_crop_arr(image, 32))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_kinds(photo: NDArray[np.uint8], kind: str, options: dict[str, Any]) -> None:
    image = crop(photo, 200, 140)
    content = encoded(image, kind, **options)
    pixels = decode(content, 32)
    np.testing.assert_array_equal(pixels, center_crop_arr(Image.open(io.BytesIO(content)), 32))
    assert np.abs(pixels.astype(int) - center_crop_arr(image, 32)).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_grey(photo: NDArray[np.uint8], kind: str) -> None:
    content = encoded(crop(photo, 90, 60).convert("L"), kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decode(content, 32)
    assert (pixels == pixels[..., :1]).all()
    assert pixels.std() > 10
    np.testing.assert_array_equal(pixels, center_crop_arr(Image.open(io.BytesIO(content)).convert("RGB"), 32))


def test_black_and_white() -> None:
    pixels = decode(encoded(Image.fromarray(np.eye(32, dtype=bool)), "PNG"), 32)
    np.testing.assert_array_equal(pixels, np.repeat(np.eye(32, dtype=np.uint8)[..., None] * 255, 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    """Pillow's own conversion cuts everything above 255 off."""
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    content = encoded(Image.fromarray(values), kind)
    assert Image.open(io.BytesIO(content)).mode.startswith("I;16")
    np.testing.assert_array_equal(decode(content, 32), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_big_endian_tiff() -> None:
    values = (np.arange(32 * 32, dtype=np.uint16) * 60).reshape(32, 32)
    raw = values.astype(">u2").tobytes()
    tags = [(256, 3, 32), (257, 3, 32), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 32)]
    entries = [*tags, (279, 4, len(raw))]
    directory = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    content = b"MM\x00\x2a" + struct.pack(">I", 8 + len(raw)) + raw + directory + struct.pack(">I", 0)
    assert Image.open(io.BytesIO(content)).mode == "I;16B"
    np.testing.assert_array_equal(decode(content, 32)[..., 0], (values >> 8).astype(np.uint8))


def test_palette(photo: NDArray[np.uint8]) -> None:
    image = crop(photo, 80, 60).quantize(60)
    assert image.mode == "P"
    pixels = decode(encoded(image, "PNG"), 32)
    np.testing.assert_array_equal(pixels, center_crop_arr(image.convert("RGB"), 32))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 60  # resized as colours, not as palette numbers


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 240, 4))], ids=["one colour", "a value per colour"])
def test_palette_with_transparency(photo: NDArray[np.uint8], transparency: int | bytes) -> None:
    """An everyday PNG: its transparency is dropped, its colours stay, and nothing is said about it on the terminal."""
    image = crop(photo, 80, 60).quantize(60)
    content = encoded(image, "PNG", transparency=transparency)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = decode(content, 32)
    np.testing.assert_array_equal(pixels, center_crop_arr(image.convert("RGB"), 32))
    assert [str(warning.message) for warning in caught] == []


def test_palette_with_transparency_where_warnings_are_errors(photo: NDArray[np.uint8]) -> None:
    """Under ``python -W error`` an image is as decodable as without."""
    content = encoded(crop(photo, 80, 60).quantize(60), "PNG", transparency=bytes(range(60)))
    assert decode(content, 32).shape == (32, 32, 3)


def test_cmyk(photo: NDArray[np.uint8]) -> None:
    image = crop(photo, 80, 60)
    content = encoded(image.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    pixels = decode(content, 32)
    np.testing.assert_array_equal(pixels, center_crop_arr(Image.open(io.BytesIO(content)).convert("RGB"), 32))
    assert np.abs(pixels.astype(int) - center_crop_arr(image, 32)).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped(photo: NDArray[np.uint8], kind: str) -> None:
    image = crop(photo, 64, 64)
    alpha = Image.fromarray((np.arange(64 * 64) % 256).astype(np.uint8).reshape(64, 64))
    transparent = image.copy()
    transparent.putalpha(alpha)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(transparent, kind, **options), 32), center_crop_arr(image, 32))


def test_grey_with_alpha(photo: NDArray[np.uint8]) -> None:
    grey = crop(photo, 64, 64).convert("L")
    both = Image.merge("LA", (grey, Image.new("L", grey.size, 7)))
    np.testing.assert_array_equal(decode(encoded(both, "PNG"), 32), center_crop_arr(grey.convert("RGB"), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation(photo: NDArray[np.uint8], kind: str, orientation: int) -> None:
    shown = np.ascontiguousarray(photo[100:160, 50:140])
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](shown)))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(stored, kind, exif=exif, **options), 32)
    np.testing.assert_array_equal(pixels, center_crop_arr(Image.fromarray(shown), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_jpeg(photo: NDArray[np.uint8], orientation: int) -> None:
    shown = np.ascontiguousarray(photo[100:160, 50:140])
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encoded(
        Image.fromarray(np.ascontiguousarray(STORED[orientation](shown))), "JPEG", exif=exif, quality=98, subsampling=0
    )
    expected = center_crop_arr(Image.fromarray(shown), 32).astype(int)
    assert np.abs(decode(content, 32) - expected).mean() < 2
    other = center_crop_arr(Image.fromarray(np.ascontiguousarray(STORED[3](shown))), 32).astype(int)
    assert np.abs(decode(content, 32) - other).mean() > 20


def test_orientation_of_16_bit_grey() -> None:
    shown = (np.arange(32 * 32, dtype=np.uint16) * 64).reshape(32, 32)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    content = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(shown, 1))), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(content, 32)[..., 0], (shown >> 8).astype(np.uint8))


def test_first_page_of_several(photo: NDArray[np.uint8]) -> None:
    first, second = crop(photo, 40, 40), Image.new("RGB", (40, 40))
    content = encoded(first, "TIFF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(content, 32), center_crop_arr(first, 32))


def test_the_name_of_a_file_does_not_matter(photo: NDArray[np.uint8]) -> None:
    """Only the content is seen, so that a PNG called .jpg is what it is."""
    image = crop(photo, 40, 40)
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), 32), decode(encoded(image, "BMP"), 32))


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that says it is so large, and a little data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x00", "^not an image of a known kind$"),
        (b"<html><body>404 Not Found</body></html>", "^not an image of a known kind$"),
        (b"GET / HTTP/1.1", "^not an image of a known kind$"),
        (bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)), "^not an image of a known kind$"),
        (png_header(60, 60), "truncated"),
        (png_header(0, 5), "of a known kind"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "of a known kind"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", ":"),
        (b"II*\x00\x08\x00\x00\x00", ":"),
        (b"BM" + bytes(60), ":"),
    ],
    ids=["empty", "nul", "html", "text", "random", "short png", "no width", "jpeg", "webp", "tiff", "bmp"],
)
def test_not_an_image(content: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason) as caught:
        decode(content, 32)
    assert len(str(caught.value)) > 5
    with pytest.raises(UndecodableImage) as again:
        decode(content, 32)
    assert str(again.value) == str(caught.value), "the reason goes into a commit, which is named by its content"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_truncated(photo: NDArray[np.uint8], kind: str, part: float) -> None:
    """Half an image is not an image: no grey lower half goes into the features."""
    content = encoded(crop(photo, 120, 90), kind)
    with pytest.raises(UndecodableImage, match=r"\w"):
        decode(content[: int(len(content) * part)], 32)


def test_one_wrong_byte_in_the_data(photo: NDArray[np.uint8]) -> None:
    content = bytearray(encoded(crop(photo, 120, 90), "PNG"))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(UndecodableImage):
        decode(bytes(content), 32)


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (10_000, 10_000), (MAX_PIXELS + 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(width: int, height: int) -> None:
    with pytest.raises(UndecodableImage, match=r"pixels|large|exceed"):
        decode(png_header(width, height), 32)


@pytest.mark.parametrize(("width", "height"), [(6_000_000, 1), (1, 6_000_000)])
def test_bomb_by_upscaling(width: int, height: int) -> None:
    """A line of few pixels whose shorter side, resized to the model's, would be larger than memory."""
    content = encoded(Image.new("L", (width, height)), "PNG")
    assert len(content) < 50_000
    with pytest.raises(UndecodableImage):
        decode(content, 256)


def test_pixels_without_a_range_are_refused() -> None:
    """32-bit values have no agreed white."""
    content = encoded(Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)), "TIFF")
    with pytest.raises(UndecodableImage, match="32 bits"):
        decode(content, 32)


def test_preprocessing_is_an_identity() -> None:
    assert preprocessing(32) == preprocessing(32)
    assert preprocessing(32) != preprocessing(64)
    assert preprocessing(256)["size"] == 256
    assert preprocessing(256)["crop"] == "centre"


def test_suffixes() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"} == set(SUFFIXES)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (45, 31), (31, 45), (70, 20)])
@pytest.mark.parametrize(("name", "filter_"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)])
def test_resizing_as_torchvision_does(
    photo: NDArray[np.uint8], size: tuple[int, int], name: str, filter_: Image.Resampling
) -> None:
    """By its own arithmetic: the longer side is cut to a whole number, the place of the crop is rounded to even."""
    image = crop(photo, *size)
    short, long = sorted(size)
    longer = int(27 * long / short)
    resized = image.resize((27, longer) if size[0] < size[1] else (longer, 27), filter_)
    left, top = round((resized.width - 24) / 2.0), round((resized.height - 24) / 2.0)
    found = decode(encoded(image, "PNG"), 24, None, Resize(name, halvings=False, crop_pct=0.875))
    np.testing.assert_array_equal(found, np.asarray(resized)[top : top + 24, left : left + 24])


def test_squashed_images_lose_nothing_but_their_shape(photo: NDArray[np.uint8]) -> None:
    image = crop(photo, 70, 30)
    found = decode(encoded(image, "PNG"), 24, None, Resize(halvings=False, squash=True))
    np.testing.assert_array_equal(found, np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC)))


def test_a_training_crop_says_itself_how_large_it_is(photo: NDArray[np.uint8]) -> None:
    image = crop(photo, 64, 48)
    place = RandomCrop(30, 0.99, 0.0, False)
    found = decode(encoded(image, "PNG"), 24, place, Resize("bilinear", halvings=False, crop_pct=0.5))
    resized = image.resize((40, 30), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(resized)[6:30, 0:24])


@pytest.mark.parametrize(
    ("options", "message"), [({"interpolation": "cubic"}, "bilinear.*got 'cubic'"), ({"crop_pct": 1.5}, r"got 1\.5")]
)
def test_impossible_resizing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resize(**options)


def test_identity_of_preprocessing() -> None:
    assert preprocessing(32) == {
        "size": 32,
        "resize": "shorter side, box halvings then bicubic",
        "crop": "centre",
        "range": "[-1, 1]",
        "colour": "RGB, alpha dropped, 16-bit by its high byte",
        "orientation": "exif",
    }
    own = preprocessing(224, Resize("bilinear", halvings=False, crop_pct=0.875))
    assert own["resize"] == "shorter side to 256, bilinear"
    assert preprocessing(224, Resize(halvings=False, squash=True))["resize"] == "both sides, bicubic"
