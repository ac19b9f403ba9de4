"""Images of strangers: what is well formed is decoded as it should be, everything else is refused by name."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlx import export

WHITE, BLACK, RED, GREEN, BLUE = (255,) * 3, (0,) * 3, (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def colours(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def same(data: Any, **options: Any) -> np.ndarray:
    """At its own size, so that nothing is interpolated."""
    size = options.pop("size", (6, 8))
    return export.preprocess(data, size=size, **options)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of nothing but the chunks given."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        parts.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(parts)


# What is well formed


@pytest.mark.parametrize("as_", [bytes, bytearray, memoryview])
def test_pixels_come_back(as_: Any, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(colours()))
    found = same(as_(content))
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert np.array_equal(found, colours())
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert np.array_equal(same(path), colours())
    assert np.array_equal(same(str(path)), colours())
    assert np.array_equal(same(encoded(Image.fromarray(colours()), "WEBP", lossless=True)), colours())
    assert np.array_equal(same(colours()), colours())
    assert np.array_equal(same(colours() / np.float32(255)), colours())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    """Against the rotations and reflections that the EXIF standard's table says, written out."""
    upright = colours()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(same(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)), upright)


def test_modes_become_rgb() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    three = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(same(encoded(Image.fromarray(grey))), three)
    assert np.array_equal(same(grey), three)
    assert np.array_equal(same(grey[:, :, None]), three)
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(same(encoded(Image.fromarray(deep))), three)
    bits = encoded(Image.fromarray(grey > 100))
    assert np.array_equal(same(bits), np.where(three > 100, 255, 0))
    palette = Image.fromarray(grey).convert("P")
    palette.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    expected = np.stack([grey, 255 - grey, np.full_like(grey, 7)], axis=2)
    assert np.array_equal(same(encoded(palette)), expected)


def test_cmyk_is_not_inverted() -> None:
    for ink, expected in (((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), BLACK)):
        content = encoded(Image.new("CMYK", (8, 6), ink), "JPEG", quality=100)
        assert np.abs(same(content).astype(int) - expected).max() <= 2


def test_what_is_transparent_shows_the_background() -> None:
    half = Image.new("RGBA", (8, 6), (255, 0, 0, 128))
    half.putpixel((0, 0), (1, 2, 3, 0))
    found = same(encoded(half), background=BLUE)
    assert found[0, 0].tolist() == [0, 0, 255]
    assert np.abs(found[1, 1].astype(int) - (128, 0, 127)).max() <= 1
    assert same(encoded(half))[0, 0].tolist() == [255, 255, 255]
    grey = Image.new("LA", (8, 6), (10, 0))
    assert (same(encoded(grey), background=GREEN) == GREEN).all()
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([*RED, *GREEN, *BLUE])
    assert (same(encoded(palette, transparency=1), background=BLACK) == BLACK).all()
    assert (same(encoded(palette, transparency=0), background=BLACK) == GREEN).all()
    key = Image.new("RGB", (8, 6), RED)
    assert (same(encoded(key, transparency=RED), background=BLUE) == BLUE).all()
    deep = Image.fromarray(np.full((6, 8), 300, np.uint16))
    assert (same(encoded(deep, transparency=300), background=BLUE) == BLUE).all()
    assert (same(encoded(deep, transparency=301), background=BLUE) == 1).all()
    array = np.zeros((6, 8, 4))
    assert (same(array, background=GREEN) == GREEN).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (8, 6), RED), Image.new("RGB", (8, 6), BLUE)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], duration=50, **options)
    assert (same(content, formats=("PNG", "WEBP", "GIF")) == RED).all()


def test_ways_to_fit() -> None:
    """Left half red, right half blue, 8 by 4."""
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :4], picture[:, 4:] = RED, BLUE
    content = encoded(Image.fromarray(picture))
    stretched = export.preprocess(content, size=(8, 8))
    assert (stretched[:, 0] == RED).all()
    assert (stretched[:, -1] == BLUE).all()
    padded = export.preprocess(content, size=(8, 8), fit="pad", background=GREEN)
    assert (padded[:2] == GREEN).all()
    assert (padded[6:] == GREEN).all()
    assert np.array_equal(padded[2:6], picture)
    cropped = export.preprocess(content, size=(8, 8), fit="crop")
    assert (cropped[:, 0] == RED).all()
    assert (cropped[:, -1] == BLUE).all()
    assert np.array_equal(export.preprocess(content, size=(4, 4), fit="crop"), picture[:, 2:6])
    for shape in ((1, 4000), (4000, 1)):
        thin = np.zeros((*shape, 3), np.uint8)
        assert (export.preprocess(thin, size=(5, 7), fit="pad").shape) == (5, 7, 3)
        assert not export.preprocess(thin, size=(5, 7), fit="crop").any()
    checks = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    small = export.preprocess(checks.astype(np.uint8), size=(8, 8))
    assert np.abs(small.astype(int) - 128).max() <= 2  # an average, not every eighth pixel


