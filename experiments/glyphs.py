"""Questions about videos of bouncing glyphs, asked after the video was compressed: accuracy against bytes.

    python -m experiments.glyphs [--steps N] [--videos N] [--json FILE] [--picture FILE]

One reader, two layers of cross-attention from the questions to what is left, is trained on all ways to compress in
turn, each under a random number of bytes, and then judged on fresh videos. Bytes are those of float32 patches, with
their masses and positions where these cannot be told from their order; whole videos are in the training too.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import glyph_world as world
from experiments.bench_attention import environment
from experiments.bench_contracts import Row, table
from experiments.glyph_ways import BUDGETS, FRAME_BYTES, METHODS, PATCHES, PIXELS, WIDEST, Method, everything, nothing
from rlx.compress import Memory, VideoTokens, attend

Params = dict[str, Any]


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
    videos: int = 2048
    steps: int = 1200
    batch: int = 64
    questions: int = 16
    rate: float = 3e-3
    test: int = 1024


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
    angle = jnp.multiply.outer(x, jnp.asarray(2 * np.pi / (4 * span) * 2.0 ** np.arange(count), jnp.float32))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def answer(params: Params, config: Config, seen: VideoTokens, asked: world.Questions) -> jax.Array:
    """`[B, Q, ANSWERS]` logits from tokens `[B, M, ...]` and questions `[B, Q]`."""
    place = waves(seen.place, PATCHES**0.5, 4).reshape(*seen.mass.shape, 16)
    x = seen.tokens @ params["patch"] + jnp.multiply.outer(jnp.log1p(seen.mass), params["mass"])
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


def drawn(key: jax.Array, count: int) -> tuple[jax.Array, world.Video]:
    """`count` videos as patches `[N, T, P, D]`, and the truth about them, on the host."""

    @jax.jit
    def some(keys: jax.Array) -> tuple[jax.Array, world.Video]:
        videos = jax.vmap(world.draw)(keys)
        return world.patches(videos.frames), videos._replace(frames=jnp.zeros(len(keys)))

    found = [jax.device_get(some(keys)) for keys in jax.random.split(key, (count // 64, 64))]
    return jax.tree.map(lambda *x: np.concatenate(x), *found)


@cache
def compressor(method: Method, budget: int) -> Any:
    """A method for a batch of videos, filled up with empty places."""

    def some(videos: jax.Array, key: jax.Array) -> VideoTokens:
        seen = jax.vmap(partial(method, budget=budget))(videos, jax.random.split(key, len(videos)))
        room = max(WIDEST - seen.mass.shape[1], 0)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 2))), seen)

    return jax.jit(some)


def compressed(method: Method, budget: int, videos: Any, key: jax.Array) -> VideoTokens:
    """Videos `[N, T, P, D]` compressed, on the host."""
    some = compressor(method, budget)
    found = [some(videos[i : i + 64], jax.random.fold_in(key, i)) for i in range(0, len(videos), 64)]
    return jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(found))


def train(config: Config, key: jax.Array) -> tuple[Params, float]:
    """Trained parameters and the seconds it took, compression included."""
    start = time.perf_counter()
    videos, there = drawn(key, config.videos)
    seen = [compressed(method, budget, videos, key) for method in METHODS.values() for budget in BUDGETS]
    seen.append(compressed(everything, BUDGETS[0], videos[:512], key))  # whole videos are large
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


@cache
def judging(config: Config) -> Any:
    """Right answers and questions by kind, of a batch."""

    def right(params: Params, key: jax.Array, seen: VideoTokens, there: world.Video) -> Any:
        asked = jax.vmap(partial(world.ask, count=config.questions))(jax.random.split(key, 64), there)
        hit = jnp.argmax(answer(params, config, seen, asked), axis=-1) == asked.answer
        kind = asked.kind[..., None] == jnp.arange(len(world.KINDS))
        return jnp.sum(hit[..., None] & kind, axis=(0, 1)), jnp.sum(kind, axis=(0, 1))

    return jax.jit(right)


def judge(params: Params, config: Config, method: Method, budget: int, videos: Any, there: Any) -> dict[str, float]:
    """Accuracy over fresh videos, of all questions and by kind."""
    key = jax.random.key(99)
    seen, found = compressed(method, budget, videos, key), []
    for i in range(0, config.test, 64):
        some = jax.tree.map(lambda x, i=i: x[i : i + 64], (seen, there))
        found.append(jax.device_get(judging(config)(params, jax.random.fold_in(key, i), *some)))
    hits, counts = (np.sum([x[i] for x in found], axis=0) for i in range(2))
    by_kind = dict(zip(world.KINDS, (hits / counts).tolist(), strict=True))
    return {"all": float(hits.sum() / counts.sum()), **by_kind}


OURS = ("one pool", "tree")
TOTAL = world.FRAMES * FRAME_BYTES
Found = dict[str, dict[str, dict[str, float]]]


def measure(config: Config, key: jax.Array) -> tuple[Found, float]:
    """Accuracies by method and bytes, with "everything" and "nothing" beside, and the seconds of training."""
    params, seconds = train(config, key)
    test = drawn(jax.random.key(99), config.test)
    found: Found = {}
    for name, method in METHODS.items():
        found[name] = {str(budget): judge(params, config, method, budget, *test) for budget in BUDGETS}
        shown = ", ".join(f"{TOTAL // int(budget)}x {x['all']:.1%}" for budget, x in found[name].items())
        print(f"  {name}: {shown}", flush=True)
    found["everything"] = {str(TOTAL): judge(params, config, everything, TOTAL, *test)}
    found["nothing"] = {"0": judge(params, config, nothing, 0, *test)}
    return found, seconds


def rows(found: Found) -> list[Row]:
    """At equal bytes: the best of ours, beside the usual ways and beside keeping what changed."""
    (whole,), (blind,) = (list(found[name].values()) for name in ("everything", "nothing"))
    usual = [name for name in METHODS if name not in (*OURS, "changed patches")]
    listed = []
    for budget in BUDGETS:
        scores = {name: found[name][str(budget)]["all"] for name in METHODS}
        ours, best = (max(names, key=lambda name: scores[name]) for names in (OURS, usual))
        share = (scores[ours] - blind["all"]) / (whole["all"] - blind["all"])
        what, told = f"glyph videos, {TOTAL // budget}x fewer bytes", f"{ours} {scores[ours]:.1%}"
        kept = scores[ours] > scores[best]
        listed.append(Row(what, told, f"{best} {scores[best]:.1%}", "> the best", kept))
        other = scores["changed patches"]
        kept = scores[ours] > other
        listed.append(Row(f"{what}: beside what changed", told, f"changed patches {other:.1%}", "> it", kept))
        what = f"{what}: share of what the whole video brings"
        told = f"whole {whole['all']:.1%}, nothing {blind['all']:.1%}"
        listed.append(Row(what, f"{share:.1%}", told, "-", share > 0))
    return listed


def picture(found: Found, path: Path) -> None:
    """Accuracy against bytes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for axis, kind, title in zip(
        axes, ("all", "where", "first"), ("all questions", "where was X at t", "who was there at first"), strict=True
    ):
        for name in METHODS:
            style = {"linewidth": 2.4} if name in OURS else {"linestyle": "--", "linewidth": 1.2}
            scores = [found[name][str(budget)][kind] for budget in BUDGETS]
            axis.plot(BUDGETS, scores, marker="o", markersize=4, label=name, **style)
        for name, color in (("everything", "black"), ("nothing", "gray")):
            (score,) = found[name].values()
            axis.axhline(score[kind], color=color, linewidth=0.8, label=name if name == "nothing" else "whole video")
        axis.set_xscale("log", base=2)
        axis.set_xticks(BUDGETS, [f"{budget:,}\n{TOTAL // budget}x" for budget in BUDGETS])
        axis.set_title(title)
        axis.set_xlabel("bytes kept, times fewer")
    axes[0].set_ylabel("accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Train, judge, print; exit 1 if a row is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows, all accuracies and the environment here")
    parser.add_argument("--picture", type=Path, help="draw accuracy against bytes here")
    parser.add_argument("--steps", type=int, default=Config.steps)
    parser.add_argument("--videos", type=int, default=Config.videos)
    given = parser.parse_args()
    config = replace(Config(), steps=given.steps, videos=given.videos)
    found, seconds = measure(config, jax.random.key(0))
    print(f"training: {seconds:.0f} s")
    listed = rows(found)
    print(table(listed))
    if given.json:
        record = {
            "environment": environment(),
            "config": vars(config),
            "rows": [vars(row) for row in listed],
            "accuracy": found,
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    if given.picture:
        picture(found, given.picture)
    return 0 if all(row.kept for row in listed) else 1


if __name__ == "__main__":
    sys.exit(main())
