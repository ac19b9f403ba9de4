"""Small scenes over photographs: shapes and handwritten digits with a colour, a size and a place; captions, questions.

    python -m experiments.mobile_scenes PICTURE.png     # what they look like

The truth of a scene is a few numbers, from which its caption and every question and answer follow. Some pairs of a
colour and a thing are held out: no scene of the training side has one, every scene of the held-out side does, over a
photograph and in a handwriting that training does not see.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from experiments.mobile_words import draw_background, is_held_out, photos_of

SIDE = 64
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = SHAPES + DIGITS
SIZES = ("small", "large")
COUNTS = ("one", "two", "three")
RELATIONS = ("left of", "right of", "above", "below")
RADII = {"small": (6, 8), "large": (11, 14)}
QUESTIONS = ("colour", "thing", "size", "count", "exists", "relation", "beside", "digit")
ATTRIBUTES = frozenset((*COLOURS, *THINGS, *SIZES))


class Thing(NamedTuple):
    """One object: what, colour and size by name, and its middle in pixels."""

    thing: str
    colour: str
    size: str
    x: int
    y: int


class Scene(NamedTuple):
    """A picture `[64, 64, 3]` uint8 and the things in it, from left to right."""

    pixels: np.ndarray
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Asked:
    """A question, its answer in one word, and which of `QUESTIONS` it is."""

    question: str
    answer: str
    kind: str


def pair_is_held_out(colour: str, thing: str) -> bool:
    """Whether a colour and a thing are seen together on the held-out side only."""
    return is_held_out(f"{colour} {thing}")


@cache
def pairs(held_out: bool) -> tuple[tuple[str, str], ...]:
    """Colours with things of one side; shapes and digits are drawn equally often."""
    return tuple((c, t) for t in THINGS for c in COLOURS if pair_is_held_out(c, t) == held_out)


@cache
def handwriting(held_out: bool) -> dict[str, np.ndarray]:
    """scikit-learn's handwritten digits by name, `[N, 8, 8]` float32 in 0..1; one in five is held out."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    mine = (np.arange(len(found.target)) % 5 == 0) == held_out
    return {
        name: (found.images[(found.target == digit) & mine] / 16).astype(np.float32)
        for digit, name in enumerate(DIGITS)
    }


@lru_cache(maxsize=256)
def shape_mask(shape: str, radius: int) -> np.ndarray:
    """`[2 r + 1, 2 r + 1]` float32: how much of each pixel a shape covers."""
    from PIL import Image, ImageDraw

    fine = 4
    side = (2 * radius + 1) * fine
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    middle, reach = (side - 1) / 2, radius * fine

    def polygon(radii: list[float], turn: float) -> list[tuple[float, float]]:
        angles = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
        return [
            (middle + r * reach * np.sin(a), middle - r * reach * np.cos(a)) for r, a in zip(radii, angles, strict=True)
        ]

    if shape == "circle":
        draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=255)
    elif shape == "square":
        draw.rectangle((middle - 0.85 * reach,) * 2 + (middle + 0.85 * reach,) * 2, fill=255)
    elif shape == "triangle":
        draw.polygon(polygon([1.0] * 3, 0.0), fill=255)
    elif shape == "star":
        draw.polygon(polygon([1.0, 0.42] * 5, 0.0), fill=255)
    else:
        thick = 0.3 * reach
        draw.rectangle((middle - thick, middle - reach, middle + thick, middle + reach), fill=255)
        draw.rectangle((middle - reach, middle - thick, middle + reach, middle + thick), fill=255)
    return np.asarray(image.resize((2 * radius + 1,) * 2, Image.Resampling.BOX), np.float32) / 255


def digit_mask(digit: np.ndarray, radius: int) -> np.ndarray:
    """`[2 r + 1, 2 r + 1]` float32 of an `[8, 8]` digit, smoothly enlarged."""
    from PIL import Image

    side = 2 * radius + 1
    image = Image.fromarray((digit * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, np.float32) / 255 * 1.5, 0, 1)


def draw_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """One to three things that do not touch."""
    placed: list[Thing] = []
    count = int(rng.integers(1, 4))
    while len(placed) < count:
        rare = held_out and (not placed or rng.random() < 0.5)
        colour, thing = _pair(rng, rare)
        if any(colour == other.colour and thing == other.thing for other in placed):
            continue
        size = SIZES[rng.integers(2)]
        radius = int(rng.integers(RADII[size][0], RADII[size][1] + 1))
        for _ in range(20):
            x, y = (int(v) for v in rng.integers(radius + 1, SIDE - radius - 1, 2))
            if all((x - o.x) ** 2 + (y - o.y) ** 2 > (radius + RADII[o.size][1] + 2) ** 2 for o in placed):
                placed.append(Thing(thing, colour, size, x, y))
                break
        else:
            count = len(placed)
    return Scene(_picture(rng, placed, held_out), tuple(sorted(placed, key=lambda o: (o.x, o.y))))


def _pair(rng: np.random.Generator, rare: bool) -> tuple[str, str]:
    while True:
        thing = SHAPES[rng.integers(5)] if rng.random() < 0.6 else DIGITS[rng.integers(10)]
        colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
        if pair_is_held_out(colour, thing) == rare:
            return colour, thing


