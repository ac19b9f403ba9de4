"""Compression: nothing lost at ratio 1, mass conserved, the definition by sets of tokens, streams as the whole."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.attention import attention
from rlx.compress import Memory, Stream, allocate, attend, compress, stream, update

B, T, H, K, D, E, NEW = 2, 37, 4, 2, 8, 6, 5
STATIC = ("size", "ratio", "block", "adaptive", "half_life", "levels", "temper", "gate")
run = jax.jit(compress, static_argnames=STATIC)
start = jax.jit(stream, static_argnames=("size", "block", "levels", "half_life", "temper"))
more = jax.jit(update)
ask = jax.jit(attend)


def arrays(key: jax.Array, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Keys, values and an importance for each head."""
    a, b, c = jax.random.split(key, 3)
    k, v = jax.random.normal(a, (B, T, K, D)), jax.random.normal(b, (B, T, K, E))
    return k.astype(dtype), v.astype(dtype), jax.random.normal(c, (B, T, K))


def after(key: jax.Array) -> tuple[jax.Array, ...]:
    """Queries, keys and values of new tokens."""
    a, b, c = jax.random.split(jax.random.fold_in(key, 7), 3)
    return tuple(jax.random.normal(x, (B, NEW, *s)) for x, s in ((a, (H, D)), (b, (K, D)), (c, (K, E))))


def distance(actual: Any, expected: Any) -> float:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.max(np.abs(np.exp(np.asarray(a, np.float64)) - np.exp(np.asarray(e, np.float64))))) for a, e in pairs
    )


def cover(blocks: int, levels: int) -> list[range]:
    """The nodes of a prefix, oldest first: made a block at a time, joining the two oldest of three of a size."""
    nodes: list[range] = []
    for block in range(blocks):
        nodes.append(range(block, block + 1))
        for level in range(levels - 1):
            same = [node for node in nodes if len(node) == 2**level]
            if len(same) == 3:
                at = nodes.index(same[0])
                nodes[at : at + 2] = [range(same[0].start, same[1].stop)]
    top = [node for node in nodes if len(node) >= 2 ** (levels - 1)]
    return ([range(top[-1].stop)] if top else []) + [node for node in nodes if node not in top]


def oracle(k: Any, v: Any, importance: Any, *, size: int, block: int, levels: int, temper: float, half: float | None):
    """One head by sets of tokens: the entries that are there, tokens first."""
    k, v, importance = (np.asarray(x, np.float64) for x in (k, v, importance))
    score = importance + (np.arange(len(k)) * math.log(2) / half if half else 0)
    kept = sorted(np.argsort(-score)[: size - (2 * levels - 1)].tolist())
    found = [(k[t], v[t], 1.0) for t in kept]
    for node in cover(-(-len(k) // block), levels):
        rest = [t for t in range(node.start * block, min(node.stop * block, len(k))) if t not in kept]
        if rest:
            weight = np.exp(temper * importance[rest])
            found.append((weight @ k[rest] / weight.sum(), weight @ v[rest] / weight.sum(), float(len(rest))))
    return found


@pytest.mark.parametrize(
    ("size", "block", "levels", "temper", "half"),
    [(9, 4, 3, 0.0, None), (12, 3, 3, 0.7, 6.0), (4, 5, 1, 1.0, None), (16, 2, 5, 0.0, 20.0)],
)
def test_it_is_the_definition(
    size: int, block: int, levels: int, temper: float, half: float | None, key: jax.Array
) -> None:
    k, v, importance = arrays(key)
    memory = run(k, v, importance, size=size, block=block, levels=levels, temper=temper, half_life=half)
    assert memory.keys.shape == (B, size, K, D)
    for b in range(B):
        for h in range(K):
            there = np.asarray(memory.log_mass[b, :, h]) > -np.inf
            expected = oracle(
                *(x[b, :, h] for x in (k, v, importance)),
                size=size, block=block, levels=levels, temper=temper, half=half,
            )  # fmt: skip
            assert there.sum() == len(expected)
            for x, y in zip((memory.keys, memory.values, jnp.exp(memory.log_mass)), range(3), strict=True):
                np.testing.assert_allclose(x[b, :, h][there], np.array([e[y] for e in expected]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [T, T + 9])
def test_at_ratio_one_it_is_dense_attention(size: int, key: jax.Array) -> None:
    k, v, importance = arrays(key)
    q, k1, v1 = after(key)

    def compressed(k: Any, v: Any, q: Any, k1: Any, v1: Any) -> jax.Array:
        return attend(q, run(k, v, importance, size=size), k1, v1)

    def dense(k: Any, v: Any, q: Any, k1: Any, v1: Any) -> jax.Array:
        keys, values = jnp.concatenate([k, k1], 1), jnp.concatenate([v, v1], 1)
        return attention(q, keys, values, causal=True, offset=T)

    args = (k, v, q, k1, v1)
    found = [jax.jit(f)(*args) for f in (compressed, dense)]
    assert float(jnp.abs(found[0] - found[1]).max()) <= 1e-5
    grads = [
        jax.jit(jax.grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), argnums=tuple(range(5))))(*args)
        for f in (compressed, dense)
    ]
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*grads, strict=True)) <= 1e-5
    assert run(k, v, importance, ratio=1).bytes == run(k, v, importance, size=T).bytes == B * T * K * 4 * (D + E + 1)


