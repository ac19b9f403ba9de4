"""Kernels of flax: read as the layers of flax use them, or refused; scanned layers are layers."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rlx import adapters, quantize, weights
from rlx._tree import named_leaves

DEPTH, WIDTH = 3, 8


class Block(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        y = nn.Dense(12, use_bias=self.use_bias, name="up")(x)
        return x + jnp.tanh(nn.Dense(WIDTH, use_bias=self.use_bias, name="down")(y)), None


class Scanned(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)
        return nn.Dense(2, name="head")(scan(use_bias=self.use_bias, name="trunk")(x, None)[0])


class Parts(nn.Module):
    """A convolution, attention with its projections of heads, and a projection of several axes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(6, (3, 3), name="conv")(x).reshape(x.shape[0], -1, 6)
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=10, out_features=4, name="attention")(x)
        return nn.DenseGeneral((3, 2), axis=(-2, -1), name="general")(x)


def shaken(params: Any) -> Any:
    """With biases that are not zero."""
    keys = iter(jax.random.split(jax.random.key(7), 99))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)


def start(module: nn.Module, x: jax.Array) -> Any:
    return shaken(module.init(jax.random.key(0), x)["params"])


def rounded(kernel: np.ndarray, inputs: int, bits: int) -> np.ndarray:
    """The oracle, in NumPy: one scale an output, minmax."""
    low, high = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}[bits]
    matrix = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1)
    scale = np.maximum(matrix.max(axis=0) / high, matrix.min(axis=0) / low).astype(np.float32)
    return (np.clip(np.rint(matrix / scale), low, high) * scale).reshape(kernel.shape)


def test_what_a_bias_shows_is_read_as_flax_uses_it() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 5))
    module = Parts()
    params = start(module, x)
    small = quantize.quantize_tree(params, 4)
    inputs = {
        "conv": 3,
        "attention.query": 1,
        "attention.key": 1,
        "attention.value": 1,
        "attention.out": 2,
        "general": 2,
    }
    written = quantize.merge(small, params)
    assert jax.tree.map(jnp.shape, written) == jax.tree.map(jnp.shape, params)
    before, after = named_leaves(params), named_leaves(written)
    for name, count in inputs.items():
        path = f"{name}.kernel"
        np.testing.assert_allclose(after[path], rounded(np.asarray(before[path]), count, 4), atol=1e-6)
        assert after[f"{name}.bias"] is before[f"{name}.bias"]
    assert jax.jit(module.apply)({"params": written}, x).shape == (2, 3, 2)
    shapes = {path: leaf.shape for path, leaf in named_leaves(quantize.kernels(params), _is_kernel).items()}
    assert shapes["conv.kernel"] == (6, 45)
    assert shapes["attention.query.kernel"] == (10, 6)
    assert shapes["attention.out.kernel"] == (4, 10)
    assert shapes["general.kernel"] == (6, 64)


def _is_kernel(leaf: Any) -> bool:
    return isinstance(leaf, weights.Kernel)


@pytest.mark.parametrize("use_bias", [True, False])
def test_scanned_layers_are_layers_with_scales_and_bits_of_their_own(use_bias: bool) -> None:
    x = jax.random.normal(jax.random.key(1), (5, WIDTH))
    module = Scanned(use_bias=use_bias)
    params = start(module, x)
    rule = {r"kernel\.[02]$": 8, r"trunk": 2, "head": 8}
    told = params if use_bias else quantize.kernels(params, stacked={"trunk": 1})
    assert quantize.plan_bits(told, rule) == {
        "head.kernel": 8,
        "trunk.down.kernel": (8, 2, 8),
        "trunk.up.kernel": (8, 2, 8),
    }
    assert quantize.plan_bits(told, quantize.standard_rule(told)) == quantize.plan_bits(told, rule)
    small = quantize.quantize_tree(told, rule)
    written = quantize.merge(small, params)
    for name in ("up", "down"):
        for i, bits in enumerate((8, 2, 8)):
            expected = rounded(np.asarray(params["trunk"][name]["kernel"][i]), 1, bits)
            np.testing.assert_allclose(written["trunk"][name]["kernel"][i], expected, atol=1e-6)
    again = quantize.merge(quantize.quantize_tree(told, rule, activations="float"), told)
    assert jax.tree.structure(again) == jax.tree.structure(params)

    training = quantize.qat(rule, activations="float", start="minmax")
    scales = training.init(told)
    assert scales["trunk.up.kernel"].shape == (DEPTH, 12)

    @jax.jit
    def outputs(told: Any, scales: Any) -> Any:
        def loss(told: Any, scales: Any) -> tuple[jax.Array, jax.Array]:
            y = module.apply({"params": quantize.merge(training.attach(told, scales), told)}, x)
            return jnp.sum(jnp.square(y)), y

        (_, y), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(told, scales)
        frozen = training.freeze(told, scales)
        dense = module.apply({"params": quantize.merge(frozen, params)}, x)
        return y, dense, adapters.linen_apply(module)({"params": frozen}, x), grads

    y, dense, through, grads = outputs(told, scales)
    assert jnp.array_equal(y, dense)
    np.testing.assert_allclose(through, y, atol=1e-5)
    np.testing.assert_allclose(y, module.apply({"params": written}, x), atol=1e-5)
    assert all(float(jnp.abs(g).max()) > 0 for g in grads[1].values())
    assert jax.tree.structure(grads[0]) == jax.tree.structure(told)


