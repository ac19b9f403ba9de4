"""Error feedback: the loop of the paper in numpy, never worse than rounding, and moments from a model."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlx import quantize, weights
from rlx.models import decoder

RANGES = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}
OUT, IN, ROWS = 12, 24, 60


def data(seed: int = 0, inputs: int = IN) -> tuple[np.ndarray, np.ndarray]:
    """A weight and correlated activations of unequal size."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) * np.exp(rng.standard_normal((inputs, 1)))
    x = rng.standard_normal((ROWS, inputs)) @ mix.T
    return rng.standard_normal((OUT, inputs)).astype(np.float32), x.astype(np.float32)


def error(w: np.ndarray, q: Any, x: np.ndarray) -> np.ndarray:
    """Of each output, over the calibration data, in float64."""
    return np.square(x.astype(np.float64) @ (w.astype(np.float64) - np.asarray(q.dense(), np.float64)).T).sum(axis=0)


def by_hand(w: np.ndarray, h: np.ndarray, scale: np.ndarray, bits: int, damping: float) -> np.ndarray:
    """One column after the other, with the inverse of what is left computed anew each time (optimal brain surgeon)."""
    low, high = RANGES[bits]
    w, h = w.astype(np.float64), h.astype(np.float64)
    h = h + damping * np.diag(h).mean() * np.eye(len(h))
    left, codes = list(np.argsort(-np.diag(h), kind="stable")), np.zeros_like(w)
    while left:
        inverse, j = np.linalg.inv(h[np.ix_(left, left)]), left[0]
        codes[:, j] = np.clip(np.rint(w[:, j] / scale[:, j]), low, high)
        apart = (w[:, j] - codes[:, j] * scale[:, j]) / inverse[0, 0]
        w[:, left] -= apart[:, None] * inverse[0][None]
        left = left[1:]
    return codes


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_the_plain_loop_where_that_is_better_than_rounding(bits: Any, block: int | None) -> None:
    w, x = data()
    h = x.T @ x
    plain = quantize.quantize(w, bits, block=block, scale="mse")
    scale = np.repeat(np.asarray(plain.scale).reshape(OUT, -1), block or IN, axis=1)
    codes = by_hand(w, h, scale, bits, 0.01)
    expected = np.square(x.astype(np.float64) @ (w - codes * scale).T).sum(axis=0)
    wins = expected <= error(w, plain, x)
    assert wins.sum() >= 8
    actual = quantize.gptq(w, h, bits, block=block, sweeps=0)
    assert np.array_equal(np.asarray(actual.integers())[wins], codes[wins])
    assert np.array_equal(np.asarray(actual.integers())[~wins], np.asarray(plain.integers())[~wins])


@pytest.mark.parametrize(("inputs", "rows"), [(24, 60), (130, 60), (5, 3)])
@pytest.mark.parametrize("bits", [2, 4])
def test_never_worse_than_rounding_and_no_sweep_makes_it_worse(bits: Any, inputs: int, rows: int) -> None:
    """130 inputs are three chunks with padding; fewer rows than inputs leave H singular."""
    for seed in range(3):
        w, x = data(seed, inputs)
        x = x[:rows]
        for scale in ("minmax", "mse"):
            before = error(w, quantize.quantize(w, bits, scale=scale), x)
            for sweeps in (0, 1, 3):
                after = error(w, quantize.gptq(w, x.T @ x, bits, scale=scale, sweeps=sweeps), x)
                assert np.all(after <= before * (1 + 1e-4) + 1e-3)
                if sweeps == 0:
                    assert after.sum() < 0.9 * before.sum()
                before = after if sweeps else np.maximum(before, after)


def test_inputs_that_are_always_zero_are_rounded_plainly_and_no_data_is_rounding() -> None:
    w, x = data()
    x[:, [3, 7]] = 0
    dead = np.asarray(quantize.gptq(w, x.T @ x, 4, sweeps=0).integers())[:, [3, 7]]
    plain = quantize.quantize(w, 4, scale="mse")
    assert np.array_equal(dead, np.asarray(plain.integers())[:, [3, 7]])
    assert jnp.array_equal(quantize.gptq(w, np.zeros((IN, IN), np.float32), 4).codes, plain.codes)


def test_stacked_layers_are_each_by_itself_also_under_jit() -> None:
    pairs = [data(seed) for seed in range(3)]
    w, h = np.stack([w for w, _ in pairs]), np.stack([x.T @ x for _, x in pairs])
    stacked = jax.jit(lambda w, h: quantize.gptq(w, h, 2))(w, h)
    assert stacked.shape == (3, OUT, IN)
    for i in range(3):
        one = quantize.gptq(w[i], h[i], 2)
        assert np.mean(np.asarray(stacked.codes[i]) == np.asarray(one.codes)) > 0.98  # ties of float32 sums
        np.testing.assert_allclose(
            error(w[i], jax.tree.map(lambda a, i=i: a[i], stacked), pairs[i][1]).sum(),
            error(w[i], one, pairs[i][1]).sum(),
            rtol=0.02,
        )