@pytest.mark.parametrize("options", [{}, {"adaptive": False}, {"half_life": 5.0}, {"temper": 1.0}, {"levels": 2}])
@pytest.mark.parametrize("size", [1, 5, 18])
def test_masses_add_up_and_what_is_constant_stays(size: int, options: dict[str, Any], key: jax.Array) -> None:
    k, v, importance = arrays(key)
    same = jnp.broadcast_to(v[:, :1], v.shape)
    if options.get("levels") == 2 and size == 1:
        with pytest.raises(ValueError, match="levels: 2 levels have 3 means, more than the 1 entries"):
            run(k, same, importance, size=size, block=4, **options)
        return
    memory = run(k, same, importance, size=size, block=4, **options)
    assert memory.size == size
    np.testing.assert_allclose(memory.tokens, T, rtol=1e-5)
    there = memory.log_mass > -jnp.inf
    expected = jnp.where(there[..., None], same[:, :1], 0)
    assert float(jnp.abs(memory.values - expected).max()) <= 1e-6
    q = after(key)[0]
    np.testing.assert_allclose(ask(q, memory), jnp.repeat(same[:, :NEW], H // K, axis=2), atol=1e-5)


def test_no_levels_drop_what_is_not_kept(key: jax.Array) -> None:
    k, v, _ = arrays(key)
    memory = run(k, v, jnp.broadcast_to(jnp.arange(float(T)), (B, T)), size=6, levels=0)
    assert jnp.array_equal(memory.keys, k[:, -6:])
    assert jnp.array_equal(memory.values, v[:, -6:])
    assert not jnp.any(memory.log_mass)


def test_equal_importance_keeps_the_newest(key: jax.Array) -> None:
    k, v, _ = arrays(key)
    assert jnp.array_equal(run(k, v, jnp.zeros((B, T)), size=6, levels=0).keys, k[:, -6:])


@pytest.mark.parametrize("options", [{}, {"half_life": 9.0, "temper": 0.5}])
@pytest.mark.parametrize("cuts", [(1,) * T, (5, 9, 23), (36, 1)])
def test_a_stream_is_the_whole(cuts: tuple[int, ...], options: dict[str, Any], key: jax.Array) -> None:
    k, v, importance = arrays(key)
    rules = {"size": 11, "block": 3, "levels": 3, **options}
    step = jax.jit(update)
    state, at = start(k[:, :0], v[:, :0], importance[:, :0], **rules), 0
    for cut in cuts:
        state = step(state, *(x[:, at : at + cut] for x in (k, v, importance)))
        at += cut
    assert state.length.tolist() == [T] * B
    assert state.memory.size == 11
    assert distance(state.memory, run(k, v, importance, **rules)) < 2e-5
    at_once = start(k, v, importance, **rules)
    assert distance(state.memory, at_once.memory) < 2e-5


def test_a_stream_with_padding_is_that_without(key: jax.Array) -> None:
    """Padding has a position; at the end of the last block it moves nothing."""
    k, v, importance = (x[:, :36] for x in arrays(key))
    rules = {"size": 11, "block": 4, "levels": 2}
    mask = jnp.broadcast_to(jnp.arange(36) < 34, (B, 36))
    padded = start(*(x.at[:, 34:].set(jnp.nan) for x in (k, v, importance)), mask=mask, **rules)
    np.testing.assert_allclose(padded.memory.tokens, 34, rtol=1e-5)
    assert distance(padded.memory, run(*(x[:, :34] for x in (k, v, importance)), **rules)) < 2e-5


def test_fewer_shown_is_a_smaller_size(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    q = after(key)[0]
    few = jax.jit(lambda n: attend(q, compress(k, v, importance, size=T, block=4, levels=2, shown=n)))
    for size in (3, 7, 20):
        small = ask(q, run(k, v, importance, size=size, block=4, levels=2))
        assert float(jnp.abs(few(jnp.int32(size)) - small).max()) < 1e-5
    assert float(jnp.abs(few(jnp.int32(T)) - ask(q, run(k, v, importance, size=T))).max()) < 1e-5
    each = run(k, v, importance, size=T, block=4, levels=2, shown=jnp.array([3, 20]))
    one = run(k, v, importance, size=T, block=4, levels=2, shown=20)
    assert jnp.array_equal(each.log_mass[1], one.log_mass[1])
    assert bool(jnp.all(each.log_mass[0, :T] == -jnp.inf))  # three are means


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_gate_towards_zero_is_the_choice_itself(adaptive: bool, key: jax.Array) -> None:
    k, v, importance = arrays(key)
    rules = {"size": 13, "block": 4, "levels": 2, "adaptive": adaptive}
    q = after(key)[0]
    hard, soft = (ask(q, run(k, v, importance, gate=gate, **rules)) for gate in (None, 1e-6))
    assert float(jnp.abs(hard - soft).max()) < 1e-5
    np.testing.assert_allclose(run(k, v, importance, gate=1.0, **rules).tokens, T, rtol=1e-5)


def test_a_gate_gives_every_token_a_gradient_and_it_is_right() -> None:
    with jax.enable_x64(True):
        k, v, importance = (x.astype(jnp.float64) for x in arrays(jax.random.key(0)))
        q = after(jax.random.key(0))[0].astype(jnp.float64)

        def value(importance: Any) -> jax.Array:
            rules = {"size": 9, "block": 4, "levels": 2, "temper": 0.5, "gate": 0.7, "half_life": 30.0}
            return jnp.sum(jnp.sin(attend(q, compress(k, v, importance, **rules))))

        gradient = jax.jit(jax.grad(value))(importance)
        assert bool(jnp.all(jnp.isfinite(gradient)))
        assert bool(jnp.all(gradient != 0))
        way = jax.random.normal(jax.random.key(3), importance.shape, jnp.float64)
        line = jax.jit(lambda t: value(importance + t * way))
        numeric = (line(1e-6) - line(-1e-6)) / 2e-6
        assert float(jnp.sum(gradient * way)) == pytest.approx(float(numeric), rel=1e-6)


def test_what_comes_later_does_not_change_the_memory_by_a_bit(key: jax.Array) -> None:
    """One program makes the memory and answers; only the questions differ."""
    k, v, importance = arrays(key)
    q, k1, v1 = after(key)

    @jax.jit
    def both(q: Any, k1: Any, v1: Any) -> Any:
        memory = compress(k, v, importance, size=9, block=4)
        return memory, attend(q, memory, k1, v1)

    first, second = both(q, k1, v1), both(-3 * q, 2 * k1, v1 + 1)
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first[0], second[0])), strict=True))
    assert not jnp.array_equal(first[1], second[1])


