"""matmul_topk and group_max: against NumPy, ties and masks, the gradient, and the memory that it is for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from kernels_pallas import group_max, matmul_topk
from kernels_pallas.add_norm import Config as NormConfig
from kernels_pallas.matmul_topk import xla
from kernels_pallas.matmul_topk.xla import best_groups

IMPLEMENTATIONS = ("reference", "xla")


@pytest.fixture(autouse=True)
def _by_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few queries too."""
    monkeypatch.setattr(xla, "FEW", 0)


def whole(seed: int, *shape: int, most: int = 3, dtype: Any = jnp.float32) -> jax.Array:
    """Small integers, whose sums are exact in any order: there are many ties."""
    return jnp.asarray(np.random.default_rng(seed).integers(-most, most + 1, shape), dtype)


def real(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def sorted_scores(z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By score, ties by index, -inf and NaN as -1."""
    z = np.where(np.isnan(z), -np.inf, z)
    order = np.argsort(-z, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(z, order, axis=1)
    return scores, np.where(np.isneginf(scores), -1, order)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("q", "n", "d", "k", "group", "columns"),
    [
        (12, 1000, 3, 4, 16, 128),
        (8, 1001, 2, 7, 8, 96),
        (9, 997, 1, 1, 64, 256),
        (2, 70, 4, 70, 8, 16),
        (1, 997, 2, 3, 16, 64),
    ],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_go_to_the_lower_index(
    implementation: Any, q: int, n: int, d: int, k: int, group: int, columns: int, dtype: Any
) -> None:
    queries, keys = whole(1, q, d, dtype=dtype), whole(2, n, d, dtype=dtype)
    function = partial(matmul_topk, k=k, implementation=implementation, group=group, columns=columns)
    out = jax.jit(function)(queries, keys)
    scores, indices = sorted_scores(np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T, k)
    assert out.scores.dtype == jnp.float32
    assert out.indices.dtype == jnp.int32
    np.testing.assert_array_equal(out.scores, scores)
    np.testing.assert_array_equal(out.indices, indices)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_are_those_of_float64(metric: Any, dtype: Any) -> None:
    queries, keys, bias = real(0, 6, 24).astype(dtype), real(1, 1500, 24).astype(dtype), real(2, 1500)
    out = jax.jit(partial(matmul_topk, k=5, metric=metric, group=16, columns=256))(queries, keys, bias=bias)
    a, b = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    z = a @ b.T if metric == "ip" else -((a[:, None] - b) ** 2).sum(axis=2)
    scores, indices = sorted_scores(z + np.asarray(bias, np.float64), 5)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.scores, scores, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_masked_may_hold_anything(implementation: Any) -> None:
    queries, keys = whole(1, 4, 3), whole(2, 300, 3)
    valid = jnp.asarray(np.random.default_rng(3).random(300) < 0.5)
    lengths = jnp.array([300, 150, 3, 0])
    poisoned = jnp.where(valid[:, None], keys, jnp.nan)
    function = partial(matmul_topk, k=4, implementation=implementation, group=8, columns=64)
    out = jax.jit(function)(queries, poisoned, valid=valid, lengths=lengths)
    z = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T
    seen = np.asarray(valid) & (np.arange(300) < np.asarray(lengths)[:, None])
    scores, indices = sorted_scores(np.where(seen, z, -np.inf), 4)
    np.testing.assert_array_equal(out.scores, scores)
    np.testing.assert_array_equal(out.indices, indices)
    assert np.all(indices[3] == -1)
    assert np.all(np.isneginf(scores[3]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_score_that_is_not_a_number_is_not_found(implementation: Any) -> None:
    queries, keys = whole(1, 3, 2).at[2].set(jnp.nan), whole(2, 200, 2).at[7].set(jnp.nan).at[11].set(jnp.inf)
    out = jax.jit(partial(matmul_topk, k=3, implementation=implementation, group=8, columns=32))(queries, keys)
    with np.errstate(invalid="ignore"):
        z = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T
    scores, indices = sorted_scores(z, 3)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(out.scores, scores)
    assert 7 not in np.asarray(out.indices)
    assert np.all(np.asarray(out.indices[2]) == -1)


@pytest.mark.parametrize("count", [40, 1000, 4097, 20_000])
def test_the_best_groups_of_groups_are_the_best(count: int) -> None:
    most = np.random.default_rng(0).integers(0, 30, (count, 6)).astype(np.float32)
    most[:, 5] = -np.inf
    expected = np.sort(np.argsort(-most, axis=0, kind="stable")[:3], axis=0)
    np.testing.assert_array_equal(jax.jit(best_groups, static_argnums=1)(jnp.asarray(most), 3), expected)


@pytest.mark.parametrize(("n", "group", "columns"), [(1000, 16, 128), (997, 8, 100), (5, 64, 8192), (130, 1, 7)])
def test_group_max_is_that_of_the_scores(n: int, group: int, columns: int) -> None:
    queries, keys, bias = whole(1, 7, 3), whole(2, n, 3), whole(4, n)
    valid, lengths = jnp.arange(n) % 3 > 0, jnp.arange(7) * 150
    poisoned = jnp.where(valid[:, None], keys, jnp.nan)
    z = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T + np.asarray(bias, np.float64)
    z = np.where(np.asarray(valid) & (np.arange(n) < np.asarray(lengths)[:, None]), z, -np.inf)
    expected = [z[:, start : start + group].max(axis=1) for start in range(0, n, group)]
    for implementation in IMPLEMENTATIONS:
        function = partial(group_max, group=group, columns=columns, implementation=implementation)
        out = jax.jit(function)(queries, poisoned, bias=bias, valid=valid, lengths=lengths)
        np.testing.assert_array_equal(out, np.stack(expected, axis=1))


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_gradient_is_that_of_the_reference(metric: Any) -> None:
    queries, keys, bias = real(0, 5, 8), real(1, 600, 8), real(2, 600)
    valid, lengths = jnp.arange(600) % 4 > 0, jnp.array([600, 300, 2, 0, 600])

    def loss(queries: jax.Array, keys: jax.Array, bias: jax.Array, implementation: Any) -> jax.Array:
        options = {"bias": bias, "valid": valid, "lengths": lengths, "implementation": implementation}
        out = matmul_topk(queries, keys, 6, metric=metric, group=8, columns=64, **options)
        return jnp.sum(jnp.sin(jnp.where(out.indices >= 0, out.scores, 0)))

    slope = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    actual, expected = slope(queries, keys, bias, "xla"), slope(queries, keys, bias, "reference")
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))
    poisoned = jnp.where(valid[:, None], keys, jnp.nan)
    for a, e in zip(slope(queries, poisoned, bias, "xla"), actual, strict=True):
        np.testing.assert_array_equal(a, e)


def test_gradient_of_the_maxima_is_that_of_the_reference() -> None:
    queries, keys, bias = real(0, 5, 8), real(1, 203, 8), real(2, 203)
    valid = jnp.arange(203) % 4 > 0

    def loss(queries: jax.Array, keys: jax.Array, bias: jax.Array, implementation: Any) -> jax.Array:
        out = group_max(queries, keys, 8, bias=bias, valid=valid, columns=64, implementation=implementation)
        return jnp.sum(jnp.sin(out))

    slope = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    actual, expected = slope(queries, keys, bias, "xla"), slope(queries, keys, bias, "reference")
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))
    poisoned = jnp.where(valid[:, None], keys, jnp.nan)
    for a, e in zip(slope(queries, poisoned, bias, "xla"), actual, strict=True):
        np.testing.assert_array_equal(a, e)


def test_gradient_is_that_of_differences() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        queries, keys = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.normal(size=(200, 4)))

        def loss(queries: jax.Array, keys: jax.Array) -> jax.Array:
            found = matmul_topk(queries, keys, 3, group=8, columns=32).scores
            return jnp.sum(jnp.sin(found)) + jnp.sum(jnp.cos(group_max(queries, keys, 8, columns=32)))

        check_grads(jax.jit(loss), (queries, keys), order=1, modes=["rev"], eps=1e-6)


def test_it_is_the_same_under_transformations() -> None:
    queries, keys = real(0, 4, 6, 8), real(1, 4, 200, 8)
    function = partial(matmul_topk, k=3, group=8, columns=64)
    mapped = jax.jit(jax.vmap(function))(queries, keys)
    scanned = jax.jit(lambda *a: jax.lax.map(lambda x: function(*x), a))(queries, keys)
    for i in range(4):
        alone = function(queries[i], keys[i])
        for out in (mapped, scanned):
            np.testing.assert_array_equal(out.indices[i], alone.indices)
            np.testing.assert_allclose(out.scores[i], alone.scores, rtol=1e-6)
    shared = jax.jit(jax.vmap(function, (0, None)))(queries, keys[0])
    np.testing.assert_array_equal(shared.indices[1], function(queries[1], keys[0]).indices)

    def loss(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(function(queries, keys).scores))

    each = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(queries, keys)
    total = jax.jit(
        jax.grad(lambda q, k: jnp.sum(jax.vmap(jax.checkpoint(loss))(q, k)), (0, 1)),
    )(queries, keys)
    for a, e in zip(each, total, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_queries_in_parts_are_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, lengths = whole(0, 23, 3), whole(1, 500, 3), jnp.arange(23) * 20
    expected = matmul_topk(queries, keys, 3, lengths=lengths, implementation="reference")
    monkeypatch.setattr(xla, "ROWS", 5)
    monkeypatch.setattr(xla, "AGAIN", 2 * 3 * 8 * 3)  # two queries at a time
    out = jax.jit(partial(matmul_topk, k=3, group=8, columns=64))(queries, keys, lengths=lengths)
    np.testing.assert_array_equal(out.indices, expected.indices)
    np.testing.assert_array_equal(out.scores, expected.scores)


def test_a_few_queries_are_not_found_by_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = whole(0, 7, 3), whole(1, 500, 3)
    expected = matmul_topk(queries, keys, 3, implementation="reference")
    monkeypatch.setattr(xla, "FEW", 8)
    monkeypatch.setattr(xla, "best_groups", None)
    out = jax.jit(partial(matmul_topk, k=3, group=8, columns=64))(queries, keys)
    np.testing.assert_array_equal(out.indices, expected.indices)


def test_no_array_of_all_scores_exists() -> None:
    q, n, d = 256, 65_536, 16

    def bytes_of(implementation: Any, dtype: Any = jnp.float32) -> int:
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((q, d), (n, d))]

        def loss(queries: jax.Array, keys: jax.Array) -> jax.Array:
            return jnp.sum(matmul_topk(queries, keys, 4, implementation=implementation, columns=1024).scores)

        return jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of("reference") >= q * n * 4
    assert bytes_of("xla") < q * n * 4 / 10


def test_keys_of_half_precision_are_not_made_wide() -> None:
    q, n, d = 16, 65_536, 64
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((q, d), (n, d))]
    for function in (partial(matmul_topk, k=4, columns=1024), partial(group_max, columns=1024)):
        compiled = jax.jit(function).lower(*shapes).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * n * d * 4


def test_nothing_to_ask_finds_nothing() -> None:
    out = matmul_topk(jnp.zeros((0, 4)), jnp.ones((100, 4)), 3)
    assert out.scores.shape == out.indices.shape == (0, 3)
    assert group_max(jnp.zeros((0, 4)), jnp.ones((100, 4)), 8, columns=16).shape == (0, 13)


def test_mistakes_name_the_argument() -> None:
    queries, keys = jnp.zeros((2, 4)), jnp.zeros((10, 4))
    for options, error, message in (
        ({"k": 11}, ValueError, "k: expected 1 to N=10, the number of keys, got 11"),
        ({"k": 0}, ValueError, "k: expected 1 to N=10"),
        ({"k": 1, "bias": jnp.zeros(9)}, ValueError, r"bias: expected shape \(10,\), one a row of keys, got \(9,\)"),
        ({"k": 1, "valid": jnp.zeros(10)}, TypeError, "valid: expected a dtype of kind bool, got float32"),
        ({"k": 1, "lengths": jnp.zeros(2)}, TypeError, "lengths: expected a dtype of kind integer, got float32"),
        ({"k": 1, "metric": "cosine"}, ValueError, "metric: expected 'ip' or 'l2', got 'cosine'"),
        ({"k": 1, "group": 0}, ValueError, "group: expected at least 1, got 0"),
        ({"k": 1, "implementation": "triton"}, NotImplementedError, "'triton' is not one of 'auto', 'xla'"),
    ):
        with pytest.raises(error, match=message):
            matmul_topk(queries, keys, **options)
    with pytest.raises(ValueError, match="keys: dim D=3 disagrees with D=4 of queries"):
        matmul_topk(queries, keys[:, 1:], 1)
    with pytest.raises(TypeError, match="queries: expected a floating dtype, got int32"):
        matmul_topk(queries.astype(jnp.int32), keys, 1)
    with pytest.raises(ValueError, match="keys: expected at least 1, got 0"):
        group_max(queries, keys[:0])


def test_gradients_are_the_same_over_eight_devices() -> None:
    queries, keys = real(0, 40, 8), real(1, 200, 8)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, all_of = PartitionSpec("batch"), PartitionSpec()

    def loss(queries: jax.Array, keys: jax.Array) -> jax.Array:
        found = matmul_topk(queries, keys, 3, group=8, columns=64, valid=jnp.arange(200) < 190).scores
        return jnp.sum(jnp.sin(found)) + jnp.sum(jnp.cos(group_max(queries, keys, 8, columns=64)))

    def over_devices(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.psum(loss(queries, keys), "batch")

    split = jax.shard_map(over_devices, mesh=mesh, in_specs=(batch, all_of), out_specs=all_of)
    actual = jax.jit(jax.grad(split, (0, 1)))(queries, keys)
    expected = jax.jit(jax.grad(loss, (0, 1)))(queries, keys)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_zeros_of_both_signs_are_ties(implementation: Any) -> None:
    queries, bias = jnp.zeros((9, 1)), jnp.where(jnp.arange(64) % 5 == 4, 0.0, -0.0)
    keys = jnp.where(jnp.arange(64) % 5 == 4, 1.0, -1.0)[:, None]
    for columns in (8, 64):
        out = matmul_topk(queries, keys, 3, bias=bias, group=2, columns=columns, implementation=implementation)
        assert out.indices.tolist() == [[0, 1, 2]] * 9


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_at_no_finite_distance_finds_nothing(implementation: Any) -> None:
    queries, keys = real(0, 3, 4), real(1, 9, 4)
    queries = queries.at[0, 0].set(jnp.nan).at[1, 0].set(jnp.inf)
    out = matmul_topk(queries, keys, 2, metric="l2", implementation=implementation)
    assert out.scores[:2].tolist() == [[-np.inf, -np.inf]] * 2
    assert out.indices[:2].tolist() == [[-1, -1]] * 2
    alone = matmul_topk(queries[2:], keys, 2, metric="l2", implementation=implementation)
    assert out.indices[2].tolist() == alone.indices[0].tolist()

    def total(queries: jax.Array) -> jax.Array:  # of two that are asked for one is there
        options: dict[str, Any] = {"valid": jnp.arange(9) < 1, "metric": "l2", "implementation": implementation}
        return jnp.sum(matmul_topk(queries, keys, 2, **options).scores)

    np.testing.assert_allclose(jax.grad(total)(queries[2:]), -2 * (queries[2:] - keys[:1]), rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths_of_every_integer_dtype_mean_the_same(implementation: Any) -> None:
    queries, keys = real(0, 3, 4), real(1, 300, 4)

    def by(lengths: Any) -> list[list[int]]:
        return matmul_topk(queries, keys, 2, lengths=lengths, implementation=implementation).indices.tolist()

    assert by(jnp.array([100, -3, 127], jnp.int8)) == by(jnp.array([100, 0, 127]))
    assert by(np.array([2**32 - 1, 2**31, 5], np.uint32)) == by(jnp.array([300, 300, 5]))
    assert by(np.array([2**32, 2**40 + 1, -(2**40)])) == by(jnp.array([300, 300, 0]))


def test_what_is_fixed_is_named_when_it_is_not() -> None:
    queries, keys = real(0, 3, 4), real(1, 9, 4)
    with pytest.raises(TypeError, match="k: expected a whole number of Python, which is fixed, got"):
        jax.jit(lambda k: matmul_topk(queries, keys, k))(2)
    for options, message in (
        ({"k": True}, "k: expected a whole number"),
        ({"k": 2, "group": 2.0}, "group: expected a whole number"),
        (
            {"k": 2, "config": NormConfig()},
            "config: expected a kernels_pallas.matmul_topk.Config, got a kernels_pallas.add",
        ),
        ({"k": 2, "keys": keys.tolist()}, "keys: expected an array, got list"),
        (
            {"k": 2, "queries": queries.astype(jnp.float16), "keys": keys.astype(jnp.bfloat16)},
            "keys: dtype bfloat16 does n",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            matmul_topk(**({"queries": queries, "keys": keys} | options))
    out = matmul_topk(np.asarray(queries, np.float64), np.asarray(keys, np.float64), np.int64(2))  # type: ignore[arg-type]
    assert out.indices.tolist() == matmul_topk(queries, keys, 2).indices.tolist()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_channels_all_are_ties(implementation: Any) -> None:
    out = matmul_topk(jnp.ones((9, 0)), jnp.ones((90, 0)), 2, group=2, columns=16, implementation=implementation)
    assert out.indices.tolist() == [[0, 1]] * 9


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_query_has_no_maxima(implementation: Any) -> None:
    assert group_max(jnp.ones((0, 4)), jnp.ones((9, 4)), 2, columns=4, implementation=implementation).shape == (0, 5)