def test_what_can_be_read_in_two_ways_is_refused_until_it_is_told() -> None:
    x = jnp.ones((1, WIDTH))
    params = Scanned(use_bias=False).init(jax.random.key(0), x)["params"]
    refused = re.escape("params: trunk.down.kernel [3, 12, 8] may be a convolution, a projection of heads or a")
    for call in (
        lambda: quantize.quantize_tree(params, 4),
        lambda: quantize.qat(4).init(params),
        lambda: quantize.qat(4).attach(params, dict.fromkeys(quantize.plan_bits(params, 4), jnp.ones(2))),
        lambda: quantize.sizes(params),
        lambda: quantize.sensitivity(lambda p: jnp.sum(p["head"]["kernel"]), params),
    ):
        with pytest.raises(ValueError, match=refused):
            call()
    small = quantize.quantize_tree(params, {"head": 4})  # what no rule finds needs no reading
    assert small["trunk"]["up"]["kernel"] is params["trunk"]["up"]["kernel"]
    square = {"kernel": jnp.ones((4, 4, 5)), "bias": jnp.ones((4, 5))}  # 4 layers of 4 inputs, or 4 heads of 5
    with pytest.raises(ValueError, match=re.escape("d.kernel [4, 4, 5] may be")):
        quantize.quantize_tree({"d": square}, 4)
    for told, shape in (({"stacked": {"d": 1}}, (4, 5, 4)), ({"inputs": {"d": 1}}, (20, 4))):
        assert quantize.quantize_tree(quantize.kernels({"d": square}, **told), 4)["d"]["kernel"].shape == shape
    with pytest.raises(ValueError, match="are kernels of flax"):
        quantize.calibrate(lambda p, x: x, params, [x])
    with pytest.raises(ValueError, match="are kernels of flax"):
        quantize.rotate_tree(quantize.kernels(params, stacked={"trunk": 1}))


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ({"stacked": {"gone": 1}}, ValueError, "stacked: 'gone' matches no kernel; the kernels are a.kernel, b.kernel"),
        ({"inputs": {"(": 1}}, ValueError, "inputs: '(' is no regular expression"),
        ({"inputs": {3: 1}}, TypeError, "inputs: expected a regular expression, got 3"),
        ({"inputs": {"b": 0}}, ValueError, "inputs['b']: 0 is outside [1"),
        ({"stacked": {"b": 0.5}}, TypeError, "stacked['b']: expected a whole number"),
        ({"stacked": {"a": 1}}, ValueError, "a.kernel [2, 3] has not 1 axes of layers and 1 of inputs"),
        ({"stacked": {"b": 1}}, ValueError, "b.kernel [2, 3, 4] has a bias [4], which is not what is told of it"),
        ({"inputs": {"b": 1}}, ValueError, "b.kernel [2, 3, 4] has a bias [4], which is not what is told of it"),
        (
            {"stacked": {"c": 1}},
            ValueError,
            "inputs: c.kernel [2, 3, 4, 5] has 1 axes of layers; say how many are inputs",
        ),
    ],
)
def test_what_is_told_is_checked(told: Any, kind: type, message: str) -> None:
    params = {
        "a": {"kernel": jnp.ones((2, 3))},
        "b": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones(4)},
        "c": {"kernel": jnp.ones((2, 3, 4, 5))},
    }
    with pytest.raises(kind, match=re.escape(message)):
        quantize.kernels(params, **told)


def test_told_kernels_stand_under_adapters_and_budgets() -> None:
    x = jax.random.normal(jax.random.key(1), (4, WIDTH))
    module = Scanned(use_bias=False)
    params = start(module, x)
    told = quantize.kernels(params, stacked={"trunk": 1})
    run = jax.jit(module.apply)
    target = run({"params": params}, x)
    loss = lambda p: jnp.mean(jnp.square(run({"params": quantize.merge(p, params)}, x) - target))  # noqa: E731
    options: Any = {"choices": (2, 8), "where": "up", "by_layer": True}
    errors, sizes = quantize.sensitivity(loss, told, **options, scale="minmax"), quantize.sizes(told, **options)
    assert list(errors) == [f"trunk.up.kernel.{i}" for i in range(DEPTH)]
    assert all(row[2] > row[8] >= 0 for row in errors.values())
    assert sizes["trunk.up.kernel.0"] == {bits: quantize.weight_bytes((12, WIDTH), bits) for bits in (2, 8)}
    found = quantize.allocate(errors, sizes, sum(row[2] for row in sizes.values()) + 80)
    small = quantize.quantize_tree(told, found.rule)
    own = small["trunk"]["up"]["kernel"]
    assert sorted(own.layer_bits.tolist()) == [2, 2, 8]

    wrapped = adapters.over_kernels(adapters.lora(rank=2, where=r"trunk\.up"), stacked={"trunk": 1})
    delta = jax.tree.map(lambda leaf: leaf + 0.1, wrapped.init(jax.random.key(2), small))
    attached = wrapped.attach(small, delta)
    through = adapters.linen_apply(module)({"params": attached}, x)
    written = quantize.merge(attached, params)
    low = delta["trunk.up.kernel"]
    expected = jnp.swapaxes(own.dense() + 8 * low["b"] @ low["a"], -1, -2)
    np.testing.assert_allclose(written["trunk"]["up"]["kernel"], expected, atol=1e-5)
    assert through.shape == target.shape
    over = adapters.over_kernels(adapters.lora(rank=2, where=r"trunk\.up"), stacked={"trunk": 1})
    adapted = over.attach(params, over.init(jax.random.key(2), params))
    below = quantize.quantize_tree(adapted, {r"up\.kernel\.base": 4})  # a told kernel under an adapter
    assert below["trunk"]["up"]["kernel"].base.shape == (DEPTH, 12, WIDTH)
    back = quantize.merge(below, adapted)["trunk"]["up"]["kernel"]
    assert back.shape == (DEPTH, WIDTH, 12)
