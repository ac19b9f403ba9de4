"""The stream of facts is what it says, the ways to choose cost the same bytes, and the record is that of the page."""

import itertools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench_compression, compression, tasks

ROOT = Path(__file__).parents[2]
KEYS, VALUES = range(16, 80), range(80, 112)


@pytest.fixture(scope="module")
def params() -> compression.Params:
    return jax.jit(partial(compression.init, config=compression.FACTS))(jax.random.key(0))


@pytest.mark.parametrize("bursts", [0, 2])
def test_facts_are_asked_with_their_values_and_filler_is_foretold(bursts: int) -> None:
    draw = jax.jit(jax.vmap(partial(tasks.facts, length=512, bursts=bursts)))
    example = draw(jax.random.split(jax.random.key(0), 16))
    jumped = filler = 0
    for row, targets in zip(np.asarray(example.tokens), np.asarray(example.targets), strict=True):
        prefix, after = row[:512].tolist(), row[512:].tolist()
        places = [t for t, token in enumerate(prefix) if token in KEYS]
        told = {prefix[t]: prefix[t + 1] for t in places}
        assert len(told) == 12
        assert all(value in VALUES for value in told.values())
        assert [told[name] for name in after[::2]] == after[1::2] == targets[512::2].tolist()
        assert len(set(after[::2])) == 8
        assert set(targets[:512].tolist()) | set(targets[513::2].tolist()) == {-1}
        if bursts:
            assert len({t // 64 for t in places}) == 2
            assert [b - a for a, b in itertools.pairwise(places)].count(2) >= 10
        else:
            assert [t // 42 for t in places] == list(range(12))
        for t in range(1, 512):
            if prefix[t] < 16:
                filler += 1
                jumped += prefix[t] != (0 if prefix[t - 1] in VALUES else (prefix[t - 1] + 1) % 16)
    assert 0.01 < jumped / filler < 0.03


def test_too_many_facts_are_refused() -> None:
    with pytest.raises(ValueError, match="bursts: 2 of 35 facts do not fit"):
        tasks.facts(jax.random.key(0), length=512, facts=70, keys=70, bursts=2)
    with pytest.raises(ValueError, match="facts: 4 must be at least the 8 questions"):
        tasks.facts(jax.random.key(0), length=512, facts=4)
    with pytest.raises(ValueError, match="length: 20 has no room for 12 facts"):
        tasks.facts(jax.random.key(0), length=20)


def test_a_whole_memory_is_the_whole_context(params: compression.Params) -> None:
    """Reading everything at once, and reading, compressing at ratio 1 and going on, are the same."""
    config, tokens = compression.FACTS, jax.random.randint(jax.random.key(1), (2, 70), 0, 112)

    @jax.jit
    def both(params: compression.Params) -> tuple[jax.Array, ...]:
        whole = compression.read(params, config, tokens).hidden @ params["head"].T
        prefix = compression.read(params, config, tokens[:, :60])
        found = [whole[:, 60:]]
        for method in compression.METHODS:
            memory = compression.remember(params, config, prefix, method, jnp.int32(60), jax.random.key(0))
            found.append(compression.answer(params, config, tokens[:, 60:], prefix.last, memory))
        return tuple(found)

    whole, *others = both(params)
    for other in others:
        np.testing.assert_allclose(other, whole, atol=2e-4)


def test_truncation_sees_nothing_before_and_windows_no_further(params: compression.Params) -> None:
    config, tokens = compression.FACTS, jax.random.randint(jax.random.key(1), (2, 40), 0, 112)
    read = jax.jit(partial(compression.read, config=config))
    short = read(params, tokens=tokens[:, 30:])
    cut = read(params, tokens=tokens, newest=jnp.int32(10))
    np.testing.assert_allclose(cut.hidden[:, 30:], short.hidden, atol=2e-5)
    other = tokens.at[:, :20].set(3)
    first, second = (read(params, tokens=x, window=jnp.int32(4)) for x in (tokens, other))
    assert jnp.array_equal(first.hidden[:, 30:], second.hidden[:, 30:])  # two layers of four, mixed with one before
    assert not jnp.array_equal(first.hidden[:, 19:22], second.hidden[:, 19:22])


def test_pools_are_means_of_equal_runs() -> None:
    k = jnp.arange(12.0).reshape(1, 1, 12, 1, 1)
    prefix = compression.Prefix(k, k, k, k[0], k[0, ..., 0, 0])
    memory = jax.jit(compression.pooled)(prefix, jnp.int32(3))
    assert memory.keys[0, 0, :4, 0, 0].tolist() == [1.5, 5.5, 9.5, 0.0]
    np.testing.assert_allclose(jnp.exp(memory.log_mass[0, 0, :4, 0]), [4, 4, 4, 0], rtol=1e-6)


def test_bytes_are_counted_with_masses_where_they_are_needed() -> None:
    config = compression.FACTS
    assert compression.entry_bytes(config, mass=True) == 2 * 2 * (64 + 1) * 4
    assert compression.entry_bytes(config, mass=False) == 2 * 2 * 64 * 4
    assert compression.fraction(3.0, 1.5, 1.0) == 0.75


def test_the_record_is_that_of_the_page(tmp_path: Path) -> None:
    record = json.loads((ROOT / "docs/benchmarks/compression.json").read_text())
    page = (ROOT / "docs/compress.md").read_text()
    rows = bench_compression.rows({"streams": {k: v for part in record["curves"].values() for k, v in
                                               part["streams"].items()}})  # fmt: skip
    assert [vars(row) for row in rows] == record["rows"]
    assert all(row["kept"] for row in record["rows"] if not row["what"].startswith("topics"))
    for row in record["rows"]:
        assert row["rlx"] in page
    bench_compression.draw_picture(record["curves"], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
