"""Every coupling against the recursion that it stands for, written plainly and differentiated by jax."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from rlx import reversible

L, B, D = 7, 3, 6


def block(p: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return jnp.tanh(x @ p["w"]) * 0.7


def pair(p: Any, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    return 0.3 * jnp.sin(x @ p["w"]), 0.5 * block(p, x, key)


def weights(key: jax.Array, *names: str, layers: int = L) -> Any:
    keys = jax.random.split(key, len(names))
    return {n: {"w": jax.random.normal(k, (layers, D, D)) / D**0.5} for n, k in zip(names, keys, strict=True)}


def start(key: jax.Array) -> Any:
    return tuple(jax.random.normal(k, (B, D)) for k in jax.random.split(key))


def at(tree: Any, layer: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[layer], tree)


def plain_affine(p: Any, s: Any) -> Any:
    x1, x2 = s
    log_det = jnp.zeros(B)
    for layer in range(L):
        a, b = pair(at(p["f"], layer), x2, None)
        a = 2.0 * jnp.tanh(a / 2.0)
        x1 = x1 * jnp.exp(a) + b
        log_det += jnp.sum(a, axis=1)
        a, b = pair(at(p["g"], layer), x1, None)
        a = 2.0 * jnp.tanh(a / 2.0)
        x2 = x2 * jnp.exp(a) + b
        log_det += jnp.sum(a, axis=1)
    return (x1, x2), log_det


def plain_leapfrog(p: Any, s: Any) -> Any:
    previous, current = s
    for layer in range(L):
        previous, current = current, previous + 2 * 0.5 * block(at(p["f"], layer), current, None)
    return previous, current


def plain_momentum(p: Any, s: Any) -> Any:
    v, x = s
    for layer in range(L):
        v = 0.8 * v + (1 - 0.8) * block(at(p["f"], layer), x, None)
        x = x + v
    return v, x


def plain_runge_kutta(p: Any, s: Any) -> Any:
    def midpoint(p: Any, x: jax.Array, h: float) -> jax.Array:
        return h * block(p, x + h / 2 * block(p, x, None), None)

    y, z = s
    for layer in range(L):
        q = at(p["f"], layer)
        y = 0.9 * y + 0.1 * z + midpoint(q, z, 0.3)
        z = z - midpoint(q, y, -0.3)
    return y, z


CASES = {
    "affine": (reversible.affine(pair, pair), plain_affine, ("f", "g")),
    "leapfrog": (reversible.leapfrog(block, step=0.5), plain_leapfrog, ("f",)),
    "momentum": (reversible.momentum(block, gamma=0.8), plain_momentum, ("f",)),
    "runge_kutta": (
        reversible.runge_kutta(block, method="midpoint", step=0.3, coupling=0.9),
        plain_runge_kutta,
        ("f",),
    ),
}


def close(actual: Any, expected: Any, tolerance: float = 2e-5) -> bool:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return all(np.allclose(a, e, rtol=tolerance, atol=tolerance * (1 + np.abs(e).max())) for a, e in pairs)


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_inverse(name: str, key: jax.Array) -> None:
    coupling, plain, names = CASES[name]
    params, s = weights(key, *names), start(jax.random.key(1))

    def loss(run: Any, params: Any, s: Any) -> Any:
        out = run(params, s)
        return sum(jnp.sum(jnp.cos(leaf) * leaf) for leaf in jax.tree.leaves(out)), out

    def both(run: Any) -> Any:
        return jax.jit(jax.value_and_grad(partial(loss, run), argnums=(0, 1), has_aux=True))(params, s)

    (_, out), gradient = both(partial(reversible.stack, coupling))
    (_, expected), wanted = both(plain)
    assert close(out, expected)
    assert close(gradient, wanted)
    y = out[0] if name == "affine" else out
    assert close(reversible.unstack(coupling, params, y), s)


@pytest.mark.parametrize("name", ["leapfrog", "momentum"])
def test_exact_streams_undo_bit_for_bit(name: str, key: jax.Array) -> None:
    coupling, _, names = CASES[name]
    params = weights(key, *names, layers=5)
    s = jax.tree.map(lambda leaf: jnp.round(leaf * 1024) / 1024, start(jax.random.key(1)))
    y = reversible.stack(coupling, params, s, stream="exact")
    back = reversible.unstack(coupling, params, y, stream="exact")
    assert all(jnp.array_equal(a, b) for a, b in zip(back, s, strict=True))


def test_log_determinant_is_that_of_the_jacobian(key: jax.Array) -> None:
    flow = reversible.affine(pair, pair, batch_dims=0)
    params = weights(key, "f", "g", layers=2)
    x = jax.random.normal(jax.random.key(1), (2 * D,))

    def run(x: jax.Array) -> jax.Array:
        (y1, y2), _ = reversible.stack(flow, params, (x[:D], x[D:]))
        return jnp.concatenate([y1, y2])

    _, log_det = reversible.stack(flow, params, (x[:D], x[D:]))
    _, expected = np.linalg.slogdet(np.asarray(jax.jacrev(run)(x), np.float64))
    assert abs(float(log_det) - expected) < 1e-5


def test_anchors_change_nothing_but_the_drift(key: jax.Array) -> None:
    """Blocks that amplify rounding: gradients drift, and anchors bring them back to those of stored activations."""
    params, s = weights(key, "f", "g", layers=64), start(jax.random.key(1))
    hard = reversible.additive(lambda p, x, k: 2.0 * block(p, x, k), lambda p, x, k: 2.0 * block(p, x, k))

    def plain(params: Any) -> jax.Array:
        def layer(s: Any, p: Any) -> Any:
            x1 = s[0] + 2.0 * block(p["f"], s[1], None)
            return (x1, s[1] + 2.0 * block(p["g"], x1, None)), None

        return jnp.sum(jax.lax.scan(layer, s, params)[0][0])

    def gradient(anchors: int | None) -> Any:
        return jax.grad(lambda p: jnp.sum(reversible.stack(hard, p, s, anchors=anchors)[0]))(params)

    def error(actual: Any) -> float:
        pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True)
        return max(float(jnp.abs(a - w).max() / jnp.abs(w).max()) for a, w in pairs)

    far = [reversible.drift(hard, params, s, stream="float32", anchors=anchors) for anchors in (None, 5)]
    assert far[1].max() < far[0].max()
    wanted = jax.grad(plain)(params)
    drifted, some, every = (error(gradient(anchors)) for anchors in (None, 5, 1))
    assert every < 1e-5
    assert every < some < drifted


def test_a_block_that_is_not_deterministic_is_told_by_the_checksums(key: jax.Array) -> None:
    """The block of layer 3 returns something else the second time: layers above keep their gradients, it and those
    below get NaN."""
    calls: list[int] = []

    def flaky(layer: np.ndarray) -> np.ndarray:
        calls.append(int(layer))
        return np.float32(1e-3 if calls.count(3) > 1 and layer == 3 else 0.0)

    def f(p: Any, x: jax.Array, key: Any) -> jax.Array:
        wrong = jax.pure_callback(flaky, jax.ShapeDtypeStruct((), jnp.float32), p["layer"], vmap_method="sequential")
        return jnp.tanh(p["w"] * x) + wrong

    coupling = reversible.additive(f, lambda p, x, key: jnp.sin(p["w"] * x))
    numbers = {"layer": jnp.arange(6), "w": jnp.full(6, 0.3)}

    def gradient(verify: bool) -> Any:
        calls.clear()
        x = (jnp.ones(4), jnp.ones(4))
        return jax.grad(
            lambda w: jnp.sum(
                reversible.stack(
                    coupling,
                    {"f": numbers | {"w": w}, "g": {"w": jnp.full(6, 0.2)}},
                    x,
                    stream="exact",
                    verify=verify,
                )[0]
            )
        )(numbers["w"])

    told = np.isnan(np.asarray(gradient(True)))
    assert told.tolist() == [True] * 4 + [False] * 2
    assert not np.isnan(np.asarray(gradient(False))).any()


def test_shared_values_reach_every_layer_and_get_their_gradient(key: jax.Array) -> None:
    params, s = weights(key, "f", "g"), start(jax.random.key(1))
    shared = {"bias": jnp.linspace(-1, 1, D), "on": jnp.array([1, 0, 1])}

    def f(p: Any, x: jax.Array, key: Any, shared: Any) -> jax.Array:
        return block(p, x + shared["bias"][None], key) * shared["on"].astype(x.dtype)[:, None]

    def total(bias: jax.Array) -> jax.Array:
        y = reversible.stack(reversible.additive(f, f), params, s, shared=shared | {"bias": bias})
        return jnp.sum(y[0] * y[1])

    def plain(bias: jax.Array) -> jax.Array:
        x1, x2 = s
        for layer in range(L):
            x1 = x1 + f(at(params["f"], layer), x2, None, shared | {"bias": bias})
            x2 = x2 + f(at(params["g"], layer), x1, None, shared | {"bias": bias})
        return jnp.sum(x1 * x2)

    assert close(jax.grad(total)(shared["bias"]), jax.grad(plain)(shared["bias"]))


def test_aux_of_the_layers_survives_with_its_gradient(key: jax.Array) -> None:
    """An auxiliary loss of each layer, and a count that has no gradient, stacked over the layers."""
    params, s = weights(key, "f", "g"), start(jax.random.key(1))

    def f(p: Any, x: jax.Array, key: Any) -> Any:
        y = block(p, x, key)
        return y, {"loss": jnp.sum(y**2), "positive": jnp.sum((y > 0).astype(jnp.int32))}

    def g(p: Any, x: jax.Array, key: Any) -> Any:
        return block(p, x, key), None

    def total(params: Any) -> Any:
        y, aux = reversible.stack(reversible.additive(f, g, has_aux=True), params, s)
        return jnp.sum(y[0]) + jnp.sum(aux["f"]["loss"] * jnp.arange(L, dtype=jnp.float32)), aux

    def plain(params: Any) -> Any:
        (x1, x2), losses, counts = s, [], []
        for layer in range(L):
            y, aux = f(at(params["f"], layer), x2, None)
            x1 = x1 + y
            x2 = x2 + block(at(params["g"], layer), x1, None)
            losses.append(aux["loss"] * layer)
            counts.append(aux["positive"])
        return jnp.sum(x1) + sum(losses), counts

    (value, aux), gradient = jax.value_and_grad(total, has_aux=True)(params)
    (wanted, counts), expected = jax.value_and_grad(plain, has_aux=True)(params)
    assert close((value, gradient), (wanted, expected))
    assert aux["f"]["positive"].tolist() == [int(c) for c in counts]


@pytest.mark.parametrize("stream", ["float32", "exact"])
def test_a_cache_goes_in_as_parameters_and_comes_out_as_aux(stream: Any, key: jax.Array) -> None:
    """Decoding one position at a time gives what the whole sequence gives: causal averaging with a running sum."""
    params = weights(key, "f", "g", layers=3)
    x = jax.random.normal(jax.random.key(1), (5, D))

    def whole(p: Any, x: jax.Array, key: Any) -> jax.Array:
        return jnp.tanh(jnp.cumsum(x @ p["w"], axis=0) / jnp.arange(1.0, len(x) + 1)[:, None])

    def one(p: Any, x: jax.Array, key: Any) -> Any:
        total = p["cache"]["sum"] + x @ p["w"]
        count = p["cache"]["count"] + 1
        return jnp.tanh(total / count.astype(x.dtype)), {"sum": total, "count": count}

    expected = reversible.stack(reversible.additive(whole, whole), params, (x, x), stream=stream)
    step = reversible.additive(one, one, has_aux=True)
    empty = {"sum": jnp.zeros((3, D)), "count": jnp.zeros(3, jnp.int32)}
    cache, rows = {"f": empty, "g": empty}, []
    for row in x:
        with_cache = {name: params[name] | {"cache": cache[name]} for name in params}
        y, cache = reversible.stack(step, with_cache, (row, row), stream=stream)
        rows.append(y)
    assert close(jax.tree.map(lambda *r: jnp.stack(r), *rows), expected, 1e-5)


class Mlp(nn.Module):
    """A linen block with dropout."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(0.5, deterministic=not train)(nn.tanh(nn.Dense(D)(x)))


