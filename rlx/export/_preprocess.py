"""Images of strangers to pixels of one size, or a clear refusal."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from rlx._checks import check_choice, check_whole

Fit = Literal["stretch", "pad", "crop"]

_KNOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_LONGEST = 16_384
# What Pillow's readers raise on content that is not what its header says (UnidentifiedImageError is an OSError).
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError),
    *(struct.error, zlib.error),
)


def preprocess(
    data: bytes | str | Path | np.ndarray,
    *,
    size: tuple[int, int],
    max_bytes: int = 32 * 2**20,
    max_pixels: int = 50_000_000,
    formats: Sequence[str] = ("JPEG", "PNG", "WEBP"),
    fit: Fit = "stretch",
    background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """Decode an image within limits, turn it upright, and bring it to one size.

    The size of the file, its format and its dimensions (from the header) are checked before a
    pixel is decoded. Palettes, grey, 16 bits and CMYK become RGB (CMYK without its colour profile;
    no profile is applied), alpha is laid over `background`, EXIF orientation is applied (damaged
    EXIF data count as none), and of an animation the first frame is taken. The normalisation
    belongs into the exported function: it takes the uint8 array.

    Args:
      data: the content of a file, its path, or an array: `[h, w]` or `[h, w, 1, 3 or 4]`, uint8, or
        floating in [0, 1].
      size: `(H, W)` of the result.
      max_bytes: of the file.
      max_pixels: width times height by the header.
      formats: what may be decoded, of JPEG, PNG, WEBP, GIF and BMP.
      fit: "stretch" changes the aspect ratio; "pad" keeps all of the image, in the middle of `background`; "crop"
        fills the size and cuts off what is over. Bilinear, with the average of the pixels that become one.
      background: RGB, under what is transparent and beside what is padded.

    Returns:
      `[H, W, 3]` uint8.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: Pillow is missing; says which extra has it.
      TypeError: `data` is none of these, or an array of another dtype; an image of Pillow or an array of jax is
        given as `np.asarray(it)`.
      ValueError: too large, of another format, damaged, truncated, empty; an array with NaN, infinity, numbers
        outside [0, 1] or of another shape; or a policy that there is not.

    Example:
      >>> import numpy as np
      >>> from rlx import export
      >>> grey = np.linspace(0, 1, 12).reshape(3, 4)
      >>> export.preprocess(grey, size=(6, 8)).shape
      (6, 8, 3)
      >>> export.preprocess(b"GIF89a", size=(6, 8))
      Traceback (most recent call last):
      ValueError: data: not an image in JPEG, PNG, WEBP that can be read
    """
    check_choice("fit", fit, ("stretch", "pad", "crop"))
    check_whole("max_bytes", max_bytes, 1)
    check_whole("max_pixels", max_pixels, 1)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size: expected (H, W), got {size}")
    for side in size:
        check_whole("size", side, 1, _LONGEST)
    if len(background) != 3:
        raise ValueError(f"background: expected (R, G, B), got {background}")
    for level in background:
        check_whole("background", level, 0, 255)
    if isinstance(formats, str) or not formats:
        raise ValueError(f"formats: expected some of {', '.join(_KNOWN)}, got {formats!r}")
    for name in formats:
        check_choice("formats", name, _KNOWN)
    pil = _pillow()
    if isinstance(data, np.ndarray):
        image = pil.fromarray(_levels(data, max_pixels))
    else:
        image = _decoded(pil, _content(data, max_bytes), max_pixels, formats)
    return np.array(_fitted(pil, _rgb(pil, image, background), (size[1], size[0]), fit, background))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("decoding images needs Pillow: pip install 'rlx[image]'") from error
    return Image


def _content(data: Any, max_bytes: int) -> bytes:
    if isinstance(data, (bytes, bytearray, memoryview)):
        content = bytes(data[: max_bytes + 1])
    elif isinstance(data, (str, Path)):
        path = Path(data)
        if not path.exists():
            raise FileNotFoundError(f"data: there is no file {path}")
        if not path.is_file():
            raise ValueError(f"data: {path} is not a regular file")
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    else:
        raise TypeError(
            f"data: expected bytes, a path or an array of NumPy, got {type(data).__name__}; of an image of Pillow or "
            "an array of jax, give np.asarray(it)"
        )
    if not content:
        raise ValueError("data: empty")
    if len(content) > max_bytes:
        raise ValueError(f"data: more than max_bytes={max_bytes} bytes")
    return content


def _levels(array: np.ndarray, max_pixels: int) -> np.ndarray:
    """An array as uint8 `[h, w]` or `[h, w, 3 or 4]`."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"data: expected [h, w] or [h, w, 1, 3 or 4], got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"data: empty, shape {array.shape}")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ValueError(f"data: {array.shape[1]} x {array.shape[0]} is more than max_pixels={max_pixels}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"data: expected uint8, or floating in [0, 1], got {array.dtype}")
    bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"data: {bad} of {array.size} numbers are NaN or infinite")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"data: numbers from {array.min():.4g} to {array.max():.4g}, outside [0, 1]")
    return np.round(array.astype(np.float64) * 255).astype(np.uint8)


def _decoded(pil: ModuleType, content: bytes, max_pixels: int, formats: Sequence[str]) -> Any:
    """The first frame, upright, all of its pixels read."""
    from PIL import ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large dimensions, which are checked here, and of damaged EXIF data
        try:
            image = pil.open(io.BytesIO(content), formats=tuple(formats))
        except pil.DecompressionBombError as error:
            raise ValueError(f"data: more than max_pixels={max_pixels}: {error}") from error
        except _DAMAGE as error:
            raise ValueError(f"data: not an image in {', '.join(formats)} that can be read") from error
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"data: {width} x {height} is more than max_pixels={max_pixels}")
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except (pil.DecompressionBombError, *_DAMAGE) as error:
            raise ValueError(f"data: the {image.format} image is damaged or truncated: {error}") from error


def _rgb(pil: ModuleType, image: Any, background: tuple[int, int, int]) -> Any:
    """Any mode as RGB, over the background."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
        deep = np.clip(np.asarray(image), 0, 65535).astype(np.int64)
        levels = pil.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
        if not isinstance(transparent, int):
            return levels.convert("RGB")
        image = levels.convert("RGBA")
        image.putalpha(pil.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = pil.new("RGBA", image.size, (*background, 255))
        return pil.alpha_composite(over, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _fitted(pil: ModuleType, image: Any, target: tuple[int, int], fit: Fit, background: tuple[int, int, int]) -> Any:
    """Brought to `target`, width first."""
    method = pil.Resampling.BILINEAR
    if fit == "stretch":
        return image.resize(target, method)
    ratios = [side / now for side, now in zip(target, image.size, strict=True)]
    if fit == "pad":
        inner = [max(1, round(now * min(ratios))) for now in image.size]
        over = pil.new("RGB", target, background)
        corner = [(side - own) // 2 for side, own in zip(target, inner, strict=True)]
        over.paste(image.resize(inner, method), tuple(corner))
        return over
    seen = [side / max(ratios) for side in target]
    left, top = ((now - own) / 2 for now, own in zip(image.size, seen, strict=True))
    box = (max(left, 0.0), max(top, 0.0), min(left + seen[0], image.size[0]), min(top + seen[1], image.size[1]))
    return image.resize(target, method, box=box)