def test_examples_are_their_own(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    there, back = (run(*(x[::s] for x in (k, v, importance)), size=9, block=4) for s in (1, -1))
    assert all(jnp.array_equal(a[::-1], b) for a, b in zip(*map(jax.tree.leaves, (there, back)), strict=True))


def test_an_importance_for_all_heads_is_that_of_each(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    shared = run(k, v, importance[..., 0], size=9, block=4)
    each = run(k, v, jnp.stack([importance[..., 0]] * K, axis=-1), size=9, block=4)
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (shared, each)), strict=True))


@pytest.mark.parametrize("size", [1, 9, T + 4])
def test_empty_and_hidden_prefixes_give_zeros(size: int, key: jax.Array) -> None:
    k, v, importance = arrays(key)
    q, k1, v1 = after(key)
    empty = run(*(x[:, :0] for x in (k, v, importance)), size=size)
    nan = jnp.full_like(k, jnp.nan)
    hidden = run(nan, nan[..., :E], nan[..., 0], size=size, mask=jnp.zeros((B, T), bool), block=4)
    for memory in (empty, hidden):
        assert not jnp.any(memory.tokens)
        assert not jnp.any(ask(q, memory))
        assert float(jnp.abs(ask(q, memory, k1, v1) - attention(q, k1, v1, causal=True)).max()) < 1e-5


