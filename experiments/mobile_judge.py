"""How well a network reads, answers, describes and finds, on what was held out; the same for JAX and for the file."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import mobile_data as data
from experiments import mobile_scenes as scenes
from experiments import mobile_words as words
from rlx.models import multimodal

PROMPT = 10
CANDIDATES = 100


class Tests(NamedTuple):
    """What is held out: crops, scenes, and two questions about each scene."""

    crops: list[words.Crop]
    scenes: list[scenes.Scene]
    asked: list[tuple[int, scenes.Asked]]


@dataclass(frozen=True)
class Answers:
    """What a network says about batches; every array has as many rows as there are inputs.

    Attributes:
      read: pixels `[N, 32, 128, 3]` to logits `[N, 32, classes]`.
      say: pixels `[N, 64, 64, 3]`, prompts `[N, PROMPT]` and their lengths `[N]` to tokens `[N, T]` after the prompt.
      images, texts: to unit vectors `[N, E]`, from pixels, or from ids `[N, TEXT]` and lengths.
    """

    read: Callable[[np.ndarray], np.ndarray]
    say: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    images: Callable[[np.ndarray], np.ndarray]
    texts: Callable[[np.ndarray, np.ndarray], np.ndarray]


@cache
def held_out_sets(crops: int = 1000, pictures: int = 500) -> Tests:
    """The held-out sets, the same in every run on the same fonts."""
    seen = scenes.draw_scenes(data.TEST_SEED, pictures, held_out=True)
    rng = np.random.default_rng(data.TEST_SEED)
    asked = [
        (i, scenes.ask(rng, seen[i].things, kind, held_out=True))
        for i in range(pictures)
        for kind in (scenes.QUESTIONS[i % 8], scenes.QUESTIONS[(i + 4) % 8])
    ]
    return Tests(words.draw_crops(data.TEST_SEED, crops, held_out=True), seen, asked)


def judge(answers: Answers, held_out: Tests) -> dict[str, float]:
    """Accuracies in 0..1: words exact, answers exact, captions as F1 of attributes, retrieval at rank 1 of 100."""
    read = answers.read(np.stack([crop.pixels for crop in held_out.crops]))
    found = [data.read_word(row) == crop.word for row, crop in zip(read, held_out.crops, strict=True)]
    pixels = np.stack([scene.pixels for scene in held_out.scenes])

    prompts = [[data.ASK, *data.encode(one.question), data.ANSWER] for _, one in held_out.asked]
    said = answers.say(pixels[[i for i, _ in held_out.asked]], *padded(prompts, PROMPT))
    right = [data.decode(row) == one.answer for row, (_, one) in zip(said, held_out.asked, strict=True)]

    captions = answers.say(pixels, *padded([[data.CAPTION]] * len(pixels), PROMPT))
    pairs = [(data.decode(row), scenes.caption(s.things)) for row, s in zip(captions, held_out.scenes, strict=True)]

    return {
        "words": float(np.mean(found)),
        "answers": float(np.mean(right)),
        "attributes": attribute_f1(pairs),
        "retrieval": retrieval(answers, held_out, pixels),
    }


def attribute_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """F1 over (thing, colour) and (thing, size) of each object, of captions `(said, true)`."""
    hits = said_count = true_count = 0
    for said, true in pairs:
        one, two = attributes(said), attributes(true)
        hits += (one & two).total()
        said_count += one.total()
        true_count += two.total()
    return 2 * hits / max(said_count + true_count, 1)


def attributes(caption: str) -> Counter[tuple[str, str]]:
    """What a caption says of each thing: a colour and a size belong to the next thing named."""
    found: Counter[tuple[str, str]] = Counter()
    held: list[str] = []
    for word in caption.split():
        if word in scenes.THINGS:
            found.update((word, attribute) for attribute in held)
            held = []
        elif word in scenes.ATTRIBUTES:
            held.append(word)
    return found


def retrieval(answers: Answers, held_out: Tests, pixels: np.ndarray) -> float:
    """How often the caption of a scene is the nearest of 100, all different, its own among them."""
    captions = [scenes.caption(scene.things) for scene in held_out.scenes]
    unique = [i for i, text in enumerate(captions) if text not in captions[:i]]
    unique = unique[: len(unique) // CANDIDATES * CANDIDATES]
    images = answers.images(pixels[unique])
    texts = answers.texts(*padded([[data.CAPTION, *data.encode(captions[i]), data.END] for i in unique], data.TEXT))
    groups = np.arange(len(unique)).reshape(-1, CANDIDATES)
    hits = [np.argmax(images[g] @ texts[g].T, axis=1) == np.arange(CANDIDATES) for g in groups]
    return float(np.mean(hits))


def padded(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[N, width]` int32 with padding at the end, and their lengths `[N]` int32."""
    ids = np.full((len(rows), width), data.PAD, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.array([len(row) for row in rows], np.int32)


def from_jax(params: Any, config: multimodal.Config, *, batch: int = 100) -> Answers:
    """The network as JAX runs it, `batch` inputs at a time."""

    @jax.jit
    def read(params: Any, x: jax.Array) -> jax.Array:
        return multimodal.read(params, config, x)

    @jax.jit
    def say(params: Any, x: jax.Array, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        seen = multimodal.memory(params, config, multimodal.encode(params, config, x, kind="scene"))
        logits, cache = multimodal.prefill(params, config, seen, ids, lengths)

        def one(carry: Any, _: None) -> tuple[Any, jax.Array]:
            logits, cache, position = carry
            token = jnp.argmax(logits, axis=-1)
            logits, cache = multimodal.step(params, config, seen, cache, token, position)
            return (logits, cache, position + 1), token

        return jax.lax.scan(one, (logits, cache, lengths), None, length=data.TEXT - 2)[1].T

    @jax.jit
    def images(params: Any, x: jax.Array) -> jax.Array:
        return multimodal.embed_image(params, multimodal.encode(params, config, x, kind="scene"))

    @jax.jit
    def texts(params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        return multimodal.embed_text(params, config, ids, lengths)

    def over(function: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
        def run(*arrays: np.ndarray) -> np.ndarray:
            parts = [
                np.asarray(function(params, *(a[i : i + batch] for a in arrays)))
                for i in range(0, len(arrays[0]), batch)
            ]
            return np.concatenate(parts)

        return run

    return Answers(read=over(read), say=over(say), images=over(images), texts=over(texts))