class NnxMlp(nnx.Module):
    """An nnx block."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(D, D, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.tanh(self.dense(x))


def test_linen_and_nnx_modules_are_blocks(key: jax.Array) -> None:
    module = Mlp()

    def f(p: Any, x: jax.Array, key: Any) -> jax.Array:
        return module.apply({"params": p}, x, key is not None, rngs=None if key is None else {"dropout": key})

    graph, _ = nnx.split(NnxMlp(nnx.Rngs(0)))

    def g(p: Any, x: jax.Array, key: Any) -> jax.Array:
        return nnx.merge(graph, p)(x)

    s = start(jax.random.key(1))
    params = {
        "f": jax.vmap(lambda k: module.init(k, s[0], False)["params"])(jax.random.split(key, L)),
        "g": jax.vmap(lambda k: nnx.split(NnxMlp(nnx.Rngs(k)))[1])(jax.random.split(key, L)),
    }
    coupling = reversible.additive(f, g)
    seed = jax.random.key(3)

    def total(params: Any) -> jax.Array:
        return jnp.sum(reversible.stack(coupling, params, s, key=seed)[0])

    def plain(params: Any) -> jax.Array:
        x1, x2 = s
        for layer in range(L):
            k = jax.random.fold_in(seed, layer)
            x1 = x1 + f(at(params["f"], layer), x2, jax.random.fold_in(k, 0))
            x2 = x2 + g(at(params["g"], layer), x1, jax.random.fold_in(k, 1))
        return jnp.sum(x1)

    assert close(jax.jit(jax.grad(total))(params), jax.jit(jax.grad(plain))(params))


def test_an_integral_converges_at_the_order_of_its_method() -> None:
    """dx/dt = -2 t x from 1: e**(-t**2); halving the step divides the error by 2**order."""

    def error(method: Any, steps: int) -> float:
        with jax.enable_x64(True):
            x = reversible.integrate(
                lambda p, t, x: -p * t * x,
                jnp.float64(2.0),
                jnp.float64(1.0),
                steps=steps,
                t1=jnp.float64(1.5),
                method=method,
            )
            return abs(float(x) - np.exp(-2.25))

    for method, order in {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}.items():
        assert abs(np.log2(error(method, 64) / error(method, 128)) - order) < 0.35, method


def test_the_gradient_of_an_integral_is_that_of_the_discrete_solution() -> None:
    def solve(p: jax.Array, x: jax.Array, t1: jax.Array) -> jax.Array:
        return jnp.sum(reversible.integrate(lambda p, t, x: jnp.tanh(p @ x) - t * x, p, x, steps=12, t1=t1) ** 2)

    with jax.enable_x64(True):
        p = jax.random.normal(jax.random.key(0), (3, 3), jnp.float64)
        check_grads(
            solve, (p, jnp.ones(3, jnp.float64), jnp.float64(0.8)), order=1, modes=["rev"], atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, s: reversible.stack(CASES["affine"][0], p, s, stream="exact"), ValueError, "stream: 'exact' needs"),
        (lambda p, s: reversible.stack(reversible.additive(block, block), p, s, anchors=0), ValueError, "anchors: 0"),
        (lambda p, s: reversible.stack(block, p, s), TypeError, "coupling: expected one from additive"),
        (
            lambda p, s: reversible.stack(reversible.additive(block, block), p, s[0]),
            TypeError,
            "state: expected a pair",
        ),
        (
            lambda p, s: reversible.stack(reversible.additive(block, block, has_aux=True), p, s),
            TypeError,
            "f: with has_aux a block returns",
        ),
        (
            lambda p, s: reversible.stack(reversible.affine(lambda p, x, k: (x, x[:1]), pair), p, s),
            ValueError,
            r"f: its \(log_scale, shift\)",
        ),
        (lambda p, s: reversible.momentum(block, gamma=0.0), ValueError, "gamma: 0.0 is outside"),
        (lambda p, s: reversible.runge_kutta(block, method="rk5"), ValueError, "method: 'rk5' is not one of"),
        (lambda p, s: reversible.integrate(block, p, s, steps=1.5), TypeError, "steps: expected a whole number"),
    ],
)
def test_mistakes_name_the_argument(call: Any, error: type, message: str, key: jax.Array) -> None:
    with pytest.raises(error, match=message):
        call(weights(key, "f", "g", layers=2), start(key))


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_couplings_that_divide_keep_anchors_by_themselves(gamma: float, key: jax.Array) -> None:
    """Without anchors the gradient of 64 layers at .5 is off by more than itself; with them by rounding."""
    layers, s = 64, start(jax.random.key(1))
    params = jax.tree.map(lambda leaf: 0.3 * leaf, weights(key, "f", layers=layers))

    def plain(params: Any) -> jax.Array:
        def layer(s: Any, p: Any) -> Any:
            v = gamma * s[0] + (1 - gamma) * block(p["f"], s[1], None)
            return (v, s[1] + v), None

        return jnp.sum(jax.lax.scan(layer, s, params)[0][1])

    def total(params: Any) -> jax.Array:
        return jnp.sum(reversible.stack(reversible.momentum(block, gamma=gamma), params, s)[1])

    assert close(jax.jit(jax.grad(total))(params), jax.jit(jax.grad(plain))(params), 1e-4)


def test_exact_streams_out_of_range_have_no_finite_gradient() -> None:
    double = reversible.additive(lambda p, x, k: p * x, lambda p, x, k: p * x)
    params, x = {"f": jnp.ones(12), "g": jnp.ones(12)}, (jnp.ones(2), jnp.ones(2))

    def total(params: Any) -> jax.Array:
        return sum(jnp.sum(y) for y in reversible.stack(double, params, x, stream="exact"))

    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(jax.grad(total)(params)))
    assert bool(jnp.all(jnp.isnan(reversible.drift(double, params, x, stream="exact"))))


def test_what_exact_streams_cannot_differentiate_is_refused() -> None:
    coupling = reversible.additive(lambda p, x, k: jnp.sin(p * x), lambda p, x, k: jnp.sin(p * x))
    params, x = {"f": jnp.ones(3), "g": jnp.ones(3)}, (jnp.ones(2), jnp.ones(2))

    def total(run: Any, params: Any) -> jax.Array:
        return jnp.sum(run(coupling, params, x, stream="exact")[0])

    with pytest.raises(TypeError, match="first derivatives only"):
        jax.jacrev(jax.grad(partial(total, reversible.stack)))(params)
    with pytest.raises(TypeError, match="first derivatives only"):
        jax.grad(partial(total, reversible.unstack))(params)

    # Of the state too, where the loss is linear and nothing else would tell.
    def linear(x: jax.Array) -> jax.Array:
        return jnp.sum(reversible.stack(coupling, params, (x, x), stream="exact")[0])

    with pytest.raises(TypeError, match="first derivatives only"):
        jax.jacrev(jax.grad(linear))(x[0])


@pytest.mark.parametrize("anchors", [1, 3, 4, 9])
def test_anchors_as_many_as_layers_or_more(anchors: int, key: jax.Array) -> None:
    coupling, params, s = reversible.additive(block, block), weights(key, "f", "g", layers=3), start(key)

    def gradient(anchors: int | None) -> Any:
        return jax.grad(lambda p: jnp.sum(reversible.stack(coupling, p, list(s), anchors=anchors)[0]))(params)

    assert close(gradient(anchors), gradient(None))


def test_random_keys_among_the_parameters(key: jax.Array) -> None:
    def f(p: Any, x: jax.Array, key: Any) -> jax.Array:
        return block(p, x, key) * jax.random.bernoulli(p["k"], 0.5, x.shape).astype(x.dtype)

    params = weights(key, "f", "g", layers=3)
    params["f"]["k"] = jax.random.split(key, 3)
    coupling = reversible.additive(f, block)
    slope = jax.grad(lambda w: jnp.sum(reversible.stack(coupling, {**params, "g": {"w": w}}, start(key))[0]))
    assert bool(jnp.all(jnp.isfinite(slope(params["g"]["w"]))))


@pytest.mark.parametrize("split", [False, True])
def test_shared_values_under_shard_map(split: bool, key: jax.Array) -> None:
    """Whether every device has all of what is shared or its own part, the gradient is that of one device."""
    params = weights(key, "f", "g", layers=3)
    x = jax.random.normal(jax.random.key(1), (8, D))
    shared = jax.random.normal(jax.random.key(2), (8, D) if split else (1, D))

    def f(p: Any, x: jax.Array, key: Any, shared: jax.Array) -> jax.Array:
        return block(p, x + shared, key)

    def total(shared: jax.Array, x: jax.Array) -> jax.Array:
        y = reversible.stack(reversible.additive(f, f), params, (x, x), shared=shared, anchors=2)
        return jnp.sum(y[0] * y[1])

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    part, whole = jax.P("batch"), jax.P()
    over = jax.shard_map(
        lambda shared, x: jax.lax.psum(total(shared, x), "batch"),
        mesh=mesh,
        in_specs=(part if split else whole, part),
        out_specs=whole,
    )
    assert close(jax.grad(over)(shared, x), jax.grad(total)(shared, x))
