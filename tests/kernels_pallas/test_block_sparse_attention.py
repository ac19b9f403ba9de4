"""block_sparse_attention: every implementation against float64, its gradients, laws, and the memory that it is for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from kernels_pallas import all_blocks, block_sparse_attention, causal_blocks, join_blocks, window_blocks

from .attention_truth import arguments, distance, some_blocks, truth

IMPLEMENTATIONS = ("reference", "xla")
SEGMENTS = np.repeat([0, 3, -1, 1], [11, 9, 6, 11]).astype(np.int32)
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 7},
    "window both ways, from the 3rd": {"window": 5, "offset": 3},
    "segments": {"causal": True, "segments": SEGMENTS},
    "lengths": {"lengths": np.int32(22)},
    "softcap": {"softcap": 1.5, "causal": True},
    "sinks": {"sinks": np.linspace(-2, 2, 4).astype(np.float32), "window": 6},
    "all": {
        "causal": True,
        "window": 20,
        "segments": SEGMENTS,
        "lengths": np.int32(33),
        "softcap": 2.0,
        "scale": 0.7,
        "sinks": np.linspace(-2, 2, 4).astype(np.float32),
    },
}


def as_arrays(rules: dict[str, Any]) -> dict[str, Any]:
    return {name: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x for name, x in rules.items()}


WITH_HEADS = [(name, (1, 2, 4)[i % 3]) for i, name in enumerate(RULES)] + [("all", 1), ("all", 2), ("sinks", 4)]


@pytest.mark.parametrize(("name", "heads"), WITH_HEADS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_float64(implementation: Any, name: str, heads: int) -> None:
    q, k, v = arguments(e=5)
    blocks = some_blocks(heads, 5, 4, 7, seed=heads)
    rules = RULES[name]
    run = partial(block_sparse_attention, block_q=8, block_k=6, implementation=implementation, **as_arrays(rules))
    y, logsumexp = jax.jit(run)(q, k, v, blocks)
    assert y.dtype == logsumexp.dtype == jnp.float32
    expected = truth(q, k, v, blocks, block_q=8, block_k=6, **rules)
    np.testing.assert_allclose(y, expected[0], atol=2e-6)
    np.testing.assert_allclose(logsumexp, expected[1], atol=2e-6)


@pytest.mark.parametrize(("block_q", "block_k"), [(1, 1), (64, 64), (5, 13), (37, 3)])
def test_any_size_of_block_is_dense_attention_when_all_are_listed(block_q: int, block_k: int) -> None:
    q, k, v = arguments(37, 29)
    blocks = all_blocks(37, 29, block_q=block_q, block_k=block_k)
    y, logsumexp = jax.jit(partial(block_sparse_attention, block_q=block_q, block_k=block_k))(q, k, v, blocks)
    expected = truth(q, k, v)
    np.testing.assert_allclose(y, expected[0], atol=2e-6)
    np.testing.assert_allclose(logsumexp, expected[1], atol=2e-6)


@pytest.mark.parametrize(("name", "heads"), WITH_HEADS)
def test_gradients_are_those_of_the_reference(name: str, heads: int) -> None:
    q, k, v = arguments(batch=(2,), e=5)
    rules = as_arrays(RULES[name])
    rules = {key: jnp.broadcast_to(x, (2, *x.shape)) if "seg" in key or "len" in key else x for key, x in rules.items()}
    sinks = rules.pop("sinks", jnp.zeros(4))

    def total(q: Any, k: Any, v: Any, sinks: Any, implementation: Any, blocks: Any) -> jax.Array:
        given = {"sinks": sinks} if "sinks" in RULES[name] else {}
        out = block_sparse_attention(
            q, k, v, blocks, block_q=8, block_k=6, implementation=implementation, **rules, **given
        )
        return jnp.sum(jnp.sin(out.y)) + jnp.sum(jnp.cos(jnp.where(out.logsumexp == -jnp.inf, 0, out.logsumexp)))

    slope = jax.jit(jax.grad(total, (0, 1, 2, 3)), static_argnums=4)
    blocks = some_blocks(heads, 5, 4, 7, seed=heads)
    actual, expected = (slope(q, k, v, sinks, way, blocks) for way in ("xla", "reference"))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=2e-6 * max(1.0, float(jnp.abs(e).max())))


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v = arguments(9, heads=2, shared=1, d=3)
    blocks = some_blocks(2, 3, 2, 3)

    def total(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> tuple[jax.Array, ...]:
        return block_sparse_attention(
            q, k, v, blocks, block_q=3, block_k=3, causal=True, softcap=2.0, sinks=sinks, implementation="xla"
        )

    with jax.enable_x64(True):
        wide = *(x.astype(jnp.float64) for x in (q, k, v)), jnp.array([0.3, -0.4], jnp.float64)
        check_grads(jax.jit(total), wide, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_a_row_that_sees_nothing_is_zero_with_zero_gradients() -> None:
    q, k, v = arguments(16, heads=2, shared=2)
    blocks = np.array([[[0, 0], [-1, 9], [1, 3], [2, -1]]], np.int32)  # the second list is empty, the third hidden half

    def total(q: Any, k: Any, v: Any, implementation: Any) -> Any:
        out = block_sparse_attention(
            q, k, v, blocks, block_q=4, block_k=4, causal=True, window=3, implementation=implementation
        )
        return jnp.sum(jnp.sin(out.y)) + jnp.sum(out.logsumexp), out  # the slope of -inf is 1 here

    for implementation in IMPLEMENTATIONS[1:]:
        (_, out), slopes = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True), static_argnums=3)(
            q, k, v, implementation
        )
        nothing = np.asarray(out.logsumexp) == -np.inf
        assert nothing[4:8].all()
        assert not nothing[:4].any()
        assert not np.asarray(out.y)[nothing].any()
        assert not np.asarray(slopes[0])[nothing].any()
        assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes)


@pytest.mark.parametrize("name", ["lengths", "segments"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_may_hold_nan(implementation: Any, name: str) -> None:
    arrays = arguments(batch=(2,))
    lengths = jnp.array([37, 20])
    real = np.arange(37)[None, :] < np.asarray(lengths)[:, None]
    mask = {"lengths": lengths} if name == "lengths" else {"segments": jnp.where(real, 2, -5)}
    sinks = jnp.zeros(4)
    poisoned = [jnp.where(real[..., None, None], x, jnp.nan) for x in arrays]
    blocks = causal_blocks(37, 37, block_q=8, block_k=8)

    def total(q: Any, k: Any, v: Any, weight: Any) -> Any:
        out = block_sparse_attention(
            q, k, v, blocks, block_q=8, block_k=8, causal=True, sinks=sinks, implementation=implementation, **mask
        )
        return jnp.sum(jnp.where(real[..., None, None], out.y, 0) * weight), out

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
    (_, out), slopes = run(*poisoned, jnp.ones_like(arrays[0]))
    (_, clean), clean_slopes = run(*arrays, jnp.ones_like(arrays[0]))
    np.testing.assert_array_equal(out.y, clean.y)
    assert not np.asarray(out.y)[1, 20:].any()
    assert (np.asarray(out.logsumexp)[1, 20:] == -np.inf).all()
    for slope, expected in zip(slopes, clean_slopes, strict=True):
        np.testing.assert_array_equal(slope, expected)
        assert not np.asarray(slope)[1, 20:].any()


def test_far_below_zero_in_padded_batches_the_gradients_stay_finite_and_right() -> None:
    """cuDNN's backward gives NaN here: a mask, T % 128 = 64, log-sum-exp below -88.7."""
    q, k, v = arguments(192, heads=2, shared=2, d=16, batch=(2,))
    q, k = 9 * jnp.abs(q), -9 * jnp.abs(k)
    lengths = jnp.array([192, 100])
    blocks = causal_blocks(192, 192, block_q=64, block_k=64)

    def total(q: Any, k: Any, v: Any, implementation: Any) -> Any:
        out = block_sparse_attention(
            q, k, v, blocks, block_q=64, block_k=64, causal=True, lengths=lengths, implementation=implementation
        )
        return jnp.sum(jnp.sin(out.y)), out.logsumexp

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, logsumexp), actual = run(q, k, v, "xla")
    (_, _), expected = run(q, k, v, "reference")
    assert float(jnp.min(jnp.where(logsumexp == -jnp.inf, 0, logsumexp))) < -120
    assert float(jnp.median(logsumexp[0])) < -88.7
    for a, e in zip(actual, expected, strict=True):
        assert distance(a, e) < 2e-5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_as_near_as_the_reference(dtype: Any) -> None:
    q, k, v = arguments(64, d=32, dtype=dtype)
    blocks = causal_blocks(64, 64, block_q=16, block_k=16)
    run = partial(block_sparse_attention, block_q=16, block_k=16, causal=True)
    expected = truth(q, k, v, causal=True)
    errors = {}
    for way in IMPLEMENTATIONS:
        y, logsumexp = jax.jit(partial(run, implementation=way))(q, k, v, blocks)
        assert (y.dtype, logsumexp.dtype) == (dtype, jnp.float32)
        errors[way] = distance(y, expected[0])
        assert distance(logsumexp, expected[1]) < 1e-6
    assert errors["xla"] <= max(1.5 * errors["reference"], 2e-3)