@pytest.mark.parametrize("gate", [None, 0.7])
def test_padding_leaks_nothing_even_backward(gate: float | None, key: jax.Array) -> None:
    k, v, importance = arrays(key)
    q, k1, v1 = after(key)
    mask, mask1 = jnp.ones((B, T), bool).at[:, 30:].set(False), jnp.ones((B, NEW), bool).at[:, 2].set(False)

    def loss(k: Any, v: Any, k1: Any, v1: Any, importance: Any) -> jax.Array:
        memory = compress(k, v, importance, size=9, block=4, temper=0.5, mask=mask, gate=gate)
        return jnp.sum(jnp.sin(attend(q, memory, k1, v1, mask=mask1)))

    spoilt = [x.at[:, 30:].set(jnp.nan) for x in (k, v)] + [x.at[:, 2].set(jnp.nan) for x in (k1, v1)]
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))
    clean, bad = step(k, v, k1, v1, importance), step(*spoilt, importance.at[:, 30:].set(jnp.nan))
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (clean, bad)), strict=True))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(clean))


def test_nan_and_infinite_importance_lose_and_win(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    odd = importance.at[:, 3].set(jnp.inf).at[:, 4].set(jnp.nan).at[:, 5].set(-jnp.inf)
    memory = run(k, v, odd, size=9, block=4, temper=0.5)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in (memory.keys, memory.values))
    assert bool(jnp.all(jnp.any(jnp.all(memory.keys[:, :8] == k[:, 3:4], axis=-1), axis=1)))
    for t in (4, 5):
        assert not bool(jnp.any(jnp.all(memory.keys[:, :8] == k[:, t : t + 1], axis=-1)))
    np.testing.assert_allclose(memory.tokens, T, rtol=1e-5)


def test_slots_go_to_the_burst_or_evenly_or_to_the_new() -> None:
    surprise = jnp.zeros(40).at[jnp.array([12, 13, 15, 16])].set(3.0)
    assert allocate(surprise, size=4, block=10).tolist() == [0, 4, 0, 0]
    assert allocate(surprise, size=6, block=10, adaptive=False).tolist() == [1, 1, 2, 2]
    # At a half-life of ten tokens a nat is worth 14.4 of them: 3 nats are enough, 1.5 are not against the last three.
    assert allocate(surprise, size=4, block=10, half_life=10.0).tolist() == [0, 4, 0, 0]
    assert allocate(surprise / 2, size=4, block=10, half_life=10.0).tolist() == [0, 1, 0, 3]
    mask = jnp.arange(40) < 15
    assert allocate(surprise, size=4, block=10, mask=mask).tolist() == [0, 4, 0, 0]
    assert allocate(surprise, size=40, block=10, mask=mask).tolist() == [10, 5, 0, 0]


def test_a_half_life_is_a_budget_geometric_in_age() -> None:
    """Exponential importance: of n tokens h older, half as many pass the bar."""
    importance = jax.random.exponential(jax.random.key(0), (4000,))
    counts = allocate(importance, size=400, block=250, half_life=500.0)
    newer, older = counts[8:10].sum(), counts[6:8].sum()
    assert 0.35 < float(older / newer) < 0.65


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_dtype(dtype: Any, key: jax.Array) -> None:
    k, v, importance = arrays(key, dtype)
    memory = run(k, v, importance.astype(dtype), size=9, block=4)
    assert (memory.keys.dtype, memory.values.dtype, memory.log_mass.dtype) == (dtype, dtype, jnp.float32)
    wide = run(*(x.astype(jnp.float32) for x in (k, v, importance.astype(dtype))), size=9, block=4)
    assert float(jnp.abs(memory.keys.astype(jnp.float32) - wide.keys).max()) < 0.02
    assert ask(after(key)[0].astype(dtype), memory).dtype == dtype