W, X = data()
H = X.T @ X


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: quantize.gptq(W, H[:5, :5], 4), ValueError, "moment: expected [..., in, in] = (24, 24)"),
        (lambda: quantize.gptq(W, H * np.nan, 4), ValueError, "moment: holds NaN or infinity"),
        (lambda: quantize.gptq(W, H, 3), ValueError, "bits: 3 is not one of 2, 4, 8"),
        (lambda: quantize.gptq(W, H, 4, block=7), ValueError, "block: 7 does not divide the 24 inputs"),
        (lambda: quantize.gptq(W, H, 4, damping=0.0), ValueError, "damping: 0.0 is outside"),
        (lambda: quantize.gptq(W, H, 4, sweeps=-1), ValueError, "sweeps: -1 is outside"),
        (lambda: quantize.gptq(W[0], H, 4), ValueError, "w: expected dims [..., out, in], got shape (24,)"),
        (lambda: quantize.gptq(W, H.astype(int), 4), TypeError, "moment: expected a floating dtype"),
        (lambda: quantize.quantize(W[:, :0], 4), ValueError, "w: there is nothing in an array of shape (12, 0)"),
        (lambda: quantize.calibrate(lambda p, x: x, {"w": W}, []), ValueError, "batches: there is none"),
        (lambda: quantize.calibrate(lambda p, x: x, {"w": W}, [], where="no"), ValueError, "where: 'no' matches no"),
        (lambda: quantize.calibrate(lambda p, x: x, {"w": W}, [jnp.arange(3)]), ValueError, "apply: its result has no"),
        (
            lambda: quantize.calibrate(lambda p, x: weights.matmul(x, p["w"]), {"w": W}, [X[:, :5]]),
            ValueError,
            "x: its last dim must be the weight's 24 inputs",
        ),
        (
            lambda: quantize.calibrate(lambda p, x: x, {"Dense_0": {"kernel": W}}, [X]),
            ValueError,
            "params: Dense_0.kernel are kernels of flax",
        ),
    ],
)
def test_mistakes_name_the_argument(call: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


# Moments


def test_moments_are_sums_of_products_of_rows() -> None:
    head = jax.random.normal(jax.random.key(0), (3, OUT))
    params = {"a": {"weight": jnp.asarray(0.01 * W)}, "b": {"weight": head, "bias": jnp.ones(3)}}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(weights.matmul(x, params["a"]["weight"]))
        return jax.nn.softmax(weights.linear(hidden, params["b"]["weight"], params["b"]["bias"]))

    found = quantize.calibrate(apply, params, [X[:20], X[20:40], X[40:]])
    assert found.keys() == {"a.weight", "b.weight"}
    np.testing.assert_allclose(found["a.weight"], H, rtol=1e-4, atol=1e-2)
    hidden = np.tanh(X @ (0.01 * W).T)
    np.testing.assert_allclose(found["b.weight"], hidden.T @ hidden, rtol=1e-3, atol=1e-3)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    low = quantize.calibrate(apply, half, [jnp.asarray(X, jnp.bfloat16)], where="^a")["a.weight"]
    assert low.dtype == jnp.float32
    assert np.linalg.norm(low - H) < 0.01 * np.linalg.norm(H)


def test_a_vmapped_model_and_a_sharded_one_sum_the_same_rows() -> None:
    w = weights.Observed(base=jnp.asarray(W), moment=jnp.zeros((IN, IN)))

    def loss(w: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jax.vmap(lambda row: weights.matmul(row, w))(x)))

    x = jnp.asarray(X[:16])
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(w, x).moment, x.T @ x, rtol=1e-4, atol=1e-2)
    mesh = jax.make_mesh((8,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec(), PartitionSpec("b"))

    def sharded(w: Any, x: jax.Array) -> jax.Array:
        part = jax.shard_map(
            lambda w, x: jax.lax.psum(loss(w, x), "b"), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
        )
        return part(w, x)

    np.testing.assert_allclose(jax.jit(jax.grad(sharded))(w, x).moment, x.T @ x, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("residual", ["plain", "reversible"])
def test_moments_of_scanned_layers_leave_padding_out(residual: Any) -> None:
    config = decoder.Config(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        residual=residual,
    )
    params = decoder.init(jax.random.key(0), config)

    def apply(params: Any, batch: Any) -> jax.Array:
        ids, mask = batch
        return jnp.where(mask[..., None], decoder.apply(params, config, ids, attention_mask=mask), 0.0)

    ids = jax.random.randint(jax.random.key(1), (3, 5), 0, 16)
    mask = jnp.ones((3, 5), bool)
    short = quantize.calibrate(apply, params, [(ids, mask)], where="layers")
    wide = ((0, 0), (0, 3))
    padded = quantize.calibrate(
        apply, params, [(jnp.pad(ids, wide, constant_values=7), jnp.pad(mask, wide))], where="layers"
    )
    assert short["model.layers.mlp.down_proj.weight"].shape == (2, 12, 12)
    for path in short:
        assert float(jnp.linalg.norm(short[path])) > 0.1
        assert float(jnp.linalg.norm(short[path] - padded[path])) < 1e-4 * float(jnp.linalg.norm(short[path]))
    if residual == "plain":
        return
    small = quantize.quantize_tree(params, {"layers": 4}, scale="mse", moments=short)
    plain = quantize.quantize_tree(params, {"layers": 4}, scale="mse")
    apply = jax.jit(apply)
    exact, feedback, rounding = (apply(p, (ids, mask)) for p in (params, small, plain))
    assert float(jnp.linalg.norm(feedback - exact)) < float(jnp.linalg.norm(rounding - exact))
