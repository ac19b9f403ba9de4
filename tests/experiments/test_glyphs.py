"""Glyph videos show what they say, a loop answers the questions, ways to shorten keep to their bytes; the record."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import glyph_ways as ways
from experiments import glyph_world as world
from experiments import glyphs

ROOT = Path(__file__).parents[2]
COUNT = 48


@pytest.fixture(scope="module")
def drawn() -> tuple[Any, Any]:
    """Videos and 30 questions about each."""

    @jax.jit
    def some(keys: jax.Array) -> Any:
        videos = jax.vmap(world.draw)(keys)
        return videos, jax.vmap(partial(world.ask, count=30))(keys, videos)

    return jax.device_get(some(jax.random.split(jax.random.key(0), COUNT)))


def one(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def test_a_video_shows_its_glyphs_and_nothing_else(drawn: Any) -> None:
    for i in range(COUNT):
        video = one(drawn[0], i)
        assert len(set(video.glyphs.tolist())) == world.TRACKS
        assert np.flatnonzero(video.first == 0).tolist() == [0]
        for t in range(world.FRAMES):
            expected = np.zeros((world.WIDTH, world.WIDTH))
            for glyph, first, last, (x, y) in zip(video.glyphs, video.first, video.last, video.places[t], strict=True):
                if first <= t <= last:
                    x, y = x * world.PATCH, y * world.PATCH
                    cut = expected[y : y + world.PATCH, x : x + world.PATCH]
                    np.maximum(cut, world.BITMAPS[glyph], out=cut)
            np.testing.assert_array_equal(video.frames[t] > 0.5, expected > 0)


def turns(places: np.ndarray, first: int, last: int) -> int:
    """How often the direction of x or y changes its sign between two moves that are both seen."""
    found = 0
    for axis in range(2):
        steps = np.diff(places[first : last + 1, axis])
        steps = steps[steps != 0]
        found += int(np.sum(np.sign(steps[1:]) != np.sign(steps[:-1])))
    return found


def reply(video: Any, kind: str, glyph: int, other: int, time: int) -> int:
    """The answer, looked up."""
    order = np.argsort(video.first)
    track = video.glyphs.tolist().index(glyph) if glyph in video.glyphs else None
    there = [(a <= time <= b) for a, b in zip(video.first, video.last, strict=True)]
    number, no = world.GLYPHS, world.GLYPHS + world.MOST + 1
    if kind == "first":
        return int(video.glyphs[order[0]])
    if kind == "last":
        return int(video.glyphs[order[-1]])
    if kind == "seen":
        return no + (track is not None)
    if kind == "count":
        return number + sum(there)
    if kind == "where":
        assert there[track]
        return number + int(video.places[time, track, 0])
    if kind == "bounces":
        return number + min(int(video.turns[track]), world.MOST)
    second = video.glyphs.tolist().index(other)
    frames = [set(range(video.first[i], video.last[i] + 1)) for i in (track, second)]
    return no + bool(frames[0] & frames[1])


def test_every_answer_is_that_of_a_loop(drawn: Any) -> None:
    kinds = set()
    for i in range(COUNT):
        video, asked = one(drawn[0], i), one(drawn[1], i)
        for kind, glyph, other, time, answer in zip(*asked, strict=True):
            assert reply(video, world.KINDS[kind], glyph, other, time) == answer
            kinds.add(int(kind))
    assert kinds == set(range(len(world.KINDS)))


def test_turns_are_changes_of_direction(drawn: Any) -> None:
    """A turn whose move before or after is outside the glyph's time is not one that can be seen."""
    checked = 0
    for i in range(COUNT):
        video = one(drawn[0], i)
        for j in range(world.TRACKS):
            seen = turns(video.places[:, j], video.first[j], video.last[j])
            assert seen <= video.turns[j] <= seen + 2
            checked += seen
    assert checked > COUNT


@pytest.mark.parametrize("name", ways.METHODS)
def test_a_way_keeps_to_its_bytes(name: str, drawn: Any) -> None:
    patches = world.patches(drawn[0].frames)[0]
    floats = {"mean pooling": 0, "frame dropping": 0, "newest frames": 0, "changed patches": 3, "random patches": 3}
    for budget in ways.BUDGETS[:1] if name == "tree" else ways.BUDGETS:
        seen = jax.jit(partial(ways.METHODS[name], budget=budget))(patches, jax.random.key(1))
        size = 4 * seen.mass.shape[0] * (ways.PIXELS + floats.get(name, 4))
        assert 0.9 * budget < size <= budget
        assert bool(jnp.all(seen.mass > 0)) or name == "tree"
        if name in ("one pool", "tree", "mean pooling"):
            np.testing.assert_allclose(seen.mass.sum(), world.FRAMES * ways.PATCHES)
            np.testing.assert_allclose(seen.mass @ seen.tokens / seen.mass.sum(), patches.mean((0, 1)), rtol=1e-4)
        else:
            rows = np.asarray(seen.time * ways.PATCHES + 5 * seen.place[:, 1] + seen.place[:, 0]).astype(int)
            np.testing.assert_array_equal(seen.tokens, patches.reshape(-1, ways.PIXELS)[rows])
            assert len(set(rows.tolist())) == len(rows)


def test_the_changed_patches_hold_the_glyphs(drawn: Any) -> None:
    video = one(drawn[0], 0)
    budget = ways.BUDGETS[-1]
    seen = jax.jit(partial(ways.changed, budget=budget))(world.patches(video.frames), jax.random.key(1))
    found = {(int(t), int(x), int(y)) for t, (x, y) in zip(seen.time, seen.place, strict=True)}
    for first, place in zip(video.first, np.moveaxis(video.places, 1, 0), strict=True):
        assert (first, *place[first]) in found


def test_a_reader_that_has_seen_nothing_does_not_look(drawn: Any) -> None:
    """Empty places are not read: whatever stands in them, the answer is that of no video."""
    config = glyphs.Config(width=16)
    params = glyphs.init(jax.random.key(0), config)
    seen = jax.vmap(partial(ways.nothing, key=jax.random.key(1), budget=0))(world.patches(drawn[0].frames[:2]))
    asked = one(drawn[1], slice(0, 2))
    read = jax.jit(lambda seen: glyphs.answer(params, config, seen, asked))
    np.testing.assert_array_equal(read(seen), read(seen._replace(tokens=seen.tokens + 7.0)))


def test_the_record_is_on_the_page() -> None:
    record = json.loads((ROOT / "docs/benchmarks/compress_video.json").read_text())
    page = (ROOT / "docs/compress_video.md").read_text()
    lost = [row["what"] for row in record["rows"] if not row["kept"]]
    assert all(what.endswith("beside what changed") for what in lost)
    assert record["rows"] == [vars(row) for row in glyphs.rows(record["accuracy"])]
    assert ("loses" in page) == bool(lost)
    for name in ways.METHODS:
        for budget in ways.BUDGETS:
            assert f"{100 * record['accuracy'][name][str(budget)]['all']:.1f}" in page, (name, budget)