def test_under_x64_it_is_double() -> None:
    with jax.enable_x64(True):
        k, v, importance = (x.astype(jnp.float64) for x in arrays(jax.random.key(0)))
        memory = run(k, v, importance, size=9, block=4)
        assert memory.log_mass.dtype == memory.keys.dtype == jnp.float64
        state = start(k, v, importance, size=9, block=4)
        assert state.position.dtype == jnp.int32
        np.testing.assert_allclose(memory.tokens, T, rtol=1e-12)


def test_streams_in_a_scan_and_under_vmap(key: jax.Array) -> None:
    k, v, importance = (x[:, :36].reshape(B, 6, 6, *x.shape[2:]).swapaxes(0, 1) for x in arrays(key))
    rules = {"size": 9, "block": 4, "levels": 2}
    state = start(k[0], v[0], importance[0], **rules)
    scanned = jax.jit(lambda s: jax.lax.scan(lambda s, x: (update(s, *x), None), s, (k[1:], v[1:], importance[1:]))[0])
    whole = run(*(x.swapaxes(0, 1).reshape(B, 36, *x.shape[3:]) for x in (k, v, importance)), **rules)
    assert distance(scanned(state).memory, whole) < 2e-5
    alone = jax.vmap(partial(stream, **rules))(k[0], v[0], importance[0])
    assert alone.length.shape == (B,)
    assert distance(alone.memory, state.memory) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, v, i: compress(k, v, i), "size: give either size, in entries, or ratio"),
        (lambda k, v, i: compress(k, v, i, size=2, ratio=2), "size: give either"),
        (lambda k, v, i: compress(k, v, i, size=0), "size: 0 is outside"),
        (lambda k, v, i: compress(k, v, i, ratio=0.5), r"ratio: 0.5 is outside \[1"),
        (lambda k, v, i: compress(k, v, i[:, 1:], size=4), r"importance: expected shape \(2, 37\) or \(2, 37, 2\)"),
        (lambda k, v, i: compress(k, v[:1], i, size=4), "v: leading dims"),
        (lambda k, v, i: compress(k, v, i, size=4, half_life=0.0), "half_life: 0.0 is outside"),
        (lambda k, v, i: compress(k, v, i, size=4, mask=jnp.ones((B, 3), bool)), "mask: expected shape"),
        (lambda k, v, i: update(stream(k, v, i, size=4), k[..., :4], v, i), "k: shape"),
        (lambda k, v, i: stream(k, v, i, size=4, levels=3), "levels: 3 levels have 5 means"),
        (lambda k, v, i: attend(k[:, :9], compress(k, v, i, size=4), k[:, :4], v[:, :4]), "k: 4 new tokens are fewer"),
        (lambda k, v, i: attend(k, compress(k, v, i, size=4), k), "v: k and v are both given"),
        (lambda k, v, i: attend(k[:, :, :1], compress(k, v, i, size=4)), "memory: 2 heads do not divide the 1"),
        (lambda k, v, i: attend(k, compress(k, v, i, size=4), mask=jnp.ones((B, T), bool)), "mask: is of new tokens"),
    ],
)
def test_what_is_wrong_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, *(jax.eval_shape(arrays, jax.random.key(0))))


def test_other_types_are_named(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    memory = run(k, v, importance, size=4)
    for call, message in (
        (lambda: attend(k, (k, v)), "memory: expected a Memory, got tuple"),
        (
            lambda: attend(k, memory, k.astype(jnp.bfloat16), v),
            "k: dtype bfloat16 disagrees with float32 of the memory",
        ),
        (lambda: compress(k, v, jnp.ones((B, T), int), size=4), "importance: expected a floating dtype"),
        (lambda: compress(k, v, importance, size=4.5), "size: expected a whole number"),
        (lambda: update(memory, k, v, importance), "state: expected a Stream, got Memory"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    assert isinstance(memory, Memory)
    assert isinstance(start(k, v, importance, size=4), Stream)
