"""Words as pictures: English words in the fonts of a system, over real photographs, held out by font, photo and word.

    python -m experiments.mobile_words PICTURE.png     # what they look like

A crop is 32 x 128 pixels and is drawn at that size: nothing is scaled down, so that a reader made for scans sees
letters as a rasteriser makes them. Fonts that share a design count as one; what a crop of a held-out split shows is
new in three ways at once: its font, its photograph and its word.
"""

import hashlib
import re
import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HEIGHT, WIDTH = 32, 128
LONGEST = 11
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SHARE_HELD_OUT = 0.2
PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
    "china.jpg",
    "flower.jpg",
)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# Families that draw no plain Latin letters, or small capitals in the place of small letters.
_ODD = re.compile(
    r"Math|Symbol|Keyboard|Caps|Abecedario|PHON|Alfa-beta|Ellhnikh|D050000L|BABEL|Nushu|Titling|Initials|Outline|"
    r"Emoji|Dingbat|Elegante|Wargames|Junkyard|El Abogado|Penguin|STIXSize|STIXNonUni|^cm[a-z]+10",
)
# One design under several names: clones with the same outlines, or the same drawing in another width.
_SAME = {
    "Arimo": "Liberation",
    "Tinos": "Liberation",
    "Cousine": "Liberation",
    "Aerial": "Liberation",
    "Tymes": "Liberation",
    "Carlito": "Lato",
    "FreeSans": "Nimbus",
    "FreeSerif": "Nimbus",
    "FreeMono": "Nimbus",
    "Hack": "DejaVu",
    "Verana": "Veranda",
    "BetecknaGS": "Beteckna",
    "CMU": "Latin",
    "Open": "Noto",
    "GentiumAlt": "Gentium",
    "Charis": "Gentium",
    "Doulos": "Gentium",
}


def is_held_out(name: str, share: float = SHARE_HELD_OUT) -> bool:
    """Whether a name falls in the held-out part: by its SHA-256, so that a new name moves no other."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share * 16**8


@cache
def fonts() -> dict[str, tuple[str, ...]]:
    """The font files of this system (and of matplotlib) that draw all letters, by design, sorted.

    Raises:
      FileNotFoundError: there are fewer than 20 designs; says what to install.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    found: dict[str, set[str]] = {}
    for path in font_manager.findSystemFonts() + font_manager.findSystemFonts(str(_matplotlib_fonts())):
        font = FT2Font(path)
        if _ODD.search(font.family_name) or not all(font.get_char_index(ord(c)) for c in LETTERS) or _capitals(path):
            continue
        first = re.split(r"[ _-]", font.family_name)[0]
        found.setdefault(_SAME.get(first, first), set()).add(path)
    if len(found) < 20:
        raise FileNotFoundError(
            f"fonts: {len(found)} designs are too few to hold some out; on Debian: apt-get install $(cat "
            "experiments/mobile_fonts.txt)"
        )
    return {design: tuple(sorted(found[design])) for design in sorted(found)}


def _capitals(path: str) -> bool:
    """Whether small letters are drawn as capitals: those of "xp" end where those of "x" do."""
    font = _font(path, 24)
    return bool(font.getbbox("xp")[3] <= font.getbbox("x")[3] + 1)


def _matplotlib_fonts() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def photos() -> dict[str, np.ndarray]:
    """Photographs that come inside scikit-image and scikit-learn: `[H, W, 3]` uint8 by name."""
    import skimage
    import sklearn.datasets
    from PIL import Image

    folders = Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"
    found = {}
    for name in PHOTOS:
        (path,) = (folder / name for folder in folders if (folder / name).is_file())
        found[name] = np.asarray(Image.open(path).convert("RGB"))
    return found


@cache
def words() -> tuple[str, ...]:
    """The words of the topics of Python's `help()`, 2 to 11 small letters, sorted."""
    from experiments.topics import source

    text = " ".join(source().values())
    return tuple(sorted(set(re.findall(rf"(?<![A-Za-z_])[a-z]{{2,{LONGEST}}}(?![A-Za-z_])", text))))


@cache
def fonts_of(held_out: bool) -> tuple[tuple[str, ...], ...]:
    """The designs of one side, each with its files."""
    return tuple(files for design, files in fonts().items() if is_held_out(design) == held_out)


@cache
def photos_of(held_out: bool) -> tuple[np.ndarray, ...]:
    """The photographs of one side."""
    return tuple(image for name, image in photos().items() if is_held_out(name) == held_out)


@cache
def words_of(held_out: bool) -> tuple[str, ...]:
    """The words of one side; one in ten is held out."""
    return tuple(word for word in words() if is_held_out(word, 0.1) == held_out)


