"""A reversible stack is the plain stack: same values, same gradients, flat memory, and it can be undone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import reversible, weights

D, B = 16, 4


def block(p: dict[str, Any], x: jax.Array, key: jax.Array | None) -> jax.Array:
    y = jnp.tanh(weights.matmul(x, p["w"]).astype(x.dtype))
    if key is not None:
        y = jnp.where(jax.random.bernoulli(key, 0.8, y.shape), y / jnp.asarray(0.8, y.dtype), jnp.zeros_like(y))
    return y


COUPLING = reversible.additive(block, block)


def parameters(key: jax.Array, layers: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    k = jax.random.split(key, 2)
    draw = [0.3 * jax.random.normal(k[i], (layers, D, D)).astype(dtype) for i in range(2)]
    return {"f": {"w": draw[0]}, "g": {"w": draw[1]}}


def state(key: jax.Array, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    k = jax.random.split(key, 2)
    return jax.random.normal(k[0], (B, D)).astype(dtype), jax.random.normal(k[1], (B, D)).astype(dtype)


def plain(params: dict[str, Any], x: tuple[jax.Array, jax.Array], key: jax.Array | None = None) -> Any:
    """The unoptimised oracle: a loop that stores every activation, keys as documented."""
    x1, x2 = x
    for layer in range(params["f"]["w"].shape[0]):
        own = None if key is None else jax.random.fold_in(key, layer)
        keys = (None, None) if own is None else (jax.random.fold_in(own, 0), jax.random.fold_in(own, 1))
        x1 = x1 + block({"w": params["f"]["w"][layer]}, x2, keys[0])
        x2 = x2 + block({"w": params["g"]["w"][layer]}, x1, keys[1])
    return x1, x2


def loss(y: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.sum(jnp.sin(y[0].astype(jnp.float32))) + jnp.sum(jnp.cos(y[1].astype(jnp.float32)))


def relative(actual: Any, expected: Any) -> float:
    a = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(actual)])
    e = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(expected)])
    return float(np.linalg.norm(a - e) / np.linalg.norm(e))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("stream", ["float32", "exact"])
def test_values_and_gradients_are_those_of_the_plain_stack(stream: Any, dropout: bool, key: jax.Array) -> None:
    params, x = parameters(key, 12), state(jax.random.key(1))
    seed = jax.random.key(7) if dropout else None
    run = jax.jit(lambda p, x: reversible.stack(COUPLING, p, x, key=seed, stream=stream))
    assert relative(run(params, x), plain(params, x, seed)) < 5e-6
    actual = jax.grad(lambda p, x: loss(run(p, x)), argnums=(0, 1))(params, x)
    expected = jax.grad(lambda p, x: loss(plain(p, x, seed)), argnums=(0, 1))(params, x)
    assert relative(actual, expected) < 2e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_exact_streams_reconstruct_bit_for_bit(dtype: Any, key: jax.Array) -> None:
    """Inputs on the grid of 2**-10 come back unchanged through 48 layers; float streams of bfloat16 blocks do not."""
    params = parameters(key, 48, dtype)
    x = tuple(jnp.round(leaf * 1024) / 1024 for leaf in state(jax.random.key(1)))
    half = reversible.additive(
        lambda p, x, key: 0.1 * block(p, x.astype(dtype), key).astype(jnp.float32),
        lambda p, x, key: 0.1 * block(p, x.astype(dtype), key).astype(jnp.float32),
    )

    def there_and_back(stream: Any) -> Any:
        y = reversible.stack(half, params, x, stream=stream)
        assert max(float(jnp.abs(leaf).max()) for leaf in y) < 16
        return reversible.unstack(half, params, y, stream=stream)

    assert all(jnp.array_equal(a, b) for a, b in zip(there_and_back("exact"), x, strict=True))
    if dtype == jnp.bfloat16:
        assert not all(jnp.array_equal(a, b) for a, b in zip(there_and_back("float32"), x, strict=True))


def test_auto_takes_exact_streams_for_half_precision_blocks(key: jax.Array) -> None:
    params, x = parameters(key, 6, jnp.bfloat16), state(jax.random.key(1), jnp.bfloat16)
    auto = reversible.stack(COUPLING, params, x)
    assert [leaf.dtype for leaf in auto] == [jnp.bfloat16] * 2
    exact = reversible.stack(COUPLING, params, x, stream="exact")
    assert all(jnp.array_equal(a, b) for a, b in zip(auto, exact, strict=True))


def test_a_value_out_of_range_of_exact_streams_is_nan_not_wrapped(key: jax.Array) -> None:
    params = parameters(key, 3)
    x1, x2 = state(jax.random.key(1))
    y = reversible.stack(COUPLING, params, (x1.at[0, 0].set(1500.0), x2), stream="exact")
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in y)
    back = reversible.unstack(COUPLING, params, (x1.at[0, 0].set(jnp.nan), x2), stream="exact")
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in back)
    y = reversible.stack(COUPLING, params, (x1.at[0, 0].set(900.0), x2), stream="exact")
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in y)


def test_memory_does_not_grow_with_depth() -> None:
    """The compiler's own count of temporary bytes: flat in depth where the plain stack's grows."""
    wide = (jax.ShapeDtypeStruct((4096, D), jnp.float32),) * 2

    def temporary(run: Any, layers: int) -> int:
        shapes = jax.eval_shape(lambda: parameters(jax.random.key(0), layers))
        step = jax.jit(jax.grad(lambda p, x: loss(run(p, x))))
        return step.lower(shapes, wide).compile().memory_analysis().temp_size_in_bytes

    def scanned(params: Any, x: Any) -> Any:
        def layer(s: Any, p: Any) -> Any:
            x1 = s[0] + block(p["f"], s[1], None)
            return (x1, s[1] + block(p["g"], x1, None)), None

        return jax.lax.scan(layer, x, params)[0]

    def rev(params: Any, x: Any) -> Any:
        return reversible.stack(COUPLING, params, x)

    stream = 4096 * D * 4
    assert temporary(rev, 32) - temporary(rev, 4) < stream
    assert temporary(scanned, 32) - temporary(scanned, 4) > 28 * stream


def test_what_is_frozen_gets_no_gradient_buffer(key: jax.Array) -> None:
    """LoRA inside a stack: the compiled backward pass holds no stacked [layers, out, in] array but the base itself."""
    layers, rank = 5, 2
    base = parameters(key, layers)

    def attach(delta: Any, base: Any) -> Any:
        def one(w: jax.Array, d: Any) -> weights.LoRA:
            return weights.LoRA(base=w, a=d["a"], b=d["b"], scale=jnp.ones(layers))

        return {name: {"w": one(base[name]["w"], delta[name])} for name in ("f", "g")}

    def arrays(shape: tuple[int, ...]) -> jax.Array:
        return jnp.full(shape, 0.1)

    delta = {name: {"a": arrays((layers, rank, D)), "b": arrays((layers, D, rank))} for name in ("f", "g")}
    x = state(jax.random.key(1))

    def compiled(through_base: bool) -> str:
        def objective(delta: Any, base: Any) -> jax.Array:
            return loss(reversible.stack(COUPLING, attach(delta, base), x))

        argnums = (0, 1) if through_base else 0
        return jax.jit(jax.grad(objective, argnums=argnums)).lower(delta, base).compile().as_text()

    def written(text: str) -> int:
        marker = f"f32[{layers},{D},{D}]"
        updates = [
            line for line in text.splitlines() if "dynamic-update-slice" in line and marker in line.split("=")[1]
        ]
        return len(updates)

    assert written(compiled(through_base=False)) == 0
    assert written(compiled(through_base=True)) > 0


def test_under_vmap_both_ways(key: jax.Array) -> None:
    params, many = parameters(key, 4), jax.vmap(lambda k: state(k))(jax.random.split(key, 3))

    def objective(p: Any, x: Any) -> jax.Array:
        return loss(reversible.stack(COUPLING, p, x))

    inside = jax.vmap(jax.grad(objective), in_axes=(None, 0))(params, many)
    outside = jax.grad(lambda p: jnp.sum(jax.vmap(objective, in_axes=(None, 0))(p, many)))(params)
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), inside)
    assert relative(summed, outside) < 1e-5


def test_streams_are_any_pytree(key: jax.Array) -> None:
    x = {"a": jnp.ones((2, D)), "b": (jnp.zeros((3, D)),)}

    def both(p: Any, x: Any, key: Any) -> Any:
        return jax.tree.map(lambda leaf: block(p, leaf, key), x)

    coupling = reversible.additive(both, both)
    params = parameters(key, 3)
    y = reversible.stack(coupling, params, (x, x))
    assert relative(reversible.unstack(coupling, params, y), (x, x)) < 1e-6


def test_captured_values_work_under_jit_and_a_differentiated_one_is_refused(key: jax.Array) -> None:
    params, x = parameters(key, 3), state(key)

    def run(c: jax.Array, p: Any) -> jax.Array:
        scaled = reversible.additive(lambda p, x, key: c * block(p, x, key), block)
        return loss(reversible.stack(scaled, p, x))

    expected = jax.grad(run, argnums=1)(jnp.array(0.5), params)
    assert relative(jax.grad(jax.jit(run), argnums=1)(jnp.array(0.5), params), expected) < 1e-6
    with pytest.raises(TypeError, match="captures a differentiated value by closure"):
        jax.grad(run)(jnp.array(0.5), params)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, x: (p["f"], x), ValueError, 'params: expected {"f": ..., "g": ...}'),
        (
            lambda p, x: ({"f": {"w": p["f"]["w"][:2]}, "g": p["g"]}, x),
            ValueError,
            "the same number of layers on axis 0",
        ),
        (lambda p, x: (p, (x[0].astype(jnp.int32), x[1])), TypeError, "state.0: expected a floating dtype"),
        (lambda p, x: (p, (x[0], x[1][:2])), ValueError, "f: its update .* must have the shape of its stream"),
    ],
)
def test_mistakes_name_the_argument(change: Any, error: type, message: str, key: jax.Array) -> None:
    with pytest.raises(error, match=message):
        reversible.stack(COUPLING, *change(parameters(key, 3), state(key)))


def test_forward_mode_is_refused(key: jax.Array) -> None:
    params, x = parameters(key, 3), state(key)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: loss(reversible.stack(COUPLING, params, x)), (x,), (x,))