# Hostile input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "data: empty"),
        (b"GIF89a", "not an image in JPEG, PNG, WEBP"),
        (b"\x00" * 1000, "not an image in"),
        (b"\xff\xd8\xff" + b"\x00" * 100, "(not an image|damaged)"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "(not an image|damaged)"),
        (b"\x89PNG\r\n\x1a\n", "(not an image|damaged)"),
        (encoded(Image.new("RGB", (8, 6)), "GIF"), "not an image in JPEG, PNG, WEBP"),
        (encoded(Image.new("RGB", (8, 6)), "BMP"), "not an image in"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        same(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    content = encoded(Image.fromarray(colours(64, 64)), kind)
    with pytest.raises(ValueError, match=r"(damaged or truncated|not an image)"):
        same(content[: int(share * len(content))])


def test_a_changed_byte_is_an_error_or_another_picture_but_nothing_else() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP"):
        content = encoded(Image.fromarray(colours(16, 16)), kind)
        for _ in range(150):
            broken = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                broken[place] = rng.integers(0, 256)
            try:
                assert same(bytes(broken)).shape == (6, 8, 3)
            except ValueError as error:
                assert str(error).startswith("data: ")  # noqa: PT017
                refused += 1
    assert refused > 100


def test_a_bomb_is_refused_by_its_header() -> None:
    """30,000 by 30,000 pixels in 60 bytes; as many zeros as they ask for would be 2.7 GB."""
    zeros = zlib.compress(bytes(90_001))
    with pytest.raises(ValueError, match=r"max_pixels=50000000"):
        same(png(30_000, 30_000, (b"IDAT", zeros)))
    with pytest.raises(ValueError, match=r"9000 x 8000 is more than max_pixels=50000000"):
        same(png(9000, 8000, (b"IDAT", zeros)))
    with pytest.raises(ValueError, match=r"8 x 6 is more than max_pixels=47"):
        same(encoded(Image.fromarray(colours())), max_pixels=47)
    with pytest.raises(ValueError, match=r"8 x 6 is more than max_pixels=47"):
        same(colours(), max_pixels=47)
    assert same(encoded(Image.fromarray(colours())), max_pixels=48).shape == (6, 8, 3)


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000))
    assert len(text) < 200_000
    pixels = zlib.compress((b"\0" + bytes(24)) * 6)
    with pytest.raises(ValueError, match="data: "):
        same(png(8, 6, (b"zTXt", text), (b"IDAT", pixels)))


def test_a_size_of_zero_and_missing_pixels_are_refused() -> None:
    for content in (png(0, 6), png(8, 6), png(8, 6, (b"IDAT", b"nothing")), png(8, 6, (b"IDAT", zlib.compress(b"")))):
        with pytest.raises(ValueError, match="data: "):
            same(content)


def test_a_file_larger_than_allowed_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(2**40)  # a terabyte of nothing
    with pytest.raises(ValueError, match="more than max_bytes=1000 bytes"):
        same(path, max_bytes=1000)
    with pytest.raises(ValueError, match="more than max_bytes=10 bytes"):
        same(encoded(Image.fromarray(colours())), max_bytes=10)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data: there is no file .*gone\.png"):
        same(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="not a regular file"):
        same(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        same(tmp_path / "pipe")
    with pytest.raises(TypeError, match="data: expected bytes, a path or an array of NumPy, got list"):
        same([1, 2])


def test_damaged_orientation_counts_as_none() -> None:
    content = encoded(Image.fromarray(colours()), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(same(content), colours())


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.full((6, 8, 3), np.nan), ValueError, "144 of 144 numbers are NaN or infinite"),
        (np.where(np.arange(48).reshape(6, 8) == 7, np.inf, 0.5), ValueError, "1 of 48 numbers are NaN"),
        (np.zeros((0, 8, 3)), ValueError, r"data: empty, shape \(0, 8, 3\)"),
        (np.full((6, 8, 3), 1.5), ValueError, r"from 1.5 to 1.5, outside \[0, 1\]"),
        (np.full((6, 8, 3), -0.1), ValueError, r"outside \[0, 1\]"),
        (np.full((6, 8, 3), 255.0, np.float16), ValueError, r"outside \[0, 1\]"),
        (np.zeros((6, 8, 2)), ValueError, r"expected \[h, w\]"),
        (np.zeros((1, 6, 8, 3)), ValueError, r"expected \[h, w\]"),
        (np.zeros(()), ValueError, r"expected \[h, w\]"),
        (np.zeros((6, 8, 3), np.int32), TypeError, "expected uint8, or floating"),
        (np.zeros((6, 8, 3), np.complex64), TypeError, "expected uint8, or floating"),
        (np.zeros((6, 8), object), TypeError, "expected uint8, or floating"),
    ],
)
def test_arrays_that_are_no_image_are_refused(array: np.ndarray, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        same(array)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": (0, 8)}, ValueError, "size"),
        ({"size": (6, 8.0)}, TypeError, "size"),
        ({"size": (6, 8, 3)}, ValueError, "size: expected"),
        ({"size": 8}, ValueError, r"size: expected \(H, W\), got 8"),
        ({"size": (6, 100_000)}, ValueError, "size"),
        ({"fit": "squeeze"}, ValueError, "fit"),
        ({"formats": ("JPEG", "EPS")}, ValueError, "formats: 'EPS'"),
        ({"formats": "PNG"}, ValueError, "formats: expected some"),
        ({"formats": ()}, ValueError, "formats: expected some"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
        ({"max_pixels": 1e6}, TypeError, "max_pixels"),
        ({"background": (0, 0, 256)}, ValueError, "background"),
        ({"background": (0, 0)}, ValueError, "background: expected"),
    ],
)
def test_policies_are_checked(options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        same(colours(), **options)