def draw_word(rng: np.random.Generator, held_out: bool) -> str:
    """A word as texts have them: small letters mostly, some with a capital, some in capitals, some numbers.

    In training three of ten are strings of random letters, so that a reader reads and does not guess.
    """
    kind = rng.random()
    if kind < 0.05:
        return "".join(rng.choice(list("0123456789"), size=rng.integers(2, 6)))
    if not held_out and rng.random() < 0.3:
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(2, LONGEST + 1)))
    else:
        known = words_of(held_out)
        word = known[rng.integers(len(known))]
    if kind < 0.20:
        return word.capitalize()
    return word.upper() if kind < 0.25 else word


@lru_cache(maxsize=4096)
def _font(path: str, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def draw_mask(rng: np.random.Generator, word: str, files: tuple[tuple[str, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """`[32, 128]` uint8: how much of each pixel is ink; the font and its size are drawn, the place too.

    And `[letters]` float32: where the middle of each letter is, in pixels from the left.
    """
    design = files[rng.integers(len(files))]
    path = design[rng.integers(len(design))]
    size = int(rng.integers(18, 27))
    while True:
        font = _font(path, size)
        ink, (bearing, _) = font.getmask2(word, mode="L")
        width, height = ink.size
        if width <= WIDTH - 8 and height <= HEIGHT - 4:
            break
        size -= 1
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    top, left = rng.integers(2, HEIGHT - 1 - height), rng.integers(4, WIDTH - 3 - width)
    mask[top : top + height, left : left + width] = np.asarray(ink, np.uint8).reshape(height, width)
    ends = np.array([font.getlength(word[:i]) for i in range(len(word) + 1)], np.float32)
    return mask, left - bearing + (ends[:-1] + ends[1:]) / 2


def draw_background(rng: np.random.Generator, images: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    """`[height, width, 3]` float32 in 0..255: a piece of a photograph, at one of three scales, paler or not."""
    image = images[rng.integers(len(images))]
    step = int(rng.integers(1, 4))
    step = min(step, image.shape[0] // height, image.shape[1] // width)
    top = rng.integers(image.shape[0] - height * step + 1)
    left = rng.integers(image.shape[1] - width * step + 1)
    piece = image[top : top + height * step : step, left : left + width * step : step].astype(np.float32)
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    mean = piece.mean(axis=(0, 1))
    return mean + (piece - mean) * np.float32(rng.uniform(0.05, 0.4))


def _colour(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A colour whose luminance is at least 100 of 255 away from the mean of what is behind it."""
    against = float(behind.mean(axis=(0, 1)) @ _LUMA)
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if abs(float(colour @ _LUMA) - against) >= 100:
            return colour


class Crop(NamedTuple):
    """A picture of a word.

    Attributes:
      pixels: `[32, 128, 3]` uint8.
      word: what it says.
      middles: `[letters]` float32, where each letter is, in pixels from the left.
    """

    pixels: np.ndarray
    word: str
    middles: np.ndarray


def draw_crop(rng: np.random.Generator, held_out: bool) -> Crop:
    """One crop of the training side or of the held-out side."""
    word = draw_word(rng, held_out)
    mask, middles = draw_mask(rng, word, fonts_of(held_out))
    alpha = mask.astype(np.float32)[:, :, None] / 255
    behind = draw_background(rng, photos_of(held_out), HEIGHT, WIDTH)
    picture = behind + alpha * (_colour(rng, behind) - behind)
    if rng.random() < 0.3:
        picture = _softened(picture, np.float32(rng.uniform(0.05, 0.4)))
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 6))
    return Crop(np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8), word, middles)


def _softened(x: np.ndarray, weight: np.float32) -> np.ndarray:
    """A little out of focus: each pixel takes this share from its neighbours, along both axes."""
    for axis in (0, 1):
        x = (1 - weight) * x + weight / 2 * (np.roll(x, 1, axis) + np.roll(x, -1, axis))
    return x


def draw_crops(seed: int, count: int, held_out: bool) -> list[Crop]:
    """`count` crops; a seed gives the same ones wherever the same fonts are."""
    rng = np.random.default_rng([seed, held_out])
    return [draw_crop(rng, held_out) for _ in range(count)]


def main() -> None:
    """Save a sheet of crops: training on the left, held out on the right."""
    from PIL import Image

    columns = [np.concatenate([c.pixels for c in draw_crops(seed, 24, seed > 1)]) for seed in range(4)]
    Image.fromarray(np.concatenate(columns, axis=1)).save(sys.argv[1])


if __name__ == "__main__":
    main()
