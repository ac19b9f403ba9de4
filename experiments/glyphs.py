"""Questions about videos of bouncing glyphs, asked after the video was compressed: accuracy against bytes.

    python -m experiments.glyphs [--quick] [--only METHOD] [--json FILE] [--picture FILE]

One reader, two layers of cross-attention from the questions to what is left, is trained on all ways to compress in turn,
each under a random number of bytes, and then judged on fresh videos. Bytes are those of float32 patches, with their
masses and positions where these cannot be told from their order; whole videos are in the training too.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import glyph_world as world
from experiments.bench_attention import environment
from experiments.bench_contracts import Row, table
from rlx.compress import Memory, VideoTokens, attend, compress_video

Params = dict[str, Any]
PATCHES, PIXELS = (world.WIDTH // world.PATCH) ** 2, world.PATCH**2
FRAME_BYTES = 4 * PATCHES * PIXELS
BUDGETS = tuple(FRAME_BYTES * frames for frames in (1, 2, 4))  # of 16: 16, 8 and 4 times fewer bytes
POOLS = {1: (1, 5), 2: (2, 5), 4: (4, 5)}  # cells in time and along each side, by frames' worth of bytes
WIDEST = 4 * PATCHES  # tokens of the largest budget


@dataclass(frozen=True)
class Config:
    """The reader and its training.

    Attributes:
      videos, steps, batch, questions, rate: how many videos there are, steps of Adam, videos a step, fresh questions
        a video and step, the highest rate.
      test: videos to judge on.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    videos: int = 4096
    steps: int = 1500
    batch: int = 64
    questions: int = 16
    rate: float = 3e-3
    test: int = 1024


def kept(video: jax.Array, where: jax.Array, ids: jax.Array) -> VideoTokens:
    """Some patches of `video [T, P, D]` as they are: `ids` counts through frames, `where [T P, 3]`."""
    return VideoTokens(video.reshape(-1, PIXELS)[ids], jnp.ones(ids.shape), where[ids, 0], where[ids, 1:])


def positions() -> jax.Array:
    """`[T P, 3]`: the time and place of every patch."""
    time = jnp.repeat(jnp.arange(world.FRAMES, dtype=jnp.float32), PATCHES)
    return jnp.concatenate([time[:, None], jnp.tile(world.places(), (world.FRAMES, 1))], axis=1)


