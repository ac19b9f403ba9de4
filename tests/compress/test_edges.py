"""Compression at its edges: padding anywhere, short blocks, small gates, half precision for long, odd options."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from rlx.attention import attention
from rlx.compress import Memory, allocate, attend, compress, stream, update

T, K, D = 17, 2, 4
STATIC = ("size", "ratio", "block", "adaptive", "half_life", "levels", "temper", "gate")
run = jax.jit(compress, static_argnames=STATIC)
start = jax.jit(stream, static_argnames=("size", "block", "levels", "half_life", "temper"))
more = jax.jit(update)


def arrays(key: jax.Array) -> tuple[jax.Array, ...]:
    a, b, c = jax.random.split(key, 3)
    return jax.random.normal(a, (T, K, D)), jax.random.normal(b, (T, K, D)), jax.random.normal(c, (T, K))


def spread(x: jax.Array, where: Any) -> jax.Array:
    """Rows where they are to stand, NaN elsewhere."""
    return jnp.full((2 * T, *x.shape[1:]), jnp.nan, x.dtype).at[where].set(x)


def apart(one: Memory, other: Memory) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.exp(a) - np.exp(b)))) for a, b in pairs)


@pytest.mark.parametrize(
    "where", [slice(0, T), slice(T, None), np.sort(np.random.default_rng(0).permutation(2 * T)[:T])]
)
@pytest.mark.parametrize(
    "options",
    [{"temper": 0.5, "half_life": 4.0}, {"adaptive": False, "half_life": 4.0}],
)
def test_padding_moves_nothing(where: Any, options: dict[str, Any], key: jax.Array) -> None:
    """Blocks, levels, ages and even shares are of the tokens that are there."""
    plain = arrays(key)
    padded, mask = [spread(x, where) for x in plain], jnp.zeros(2 * T, bool).at[where].set(True)
    rules = {"size": 9, "block": 3, "levels": 3, **options}
    assert apart(run(*plain, **rules), run(*padded, mask=mask, **rules)) < 1e-5
    if options.get("adaptive", True):
        assert apart(start(*plain, **rules).memory, start(*padded, mask=mask, **rules).memory) < 1e-5
    soft, soft_padded = run(*plain, gate=0.5, **rules), run(*padded, mask=mask, gate=0.5, **rules)
    there = jnp.concatenate([mask, jnp.ones(5, bool)])
    np.testing.assert_allclose(soft_padded.log_mass[there], soft.log_mass, atol=1e-4)
    np.testing.assert_allclose(soft_padded.values[there], soft.values, atol=1e-5)
    counts, counts_padded = (
        allocate(x[:, 0], size=7, block=3, mask=m, **{k: v for k, v in options.items() if k != "temper"})
        for x, m in ((plain[2], None), (padded[2], mask))
    )
    assert counts_padded.tolist()[: len(counts)] == counts.tolist()
    assert int(jnp.sum(counts_padded)) == 7


def test_examples_of_many_lengths_go_on_in_one_stream(key: jax.Array) -> None:
    """Each by its own mask, in pieces, as each alone."""
    k, v, importance = (jnp.stack([x, 2 * x]) for x in arrays(key))
    mask = jnp.arange(T)[None] < jnp.array([[11], [16]])
    rules = {"size": 7, "block": 2, "levels": 2, "half_life": 3.0}
    state = start(k[:, :8], v[:, :8], importance[:, :8], mask=mask[:, :8], **rules)
    state = more(state, k[:, 8:], v[:, 8:], importance[:, 8:], mask=mask[:, 8:])
    assert state.length.tolist() == [11, 16]
    for b, n in enumerate((11, 16)):
        alone = run(*(x[b, :n] for x in (k, v, importance)), **rules)
        assert apart(jax.tree.map(lambda x, b=b: x[b], state.memory), alone) < 1e-5


@pytest.mark.parametrize("gate", [None, 1e-3])
def test_at_ratio_one_the_same_for_every_block_is_dense_attention(gate: float | None, key: jax.Array) -> None:
    """The last block has one token of eight: what it cannot use the others get."""
    k, v, importance = arrays(key)
    q = importance[:3, :, None] + k[:3]
    memory = run(k, v, importance, size=T, block=8, adaptive=False, gate=gate)
    np.testing.assert_allclose(memory.tokens, T, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(attend)(q, memory), jax.jit(attention)(q, k, v), atol=1e-5)
    even = jax.jit(lambda size: allocate(importance[:, 0], size=size, block=8, adaptive=False))
    assert [even(size).tolist() for size in (3, 5, 10, 17, 99)] == [
        [1, 1, 1],
        [2, 2, 1],
        [4, 5, 1],
        [8, 8, 1],
        [8, 8, 1],
    ]


def test_more_shown_than_the_size_is_the_size(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    rules = {"size": 8, "block": 4, "levels": 2}
    all_of_it = run(k, v, importance, shown=8, **rules)
    for shown in (9, T, 1000):
        assert apart(run(k, v, importance, shown=shown, **rules), all_of_it) == 0
    np.testing.assert_allclose(all_of_it.tokens, T, rtol=1e-6)


@pytest.mark.parametrize("gate", [1e-2, 1e-6, 1e-12])
def test_a_small_gate_has_a_finite_gradient(gate: float, key: jax.Array) -> None:
    """Also where all of a node's tokens are kept, so that next to nothing is merged there."""
    k, v, importance = arrays(key)
    importance = importance.at[-4:].set(9.0)

    def loss(k: Any, v: Any, importance: Any) -> jax.Array:
        return jnp.sum(attend(k[:3], compress(k, v, importance, size=9, block=4, levels=2, gate=gate)) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(k, v, importance)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in gradient)
    assert bool(jnp.any(gradient[1] != 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_mean_in_half_precision_does_not_stand_still(dtype: Any) -> None:
    """Token by token: 512 zeros and then 512 ones, of which one is kept."""
    v = jnp.where(jnp.arange(1024) < 512, 0.0, 1.0)[:, None, None].astype(dtype)
    score = jnp.zeros(1024)
    state = start(v[:0], v[:0], score[:0], size=2, block=4, levels=1)
    walk = jax.jit(lambda s: jax.lax.scan(lambda s, x: (update(s, *(y[None] for y in x)), None), s, (v, v, score))[0])
    state = walk(state)
    assert state.memory.values.dtype == dtype
    assert state.memory.values[-1, 0, 0] == jnp.asarray(511 / 1023, dtype)
    assert float(state.memory.tokens[0]) == pytest.approx(1024, rel=1e-4)


@pytest.mark.parametrize("value", [-jnp.inf, jnp.inf, jnp.nan, 1e8])
def test_a_stream_weighs_infinite_importance_as_the_whole_does(value: float, key: jax.Array) -> None:
    k, v, _ = arrays(key)
    rules = {"size": 3, "block": 3, "levels": 2, "temper": 1.0}
    importance = jnp.full((T, K), value)
    state = start(k[:0], v[:0], importance[:0], **rules)
    for t in range(T):
        state = more(state, k[t : t + 1], v[t : t + 1], importance[t : t + 1])
    assert apart(state.memory, run(k, v, importance, **rules)) < 0.01


def test_a_huge_temper_is_the_most_important_token(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    memory = run(k, v, importance * 1e6, size=1, temper=1e35)
    best = jnp.argmax(importance, axis=0)
    # Beside 1e4 nats all are equal, so two signs are told apart and no more.
    share = (importance > 0).astype(jnp.float32)
    expected = jnp.einsum("tk,tkd->kd", share / jnp.sum(share, axis=0, keepdims=True), v)
    np.testing.assert_allclose(memory.values[0], expected, atol=1e-5)
    one = run(k, v, importance, size=1, temper=1e3)
    np.testing.assert_allclose(one.values[0], jnp.stack([v[best[h], h] for h in range(K)]), atol=1e-2)


def test_a_half_life_is_as_sharp_after_a_long_stream(key: jax.Array) -> None:
    """A token 13 older at a half-life of 64 needs 0.1408 nats more: after 2^30 tokens too."""
    k, v, _ = arrays(key)
    empty = start(k[:0], v[:0], jnp.zeros(0), size=5, levels=0, half_life=64.0)
    late = dataclasses.replace(empty, length=empty.length + 2**30)
    age = T - 1 - 4  # of the token that it must beat to be the fifth
    for nats, stays in ((0.0, False), (0.09, False), (0.11, True)):
        state = more(late, k, v, jnp.zeros(T).at[2].set(nats))
        assert bool(jnp.any(state.position == 2**30 + 2)) == stays, (nats, age)


def test_a_tiny_half_life_keeps_the_newest(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    for half_life in (1e-3, 1e-40):
        assert jnp.array_equal(run(k, v, importance, size=4, levels=0, half_life=half_life).keys, k[-4:])
    soft = run(k, v, importance, size=4, half_life=1e-40, gate=0.5)
    np.testing.assert_allclose(soft.tokens, T, rtol=1e-4)


def test_a_block_larger_than_the_prefix_costs_nothing(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    for adaptive in (True, False):
        rules = {"size": 6, "adaptive": adaptive, "levels": 2}
        assert apart(run(k, v, importance, block=2**31 - 1, **rules), run(k, v, importance, block=T, **rules)) == 0
        assert allocate(importance[:, 0], size=6, block=2**30, adaptive=adaptive).tolist() == [6]
    assert jnp.isfinite(start(k, v, importance, size=6, block=2**31 - 1).memory.keys).all()


def test_more_levels_than_the_length_has_bits(key: jax.Array) -> None:
    k, v, importance = (jnp.concatenate([x] * 6) for x in arrays(key))
    many, few = (run(k, v, importance, size=s, block=2, levels=n) for n, s in ((40, 79 + 6), (7, 13 + 6)))
    there = [np.asarray(m.log_mass[:, 0]) > -np.inf for m in (many, few)]
    np.testing.assert_allclose(many.values[there[0], 0], few.values[there[1], 0], atol=1e-6)


@pytest.mark.parametrize("gate", [None, 0.5])
def test_under_x64_dtypes_of_keys_and_scores_may_differ(gate: float | None) -> None:
    with jax.enable_x64(True):
        k, v, importance = (x.astype(jnp.float32) for x in arrays(jax.random.key(0)))
        wide = [x.astype(jnp.float64) for x in (k, v, importance)]
        rules = {"size": 8, "block": 3, "half_life": 5.0, "gate": gate}
        for args in ((k, v, wide[2]), (wide[0], wide[1], importance)):
            memory = run(*args, **rules)
            assert memory.log_mass.dtype == args[0].dtype
            assert apart(memory, run(*wide, **rules)) < 1e-5


def test_a_batch_over_devices_with_half_precision_and_padding(key: jax.Array) -> None:
    k, v, importance = (jnp.stack([x] * 8).astype(jnp.bfloat16) for x in arrays(key))
    mask = jnp.arange(T)[None] < jnp.arange(10, 18)[:, None]

    def walk(k: Any, v: Any, importance: Any, mask: Any) -> Any:
        state = stream(k[:, :5], v[:, :5], importance[:, :5], size=6, block=2, mask=mask[:, :5])
        return update(state, k[:, 5:], v[:, 5:], importance[:, 5:], mask=mask[:, 5:])

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    spec = PartitionSpec("batch")
    split = jax.jit(jax.shard_map(walk, mesh=mesh, in_specs=spec, out_specs=spec))(k, v, importance, mask)
    whole = jax.jit(walk)(k, v, importance, mask)
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True))
    one_by_one = jax.jit(jax.vmap(walk))(*(x[:, None] for x in (k, v, importance, mask)))
    assert jnp.array_equal(one_by_one.position[:, 0], whole.position)


def test_a_stream_may_be_donated(key: jax.Array) -> None:
    k, v, importance = arrays(key)
    step = jax.jit(update, donate_argnums=0)
    state = step(step(stream(k, v, importance, size=5), k, v, importance), k[:0], v[:0], importance[:0])
    assert int(state.length) == 2 * T


WRONG = [
    (lambda k, v, i: compress(k, v, i, size=4, shown=2.5), TypeError, "shown: expected a whole number"),
    (lambda k, v, i: compress(k, v, i, size=4, shown=-1), ValueError, "shown: -1 is outside"),
    (lambda k, v, i: compress(k, v, i, size=4, shown=i[0, 0]), TypeError, "shown: expected an integer dtype"),
    (lambda k, v, i: compress(k, v, i, size=4, shown=jnp.array([3, 4])), ValueError, r"shown: expected shape \(\) or"),
    (lambda k, v, i: compress(k, v, i, ratio=i[0, 0]), TypeError, "ratio: expected a number of Python"),
    (lambda k, v, i: compress(k, v, i, size=4, gate=i[0, 0]), TypeError, "gate: expected a number of Python"),
    (lambda k, v, i: compress(k, v, i, size=4, temper=i[0, 0]), TypeError, "temper: expected a number of Python"),
    (lambda k, v, i: stream(k, v, i, size=4, temper=i[0, 0]), TypeError, "temper: expected a number of Python"),
    (lambda k, v, i: stream(k, v, i, size=4, half_life=i[0, 0]), TypeError, "half_life: expected a number of Python"),
    (lambda k, v, i: stream(k, v, i, size=jnp.int32(4)), TypeError, "size: expected a whole number"),
    (lambda k, v, i: allocate(i, size=i[0, 0]), TypeError, "size: expected an integer dtype"),
    (lambda k, v, i: allocate(i, size=jnp.array([3, 4])), ValueError, "size: expected one number"),
    (lambda k, v, i: attend(k[None], compress(k, v, i, size=4)), ValueError, r"memory: leading dims \(\) disagree"),
    (lambda k, v, i: attend(k.astype(jnp.bfloat16), compress(k, v, i, size=4)), TypeError, "memory: dtype float32"),
    (lambda k, v, i: attend(k, Memory(keys=k, values=v[None], log_mass=i)), ValueError, "values: leading dims"),
    (
        lambda k, v, i: attend(k[:, :0], Memory(keys=k[:, :0], values=v[:, :0], log_mass=i[:, :0])),
        ValueError,
        "memory: 0 heads do not divide the 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_what_is_wrong_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        jax.eval_shape(call, *jax.eval_shape(arrays, jax.random.key(0)))