def _picture(rng: np.random.Generator, things: list[Thing], held_out: bool) -> np.ndarray:
    behind = draw_background(rng, photos_of(held_out), SIDE, SIDE)
    mean = behind.mean()
    picture = behind + (np.clip(mean, 100, 165) - mean)
    for thing, colour, size, x, y in things:
        radius = min(int(rng.integers(RADII[size][0], RADII[size][1] + 1)), x, y, SIDE - 1 - x, SIDE - 1 - y)
        if thing in SHAPES:
            mask = shape_mask(thing, radius)
        else:
            samples = handwriting(held_out)[thing]
            mask = digit_mask(samples[rng.integers(len(samples))], radius)
        place = np.s_[y - radius : y + radius + 1, x - radius : x + radius + 1]
        shade = np.asarray(COLOURS[colour], np.float32)
        shade = shade + rng.uniform(-12, 12, 3).astype(np.float32)
        picture[place] += mask[:, :, None] * (shade - picture[place])
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 6))
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def relation(first: Thing, second: Thing) -> str:
    """Where the first is, seen from the second, along the axis on which they are further apart."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def caption(things: tuple[Thing, ...]) -> str:
    """All things from left to right, and how the first two stand."""
    names = [f"a {o.size} {o.colour} {o.thing}" for o in things]
    text = names[0]
    if len(things) > 1:
        text += f" {relation(things[0], things[1])} {names[1]}"
    return f"{text} and {names[2]}" if len(things) > 2 else text


def ask(
    rng: np.random.Generator, things: tuple[Thing, ...], kind: str | None = None, *, held_out: bool = False
) -> Asked:
    """A question that the scene has one answer to, of a kind drawn at random or given (another where it has none).

    On the training side no question names a pair of a colour and a thing that is held out: its answer would always
    be no, and it would be learned that there is no such thing.
    """
    order = [kind] if kind else []
    order += [QUESTIONS[i] for i in rng.permutation(len(QUESTIONS))]
    for wanted in order:
        found = _ask(rng, things, wanted, held_out)
        if found is not None:
            return Asked(*found, wanted)
    raise ValueError(f"things: nothing can be asked about {things}")


def _ask(rng: np.random.Generator, things: tuple[Thing, ...], kind: str, held_out: bool) -> tuple[str, str] | None:
    one = things[rng.integers(len(things))]
    counts, colours = Counter(o.thing for o in things), Counter(o.colour for o in things)
    if kind == "colour" and counts[one.thing] == 1:
        return f"what color is the {one.thing}", one.colour
    if kind == "thing" and colours[one.colour] == 1:
        return f"what is {one.colour}", one.thing
    if kind == "size" and counts[one.thing] == 1:
        return f"what size is the {one.thing}", one.size
    if kind == "count":
        return "how many things are there", COUNTS[len(things) - 1]
    if kind == "exists":
        if rng.random() < 0.5:
            return f"is there a {one.colour} {one.thing}", "yes"
        others = [(c, one.thing) for c in COLOURS] + [(one.colour, t) for t in rng.permutation(THINGS)[: len(COLOURS)]]
        asked = [(c, str(t)) for c, t in others if held_out or not pair_is_held_out(c, str(t))]
        colour, thing = asked[rng.integers(len(asked))]
        there = any(o.colour == colour and o.thing == thing for o in things)
        return f"is there a {colour} {thing}", "yes" if there else "no"
    if kind == "digit" and sum(o.thing in DIGITS for o in things) == 1:
        return "which digit is there", next(o.thing for o in things if o.thing in DIGITS)
    if len(things) < 2:
        return None
    other = things[rng.integers(len(things))]
    if other is one or counts[one.thing] > 1 or counts[other.thing] > 1:
        return None
    if kind == "relation":
        true = relation(one, other)
        said = true if rng.random() < 0.5 else RELATIONS[rng.integers(4)]
        return f"is the {one.thing} {said} the {other.thing}", "yes" if said == true else "no"
    if kind == "beside" and len(things) == 2:
        return f"what is {relation(other, one)} the {one.thing}", other.thing
    return None


def draw_scenes(seed: int, count: int, held_out: bool) -> list[Scene]:
    """`count` scenes of one side; a seed gives the same ones."""
    rng = np.random.default_rng([seed, 2 + held_out])
    return [draw_scene(rng, held_out) for _ in range(count)]


def vocabulary() -> tuple[str, ...]:
    """Every word of captions, questions and answers, sorted."""
    grammar = "a above and are below color digit how is left many no of right size the there things what which yes"
    return tuple(sorted({*grammar.split(), *ATTRIBUTES, *COUNTS}))


def main() -> None:
    """Save a sheet of scenes: training above, held out below."""
    from PIL import Image

    rows = [np.concatenate([s.pixels for s in draw_scenes(seed, 8, seed > 1)], axis=1) for seed in range(4)]
    Image.fromarray(np.concatenate(rows)).save(sys.argv[1])


if __name__ == "__main__":
    main()
