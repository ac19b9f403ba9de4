"""Chunked attention is the definition, is what jax.nn computes, and never holds all scores."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads

from rlx.attention import attention as eager
from rlx.attention import hierarchical_attention

POLICIES = ("causal", "window", "softcap", "scale", "offset", "implementation", "chunk")
attention = jax.jit(eager, static_argnames=POLICIES)

B, T, S, H, K, D, E = 2, 13, 17, 4, 2, 8, 6


def arrays(key: jax.Array, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    k = jax.random.split(key, 3)
    shapes = ((B, T, H, D), (B, S, K, D), (B, S, K, E))
    q, keys, v = (jax.random.normal(one, shape).astype(dtype) for one, shape in zip(k, shapes, strict=True))
    return q, keys, v


def everything(key: jax.Array) -> dict[str, Any]:
    k = jax.random.split(key, 3)
    return {
        "segments": jnp.sort(jax.random.randint(k[0], (B, T), 0, 3), axis=1),
        "key_segments": jnp.sort(jax.random.randint(k[1], (B, S), 0, 3), axis=1),
        "mask": jax.random.bernoulli(k[2], 0.7, (B, S)),
        "causal": True,
        "window": 7,
        "offset": 4,
        "softcap": 2.0,
    }


def distance(actual: Any, expected: Any) -> float:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(e, np.float64)))) for a, e in pairs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"causal": True, "window": 5}, {"is_causal": True, "local_window_size": (4, 0)}),
        ({"window": 3, "scale": 0.7}, {"local_window_size": (2, 2), "scale": 0.7}),
    ],
)
def test_it_is_what_jax_nn_computes(ours: Any, theirs: Any, key: jax.Array) -> None:
    q, k, v = arrays(key)
    v = v.repeat(2, axis=-1)[..., :D]  # jax.nn wants values as wide as keys
    bias = jax.random.normal(jax.random.key(1), (B, H, T, S))
    mask = jnp.ones((B, S), bool).at[0, 3:6].set(False)
    actual = attention(q, k, v, bias=bias, mask=mask, chunk=5, **ours)
    expected = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask[:, None, None, :], **theirs)
    assert distance(actual, expected) < 2e-6


@pytest.mark.parametrize("bias_shape", [(B, 1, T, S), pytest.param((H, 1, S), marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_the_definition(bias_shape: Any, key: jax.Array) -> None:
    q, k, v = arrays(key)
    more = {"sinks": jax.random.normal(jax.random.key(2), (H,))}
    more["bias"] = jax.random.normal(jax.random.key(1), bias_shape)
    rules = everything(jax.random.key(3)) if bias_shape != (H, 1, S) else {}

    def loss(arrays: Any, more: Any, implementation: Any) -> Any:
        out = attention(*arrays, **more, **rules, implementation=implementation, chunk=5)
        return jnp.sum(jnp.sin(out)), out

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    actual = jax.jit(partial(gradient, implementation="chunked"))((q, k, v), more)
    assert distance(actual, jax.jit(partial(gradient, implementation="reference"))((q, k, v), more)) < 3e-6


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences(key: jax.Array) -> None:
    with jax.enable_x64(True):
        q, k, v = arrays(key, jnp.float64)
        bias, sinks = jax.random.normal(key, (H, T, S), jnp.float64), jnp.linspace(-1.0, 1.0, H, dtype=jnp.float64)
        rules = everything(jax.random.key(3))

        @jax.jit
        def run(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> jax.Array:
            return attention(q, k, v, bias=bias, sinks=sinks, chunk=5, **rules)

        check_grads(run, (q, k, v, bias, sinks), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(implementation: Any, key: jax.Array) -> None:
    """Hidden by the mask, by causality, or by a bias of -inf."""
    q, k, v = arrays(key)
    mask = jnp.ones((B, S), bool).at[0].set(False)
    bias = jnp.zeros((T, S)).at[5].set(-jnp.inf)

    @jax.jit
    def loss(q: Any, k: Any, v: Any, bias: Any) -> Any:
        out = attention(q, k, v, mask=mask, bias=bias, causal=True, offset=-3, implementation=implementation, chunk=4)
        return jnp.sum(out * out), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, bias)
    assert not jnp.any(out[0])
    assert not jnp.any(out[1, :3])
    assert not jnp.any(out[1, 5])
    assert jnp.all(jnp.any(out[1, jnp.array([3, 4, 6])] != 0, axis=(1, 2)))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
    assert not jnp.any(gradients[0][0])


def test_sinks_alone_take_everything(key: jax.Array) -> None:
    q, k, v = arrays(key)
    out = attention(q, k, v, sinks=jnp.full(H, 200.0), chunk=5)
    assert float(jnp.abs(out).max()) < 1e-30
    none = attention(q, k, v, sinks=jnp.full(H, -jnp.inf), chunk=5)
    assert distance(none, attention(q, k, v, chunk=5)) == 0


def test_large_scores_do_not_overflow(key: jax.Array) -> None:
    q, k, v = arrays(key)
    out = attention(q * 1e4, k, v, chunk=5)
    best = jnp.argmax(jnp.einsum("bthd,bshd->bhts", q, k.repeat(2, axis=2)), axis=-1)
    rows = jnp.take_along_axis(v.repeat(2, axis=2).swapaxes(1, 2), best[..., None], axis=2)
    assert distance(out, rows.swapaxes(1, 2)) < 1e-5


@pytest.mark.slow
def test_half_precision_is_close_to_float32_and_keeps_its_dtype(key: jax.Array) -> None:
    q, k, v = arrays(key, jnp.bfloat16)

    @jax.jit
    @jax.value_and_grad
    def run(q: Any, k: Any, v: Any) -> jax.Array:
        return jnp.sum(attention(q, k, v, causal=True, chunk=5).astype(jnp.float32) ** 2)

    value, gradient = run(q, k, v)
    assert gradient.dtype == jnp.bfloat16
    exact, expected = run(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert abs(float(value - exact)) < 0.02 * float(exact)
    assert distance(gradient, expected) < 0.03 * float(jnp.abs(expected).max())


def test_packed_sequences_are_the_sequences_alone(key: jax.Array) -> None:
    q, k, v = (x[:1, :12] for x in arrays(key))
    segments = jnp.array([[0] * 5 + [1] * 7])
    packed = attention(q, k, v, causal=True, segments=segments, chunk=4)
    alone = [attention(*(x[:, part] for x in (q, k, v)), causal=True) for part in (slice(0, 5), slice(5, 12))]
    assert distance(packed, jnp.concatenate(alone, axis=1)) < 1e-6


@pytest.mark.slow
def test_no_batch_and_two_batch_dims(key: jax.Array) -> None:
    q, k, v = arrays(key)
    bias = jax.random.normal(key, (B, 1, H, T, S))
    both = attention(*(jnp.stack([x, x + 1], axis=1) for x in (q, k, v)), bias=bias, chunk=5)
    assert both.shape == (B, 2, T, H, E)
    one = attention(q[1] + 1, k[1] + 1, v[1] + 1, bias=bias[1, 0], chunk=5)
    assert distance(both[1, 1], one) < 1e-6


@pytest.mark.slow
def test_vmap_of_grad_is_grad_of_vmap(key: jax.Array) -> None:
    q, k, v = arrays(key)

    def loss(q: Any, k: Any, v: Any) -> jax.Array:
        return jnp.sum(jnp.sin(attention(q, k, v, causal=True, chunk=8)))

    inside = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2))))(q, k, v)
    outside = jax.jit(jax.grad(lambda *x: jnp.sum(jax.vmap(loss)(*x)), argnums=(0, 1, 2)))(q, k, v)
    assert distance(inside, outside) < 1e-6


def step(length: int, **rules: Any) -> Any:
    """A compiled training step of one sequence; and its jaxpr."""
    shapes = [jax.ShapeDtypeStruct((length, 2, 16), jnp.float32)] * 3
    loss = jax.grad(
        lambda q, k, v: jnp.sum(attention(q, k, v, causal=True, chunk=128, **rules) ** 2), argnums=(0, 1, 2)
    )
    return jax.jit(loss).trace(*shapes)


@pytest.mark.slow
def test_memory_grows_with_the_length_not_with_its_square() -> None:
    """The compiler's own count of temporary bytes, gradient included."""
    small, large = (step(length).lower().compile().memory_analysis().temp_size_in_bytes for length in (1024, 4096))
    array = 2 * 16 * 4  # bytes a token of q
    assert (large - small) / 3072 < 12 * array