def everything(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """All patches."""
    return kept(video, positions(), jnp.arange(world.FRAMES * PATCHES))


def nothing(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """One empty place: what can be said without having seen the video."""
    return VideoTokens(*(jnp.zeros_like(x) for x in kept(video, positions(), jnp.zeros(1, jnp.int32))))


def frames(video: jax.Array, key: jax.Array, *, budget: int, newest: bool) -> VideoTokens:
    """Whole frames, at equal distances or the last ones; their order tells where a patch was."""
    count = budget // FRAME_BYTES
    at = np.arange(world.FRAMES - count, world.FRAMES) if newest else (np.arange(count) + 0.5) * world.FRAMES / count
    ids = np.floor(at).astype(np.int32)[:, None] * PATCHES + np.arange(PATCHES, dtype=np.int32)
    return kept(video, positions(), jnp.asarray(ids.reshape(-1)))


def at_random(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """Random patches, with their positions."""
    ids = jax.random.permutation(key, world.FRAMES * PATCHES)[: budget // (4 * (PIXELS + 3))]
    return kept(video, positions(), ids)


def changed(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """The patches that differ most from the one before them at the same place, with their positions."""
    before = jnp.concatenate([jnp.zeros_like(video[:1]), video[:-1]])
    differ = jnp.sum(jnp.square(video - before), axis=-1).reshape(-1)
    return kept(video, positions(), jax.lax.top_k(differ, budget // (4 * (PIXELS + 3)))[1])


def pooled(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """Means over blocks of time and place, whose order tells where they were."""
    time, side = POOLS[budget // FRAME_BYTES]
    full = int(PATCHES**0.5)

    def mean(x: jax.Array) -> jax.Array:
        x = x.reshape(time, world.FRAMES // time, side, full // side, side, full // side, -1)
        return jnp.mean(x, axis=(1, 3, 5)).reshape(time * side * side, -1)

    where = mean(positions())
    mass = jnp.full(len(where), world.FRAMES * PATCHES / len(where))
    return VideoTokens(mean(video), mass, where[:, 0], where[:, 1:])


def merged(video: jax.Array, key: jax.Array, *, budget: int, levels: int) -> VideoTokens:
    """`compress_video`, whose tokens have masses and positions."""
    return compress_video(video, world.places(), size=budget // (4 * (PIXELS + 4)), levels=levels)


Method = Callable[..., VideoTokens]
METHODS: dict[str, Method] = {
    "one pool": partial(merged, levels=1),
    "tree": partial(merged, levels=3),
    "changed patches": changed,
    "mean pooling": pooled,
    "frame dropping": partial(frames, newest=False),
    "newest frames": partial(frames, newest=True),
    "random patches": at_random,
}


def init(key: jax.Array, config: Config) -> Params:
    """Parameters, layers on axis 0."""
    L, D = config.layers, config.width
    k = iter(jax.random.split(key, 16))

    def draw(*shape: int, fan: int) -> jax.Array:
        return jax.random.normal(next(k), shape, jnp.float32) * fan**-0.5

    return {
        "patch": draw(PIXELS, D, fan=2),
        "mass": draw(D, fan=64),
        "time": draw(16, D, fan=16),
        "place": draw(16, D, fan=16),
        "token": draw(D, D, fan=D),
        "kind": draw(len(world.KINDS), D, fan=4),
        "glyph": draw(world.GLYPHS + 1, D, fan=4),
        "other": draw(world.GLYPHS + 1, D, fan=4),
        "layers": {
            "q": draw(L, D, D, fan=D),
            "kv": draw(L, 2, D, D, fan=D),
            "out": draw(L, D, D, fan=D),
            "up": draw(L, D, 4 * D, fan=D),
            "down": draw(L, 4 * D, D, fan=4 * D),
        },
        "head": draw(D, world.ANSWERS, fan=D),
    }


def norm(x: jax.Array) -> jax.Array:
    """`x / rms(x)`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def waves(x: jax.Array, span: float, count: int) -> jax.Array:
    """`[...] -> [..., 2 count]`: sines and cosines of periods from four spans down."""
    angle = x[..., None] * (2 * np.pi / (4 * span) * 2.0 ** jnp.arange(count, dtype=jnp.float32))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def answer(params: Params, config: Config, seen: VideoTokens, asked: world.Questions) -> jax.Array:
    """`[B, Q, ANSWERS]` logits from tokens `[B, M, ...]` and questions `[B, Q]`."""
    place = waves(seen.place, PATCHES**0.5, 4).reshape(*seen.mass.shape, 16)
    x = seen.tokens @ params["patch"] + jnp.log1p(seen.mass)[..., None] * params["mass"]
    x = x + waves(seen.time, world.FRAMES, 8) @ params["time"] + place @ params["place"]
    x = norm(jax.nn.gelu(norm(x)) @ params["token"] + x)
    log_mass = jnp.where(seen.mass > 0, jnp.log(jnp.maximum(seen.mass, 1e-9)), -jnp.inf)
    log_mass = jnp.broadcast_to(log_mass[..., None], (*log_mass.shape, config.heads))
    y = params["kind"][asked.kind] + params["glyph"][asked.glyph] + params["other"][asked.other]
    y = y + waves(asked.time.astype(jnp.float32), world.FRAMES, 8) @ params["time"]

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], config.heads, -1)

    def layer(y: jax.Array, p: Params) -> tuple[jax.Array, None]:
        memory = Memory(keys=split(x @ p["kv"][0]), values=split(x @ p["kv"][1]), log_mass=log_mass)
        read = attend(split(norm(y) @ p["q"]), memory, chunk=1024)
        y = y + read.reshape(y.shape) @ p["out"]
        return y + jax.nn.gelu(norm(y) @ p["up"]) @ p["down"], None

    return norm(jax.lax.scan(layer, y, params["layers"])[0]) @ params["head"]


def compressed(method: Method, budget: int, key: jax.Array, count: int) -> VideoTokens:
    """`count` videos, the same for every method, compressed and filled up with empty places, on the host."""

    @jax.jit
    def some(keys: jax.Array) -> VideoTokens:
        videos = jax.vmap(world.draw)(keys)
        seen = jax.vmap(partial(method, budget=budget))(world.patches(videos.frames), keys)
        room = max(WIDEST - seen.mass.shape[1], 0)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 2))), seen)

    keys = jax.random.split(key, (count // 64, 64))
    return jax.tree.map(lambda *x: np.concatenate(x), *(jax.device_get(some(one)) for one in keys))


def truth(key: jax.Array, count: int) -> world.Video:
    """The same videos' truth, without their frames."""
    some = jax.jit(jax.vmap(lambda key: world.draw(key)._replace(frames=jnp.zeros(()))))
    return some(jax.random.split(key, (count // 64, 64)).reshape(-1))


def train(config: Config, key: jax.Array) -> tuple[Params, float]:
    """Trained parameters and the seconds it took, compression included."""
    start = time.perf_counter()
    there = truth(key, config.videos)
    seen = [compressed(method, b, key, config.videos) for method in METHODS.values() for b in BUDGETS]
    few = min(config.videos, 512)  # whole videos are large
    seen.append(compressed(everything, BUDGETS[0], key, few))
    print(f"  compressed: {time.perf_counter() - start:.0f} s", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.rate, config.steps // 10, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss(params: Params, seen: VideoTokens, asked: world.Questions) -> jax.Array:
        logp = jax.nn.log_softmax(answer(params, config, seen, asked))
        return -jnp.mean(jnp.take_along_axis(logp, asked.answer[..., None], axis=-1))

    @jax.jit
    def step(params: Params, state: Any, key: jax.Array, seen: VideoTokens, there: world.Video) -> Any:
        asked = jax.vmap(partial(world.ask, count=config.questions))(jax.random.split(key, config.batch), there)
        value, gradient = jax.value_and_grad(loss)(params, seen, asked)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

    params = init(jax.random.fold_in(key, 1), config)
    state, rng, total = optimizer.init(params), np.random.default_rng(0), 0.0
    for i in range(config.steps):
        chosen = seen[rng.integers(len(seen))]
        ids = rng.integers(len(chosen.mass), size=config.batch)
        picked = jax.tree.map(lambda x, ids=ids: x[ids], (chosen, there))
        params, state, value = step(params, state, jax.random.fold_in(key, i), *picked)
        total += float(value)
        if i % 100 == 99:
            print(f"  step {i + 1}: loss {total / 100:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
    return params, time.perf_counter() - start


def judge(params: Params, config: Config, method: Method, budget: int) -> dict[str, float]:
    """Accuracy over fresh videos, of all questions and by kind."""
    key = jax.random.key(99)
    seen, there = compressed(method, budget, key, config.test), truth(key, config.test)

    @jax.jit
    def right(key: jax.Array, seen: VideoTokens, there: world.Video) -> Any:
        asked = jax.vmap(partial(world.ask, count=config.questions))(jax.random.split(key, 64), there)
        hit = jnp.argmax(answer(params, config, seen, asked), axis=-1) == asked.answer
        kind = asked.kind[..., None] == jnp.arange(len(world.KINDS))
        return jnp.sum(hit[..., None] & kind, axis=(0, 1)), jnp.sum(kind, axis=(0, 1))

    found = []
    for i in range(0, config.test, 64):
        some = jax.tree.map(lambda x, i=i: x[i : i + 64], (seen, there))
        found.append(jax.device_get(right(jax.random.fold_in(key, i), *some)))
    hits, counts = (np.sum([x[i] for x in found], axis=0) for i in range(2))
    by_kind = dict(zip(world.KINDS, (hits / counts).tolist(), strict=True))
    return {"all": float(hits.sum() / counts.sum()), **by_kind}