def test_equal_scores_are_shared_equally() -> None:
    q, k, v = jnp.zeros((12, 1, 4)), jnp.ones((12, 1, 4)), jnp.arange(12.0).reshape(12, 1, 1)
    out = block_sparse_attention(q, k, v, np.array([[[2, 0], [1, 1]]]), block_q=6, block_k=4)
    np.testing.assert_allclose(out.y[:, 0, 0], [5.5] * 6 + [5.5] * 6, atol=1e-6)
    np.testing.assert_allclose(out.logsumexp[:, 0], np.log([8] * 6 + [4] * 6), atol=1e-6)


def test_order_and_repeats_in_a_list_change_nothing() -> None:
    q, k, v = arguments()
    once = np.array([[[0, 3, 5, -1, -1]] * 5], np.int32)
    run = jax.jit(partial(block_sparse_attention, block_q=8, block_k=6))
    expected = run(q, k, v, once)
    for other in ([5, 3, 0, 7, -2], [3, 5, 5, 0, 3]):
        for a, e in zip(run(q, k, v, np.array([[other] * 5], np.int32)), expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_lists_have_what_their_rules_see_and_no_block_more() -> None:
    for length, keys, size_q, size_k, offset in [(37, 37, 8, 6, 0), (10, 50, 4, 8, 40), (64, 64, 16, 16, 0)]:
        at, key = np.arange(length)[:, None] + offset, np.arange(keys)[None, :]
        sizes = {"block_q": size_q, "block_k": size_k}
        cases = [
            (all_blocks(length, keys, **sizes), np.ones((length, keys), bool)),
            (causal_blocks(length, keys, **sizes, offset=offset), key <= at),
        ]
        for causal in (True, False):
            lists = window_blocks(length, keys, **sizes, window=9, causal=causal, offset=offset)
            cases.append((lists, (np.abs(key - at) < 9) & ((key <= at) | (not causal))))
        for lists, seen in cases:
            for i, row in enumerate(lists[0]):
                found = np.unique(np.nonzero(seen[i * size_q : (i + 1) * size_q])[1] // size_k)
                np.testing.assert_array_equal(row[row >= 0], found)
    joined = join_blocks(np.zeros((2, 1, 3, 1), np.int32), window_blocks(6, 6, block_q=2, block_k=2, window=1))
    assert joined.shape == (2, 1, 3, 2)


def test_eager_jit_vmap_scan_and_checkpoint_agree() -> None:
    q, k, v = arguments(21, batch=(3,))
    blocks = jnp.stack([some_blocks(2, 3, 3, 4, seed=i) for i in range(3)])
    lengths = jnp.array([21, 9, 0])

    def one(q: Any, k: Any, v: Any, blocks: Any, lengths: Any) -> Any:
        return block_sparse_attention(q, k, v, blocks, block_q=8, block_k=6, causal=True, lengths=lengths).y

    def slope(way: Any) -> Any:
        return jax.jit(jax.grad(lambda q, k, v: jnp.sum(jnp.sin(way(q, k, v))), (0, 1, 2)))(q, k, v)

    ways = {
        "batch": lambda q, k, v: one(q, k, v, blocks, lengths),
        "vmap": lambda q, k, v: jax.vmap(one)(q, k, v, blocks, lengths),
        "scan": lambda q, k, v: jax.lax.map(lambda a: one(*a), (q, k, v, blocks, lengths)),
        "checkpoint": jax.checkpoint(lambda q, k, v: one(q, k, v, blocks, lengths)),
    }
    expected, expected_slope = one(q, k, v, blocks, lengths), slope(ways["batch"])
    for way in ways.values():
        np.testing.assert_allclose(jax.jit(way)(q, k, v), expected, atol=2e-6)
        for a, e in zip(slope(way), expected_slope, strict=True):
            np.testing.assert_allclose(a, e, atol=2e-6)


def test_gradients_are_the_same_over_eight_devices() -> None:
    q, k, v = arguments(16, batch=(8,))
    blocks, sinks = some_blocks(1, 2, 3, 4), jnp.array([0.1, -0.3, 0.5, 0.0])
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def loss(q: Any, k: Any, v: Any, sinks: Any) -> jax.Array:
        out = block_sparse_attention(q, k, v, blocks, block_q=8, block_k=4, sinks=sinks)
        return jnp.sum(jnp.sin(out.y)) + jnp.sum(jnp.sin(out.logsumexp))

    def over_devices(*args: Any) -> jax.Array:
        return jax.lax.psum(loss(*args), "batch")

    split = jax.shard_map(over_devices, mesh=mesh, in_specs=(batch, batch, batch, whole), out_specs=whole)
    actual = jax.jit(jax.grad(split, (0, 1, 2, 3)))(q, k, v, sinks)
    expected = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, v, sinks)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


def test_memory_grows_with_the_length_forward_and_backward() -> None:
    def bytes_of(length: int, implementation: Any) -> int:
        shapes = [jax.ShapeDtypeStruct((length, 2, 16), jnp.float32)] * 3
        blocks = causal_blocks(length, length, block_q=64, block_k=64)

        def loss(q: Any, k: Any, v: Any) -> jax.Array:
            out = block_sparse_attention(
                q, k, v, blocks, block_q=64, block_k=64, causal=True, implementation=implementation
            )
            return jnp.sum(out.y) + jnp.sum(out.logsumexp)

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of(2048, "reference") > 2048**2 * 2 * 4
    assert bytes_of(2048, "xla") < 2048**2 * 2 * 4 / 10
    assert bytes_of(4096, "xla") < 2.2 * bytes_of(2048, "xla")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_is_empty_or_zero(implementation: Any, shape: tuple[int, int]) -> None:
    q, k, v = arguments(*shape)
    blocks = all_blocks(*shape, block_q=2, block_k=2)
    out = block_sparse_attention(q, k, v, blocks, block_q=2, block_k=2, implementation=implementation)
    assert out.y.shape == q.shape
    assert not np.asarray(out.y).any()
    assert (np.asarray(out.logsumexp) == -np.inf).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": jnp.zeros((37, 3, 8))}, ValueError, "k: 2 heads do not divide the 3 heads of q"),
        ({"k": jnp.zeros((37, 2, 7))}, ValueError, "k: dim D=7 disagrees with D=8 of q"),
        ({"v": jnp.zeros((36, 2, 8))}, ValueError, r"v: dims S, K = \(36, 2\) disagree with \(37, 2\) of k"),
        ({"v": jnp.zeros((37, 2, 8), jnp.bfloat16)}, TypeError, "v: dtype bfloat16 disagrees with float32 of q"),
        ({"q": jnp.zeros((37, 4, 8), jnp.int32)}, TypeError, "q: expected a floating dtype, got int32"),
        (
            {"blocks": np.zeros((1, 4, 2), np.int32)},
            ValueError,
            r"blocks: expected dims \[..., 1 or 2 or 4 heads, 5 blo",
        ),
        ({"blocks": np.zeros((3, 5, 2), np.int32)}, ValueError, "blocks: expected dims"),
        ({"blocks": np.zeros((2, 1, 5, 2), np.int32)}, ValueError, r"blocks: leading dims \(2,\) are neither"),
        ({"blocks": np.zeros((1, 5, 2), np.float32)}, TypeError, "blocks: expected an integer dtype, got float32"),
        ({"block_q": 0}, ValueError, "block_q: expected at least 1, got 0"),
        ({"block_k": 2.0}, TypeError, "block_k: expected a whole number of Python"),
        ({"window": 0}, ValueError, "window: expected at least 1, got 0"),
        ({"softcap": -1.0}, ValueError, "softcap: expected a positive number"),
        ({"scale": jnp.ones(())}, TypeError, "scale: expected a number of Python"),
        ({"scale": float("nan")}, ValueError, "scale: expected a finite number"),
        ({"segments": jnp.zeros(36, jnp.int32)}, ValueError, r"segments: expected shape \(37,\), got \(36,\)"),
        ({"key_segments": jnp.zeros(37, jnp.int32)}, ValueError, "key_segments: needs segments"),
        ({"lengths": jnp.zeros(())}, TypeError, "lengths: expected an integer dtype, got float32"),
        ({"sinks": jnp.zeros(3)}, ValueError, r"sinks: expected shape \(4,\), one a head of q, got \(3,\)"),
        ({"implementation": "triton"}, NotImplementedError, "'triton' is not one of 'auto', 'xla', 'mosaic_gpu'"),
    ],
)
def test_mistakes_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k, v = arguments()
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "blocks": some_blocks(1, 5, 2, 7), "block_q": 8, "block_k": 6}
    with pytest.raises(error, match=message):
        block_sparse_attention(**(given | change))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_number_of_any_integer_dtype_that_is_no_block_is_none(implementation: Any) -> None:
    q, k, v = arguments(6, 6)
    lists = np.array([[[0, -1], [0, 1], [1, 2]]])

    def by(lists: Any) -> Any:
        return block_sparse_attention(q, k, v, lists, block_q=2, block_k=2, implementation=implementation).y

    expected = by(np.where(lists == 1, -1, lists))
    np.testing.assert_allclose(by(np.where(lists == 1, 2**32 + 1, lists)), expected, atol=1e-6)
    np.testing.assert_allclose(by(np.where(lists == 1, 2**31, lists).astype(np.uint32)), expected, atol=1e-6)
    np.testing.assert_allclose(by(np.where(lists == 1, -128, lists).astype(np.int8)), expected, atol=1e-6)


def test_mistakes_of_lists_name_the_argument() -> None:
    for change, error, message in (
        ({"block_q": 0}, ValueError, "block_q: expected at least 1, got 0"),
        ({"block_k": 2.0}, TypeError, "block_k: expected a whole number of Python, which is fixed, got 2.0"),
        ({"window": 0}, ValueError, "window: expected at least 1, got 0"),
        ({"length": -6}, ValueError, "length: expected at least 0, got -6"),
    ):
        with pytest.raises(error, match=message):
            window_blocks(**({"length": 6, "keys": 6, "block_q": 2, "block_k": 2, "window": 2} | change))