def trips(jaxpr: Any) -> list[int]:
    """How often each scan of a jaxpr runs, those of its sub-programs too."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            found.append(eqn.params["length"])
        for sub in jaxprs_in_params(eqn.params):
            found += trips(sub)
    return found


@pytest.mark.parametrize(("rules", "pairs"), [({}, 36), ({"window": 128}, 15), ({"window": 129}, 15)])
def test_hidden_pairs_of_chunks_are_not_computed(rules: Any, pairs: int) -> None:
    """Of 64 pairs of 8 chunks, causality leaves 36; a window of a chunk leaves the diagonal and the one below."""
    assert trips(step(1024, **rules).jaxpr) == [pairs, pairs]


@pytest.mark.slow
def test_a_bias_that_is_not_trained_costs_no_gradient() -> None:
    def temporary(argnums: Any) -> int:
        shapes = [jax.ShapeDtypeStruct((512, 1, 8), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((512, 512), jnp.float32)]
        loss = jax.grad(lambda *x: jnp.sum(attention(*x[:3], bias=x[3], chunk=64) ** 2), argnums=argnums)
        compiled = jax.jit(loss).lower(*shapes).compile().memory_analysis()
        return compiled.temp_size_in_bytes + compiled.output_size_in_bytes

    assert temporary((0, 1, 2, 3)) - temporary((0, 1, 2)) >= 512 * 512 * 4


def test_an_empty_sequence_gives_zeros(key: jax.Array) -> None:
    q, k, v = arrays(key)
    for implementation in ("reference", "chunked"):
        none = attention(q, k[:, :0], v[:, :0], implementation=implementation)
        assert none.shape == (B, T, H, E)
        assert not jnp.any(none)
        assert attention(q[:, :0], k, v, implementation=implementation).shape == (B, 0, H, E)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "mosaic"}, NotImplementedError, "implementation: 'mosaic' is not one of 'auto'"),
        ({"k": jnp.zeros((B, S, 3, D))}, ValueError, "v: dim K=2 disagrees with K=3 of k"),
        ({"q": jnp.zeros((B, T, 3, D))}, ValueError, "k: 2 heads do not divide the 3 heads of q"),
        ({"q": jnp.zeros((B, T, H, D), jnp.int32)}, TypeError, "q: expected a floating dtype"),
        ({"q": jnp.zeros((B, T, H, D), jnp.bfloat16)}, TypeError, "k: dtype float32 disagrees with bfloat16"),
        ({"k": jnp.zeros((S, K, D))}, ValueError, r"k: leading dims \(\) disagree"),
        ({"mask": jnp.ones((B, T), bool)}, ValueError, "mask: expected shape"),
        ({"mask": jnp.ones((B, S))}, TypeError, "mask: expected a boolean"),
        ({"segments": jnp.zeros((B, T), jnp.int32)}, ValueError, "key_segments: needed"),
        ({"key_segments": jnp.zeros((B, S), jnp.int32)}, ValueError, "key_segments: needs segments"),
        ({"bias": jnp.zeros((S, T))}, ValueError, "bias: shape"),
        ({"sinks": jnp.zeros(K)}, ValueError, "H=4 disagrees with H=2"),
        ({"window": 0}, ValueError, "window: 0"),
        ({"softcap": 0.0}, ValueError, "softcap"),
        ({"chunk": 0}, ValueError, "chunk"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], error: Any, message: str, key: jax.Array) -> None:
    given = dict(zip("qkv", arrays(key), strict=True)) | change
    with pytest.raises(error, match=message):
        eager(**given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"window": float("nan")}, "window: expected a whole number"),
        ({"window": 2.5}, "window: expected a whole number"),
        ({"offset": 1.5}, "offset: expected a whole number"),
        ({"scale": float("nan")}, "scale: nan is outside"),
        ({"scale": jnp.array(0.3)}, "scale: expected a number of Python"),
        ({"chunk": 2.5}, "chunk: expected a whole number"),
    ],
)
def test_numbers_that_are_none_are_refused(more: dict[str, Any], message: str) -> None:
    x = jnp.ones((4, 1, 2))
    with pytest.raises((TypeError, ValueError), match=message):
        eager(x, x, x, **more)


def test_nothing_gives_nothing() -> None:
    x = jnp.ones((0, 4, 2, 3))
    assert eager(x, x, x, causal=True).shape == (0, 4, 2, 3)
    with pytest.raises(ValueError, match="q: D is 0"):
        eager(jnp.ones((4, 2, 0)), jnp.ones((4, 2, 0)), jnp.ones((4, 2, 3)))


@pytest.mark.parametrize("name", ["chunked", "reference", "hierarchical"])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_what_padding_holds_does_not_matter(name: str, poison: float) -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 12, 2, 8))
    mask = jnp.arange(12)[None] < jnp.array([[12], [7]])

    @jax.jit
    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            if name == "hierarchical":
                out = hierarchical_attention(q, k, v, mask=mask, block=2, beam=1)
            else:
                out = eager(q, k, v, mask=mask, implementation=name, chunk=4)
            out = jnp.where(mask[..., None, None], out, 0)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    def padded(value: float) -> list[jax.Array]:
        return [jnp.where(mask[..., None, None], x, value) for x in (k, v)]

    chex.assert_trees_all_equal(both(q, *padded(poison)), both(q, *padded(0.0)))
