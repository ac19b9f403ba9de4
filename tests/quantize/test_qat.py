"""Learned scales: LSQ's gradients by hand, the frozen weight computes what was trained, and it composes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx import adapters, quantize, weights
from rlx.models import decoder
from rlx.weights._lowbit import exporting

RANGES = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}
OUT, IN = 6, 16


def fake(bits: Any, block: int | None = None, activations: Any = "float", seed: int = 0) -> weights.FakeQuantized:
    w = jax.random.normal(jax.random.key(seed), (OUT, IN))
    scale = 0.8 * quantize.quantize(w, bits, block=block, scale="mse").scale  # some weights are clipped
    return weights.FakeQuantized(base=w, scale=scale, bits=bits, block=block, activations=activations)


def test_taking_an_adapter_away_leaves_training_in_place() -> None:
    w = fake(4)
    lora = weights.LoRA(base=w, a=jnp.ones((2, IN)), b=jnp.ones((OUT, 2)), scale=jnp.array(1.0))
    assert adapters.detach({"q": lora})["q"] is w


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_are_those_of_lsq_written_out(bits: Any, block: int | None) -> None:
    w = fake(bits, block)
    g = np.asarray(jax.random.normal(jax.random.key(1), (OUT, IN)), np.float64)
    actual = jax.jit(jax.grad(lambda w: jnp.sum(w.dense() * g.astype(np.float32))))(w)
    low, high = RANGES[bits]
    shared = block or IN
    scale = np.repeat(np.asarray(w.scale, np.float64).reshape(OUT, -1), shared, axis=1)
    v = np.asarray(w.base, np.float64) / scale
    inside = (v > low) & (v < high)
    assert 0 < inside.mean() < 1
    np.testing.assert_allclose(actual.base, np.where(inside, g, 0.0), atol=1e-6)
    step = np.where(v <= low, low, np.where(v >= high, high, np.rint(v) - v))
    expected = (g * step).reshape(OUT, -1, shared).sum(axis=2) / np.sqrt(shared * high)
    np.testing.assert_allclose(np.asarray(actual.scale).reshape(OUT, -1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activations", ["dynamic_int8", "float"])
@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_frozen_is_equal_to_what_was_trained_to_the_last_bit(
    bits: Any, block: int | None, activations: Any, dtype: Any
) -> None:
    training = quantize.qat(bits, block=block, activations=activations)
    params = {"w": jax.random.normal(jax.random.key(0), (OUT, IN)).astype(dtype)}
    scales = training.init(params)
    scales["w"] = scales["w"].at[0].multiply(-1.3).at[1].set(0.0)  # a step that went through zero, and onto it
    x = jax.random.normal(jax.random.key(1), (5, IN)).astype(dtype)

    @jax.jit
    def forward(w: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        return weights.matmul(x, w), weights.take(w, jnp.array([0, 3, 9])), weights.dense(w)

    attached, frozen = training.attach(params, scales)["w"], jax.jit(training.freeze)(params, scales)["w"]
    assert isinstance(frozen, weights.QuantizedWeight)
    assert (frozen.bits, frozen.block, frozen.dtype) == (bits, block, dtype)
    for a, b in zip(forward(attached, x), forward(frozen, x), strict=True):
        assert a.dtype == b.dtype == dtype
        assert jnp.array_equal(a, b, equal_nan=True)


def test_gradients_reach_weights_scales_and_activations_through_int8_products() -> None:
    w = fake(4, None, "dynamic_int8")
    x = jax.random.normal(jax.random.key(1), (3, IN))
    gw, gx = jax.jit(jax.grad(lambda w, x: jnp.sum(weights.matmul(x, w)), argnums=(0, 1)))(w, x)
    np.testing.assert_allclose(gx, jnp.broadcast_to(w.dense().sum(axis=0), x.shape), rtol=1e-4, atol=1e-4)
    inside = np.abs(np.asarray(w.base) / np.asarray(w.scale)[:, None]) < 7
    rows = np.asarray(x).sum(axis=0)
    np.testing.assert_allclose(gw.base, np.where(inside, rows[None], 0), atol=0.05)  # the rounding of activations
    assert float(jnp.abs(gw.scale).min()) > 0


def test_it_works_under_vmap_scan_and_adapters() -> None:
    training = quantize.qat({"layers": 2})
    params = {"layers": {"weight": jax.random.normal(jax.random.key(0), (3, IN, IN))}}
    scales = training.init(params)
    assert scales["layers.weight"].shape == (3, IN)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, params["layers"]["weight"])[0]

    x = jax.random.normal(jax.random.key(1), (4, 2, IN))

    @jax.jit
    def both(params: Any, scales: Any) -> tuple[jax.Array, ...]:
        attached, frozen = training.attach(params, scales), training.freeze(params, scales)
        mapped = jax.vmap(lambda x: apply(attached, x))(x)
        a, b = 0.1 * jnp.ones((3, 2, IN)), 0.1 * jnp.ones((3, IN, 2))
        lora = weights.LoRA(base=attached["layers"]["weight"], a=a, b=b, scale=jnp.ones(3))
        over = weights.LoRA(base=frozen["layers"]["weight"], a=a, b=b, scale=jnp.ones(3))
        return (
            apply(attached, x),
            apply(frozen, x),
            mapped,
            apply({"layers": {"weight": lora}}, x),
            apply({"layers": {"weight": over}}, x),
        )

    trained, frozen, mapped, lora, over = both(params, scales)
    assert jnp.array_equal(trained, frozen)
    np.testing.assert_allclose(mapped, trained, atol=1e-6)
    assert jnp.array_equal(lora, over)
    assert not jnp.array_equal(lora, trained)
    grads = jax.jit(jax.grad(lambda p, s: jnp.sum(apply(training.attach(p, s), x)), argnums=(0, 1)))(params, scales)
    assert all(bool(jnp.isfinite(g).all()) and float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_training_gets_two_bits_nearer_than_rounding() -> None:
    """A layer learns to imitate a float one from its own 2-bit rounding: nearer than the best scales alone come."""
    k = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(k[0], (OUT, IN))}
    x = jax.random.normal(k[1], (64, IN)) @ jax.random.normal(k[2], (IN, IN))
    y = x @ params["w"].T
    training = quantize.qat(2, start="minmax")

    def loss(both: Any) -> jax.Array:
        out = weights.matmul(x, training.attach(*both)["w"])
        return jnp.mean(quantize.distill_hidden(out, y))

    optimizer = optax.adam(lambda count: 0.01 * (1 - count.astype(jnp.float32) / 500))

    @jax.jit
    def train(both: Any) -> tuple[Any, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            both, state = carry
            value, grads = jax.value_and_grad(loss)(both)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(both, updates), state), value

        (both, _), losses = jax.lax.scan(step, (both, optimizer.init(both)), length=500)
        return both, losses

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to a whole power
        both, losses = train((params, training.init(params)))
    small = training.freeze(*both)["w"]
    final = float(jnp.mean(quantize.distill_hidden(weights.matmul(x, small), y)))
    rounded = weights.matmul(x, quantize.quantize(params["w"], 2, scale="mse"))
    assert final < 0.4 * float(losses[0])
    assert final < 0.9 * float(jnp.mean(quantize.distill_hidden(rounded, y)))
    assert small.codes.shape == (OUT, IN // 4)


def test_a_decoder_trains_as_it_is_and_its_tied_table_is_looked_up() -> None:
    config = decoder.Config(
        vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    params = decoder.init(jax.random.key(0), config)
    rule = quantize.standard_rule(params, bits=2, outer=2)
    training = quantize.qat(rule)
    scales = training.init(params)
    ids = jnp.array([[1, 2, 3, 4]])

    @jax.jit
    def run(params: Any, scales: Any) -> tuple[Any, jax.Array, jax.Array]:
        teacher = decoder.apply(params, config, ids)

        def loss(scales: Any, params: Any) -> tuple[jax.Array, jax.Array]:
            logits = decoder.apply(training.attach(params, scales), config, ids)
            return jnp.mean(quantize.distill_logits(logits, teacher)), logits

        (_, logits), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(scales, params)
        return grads, logits, decoder.apply(training.freeze(params, scales), config, ids)

    grads, trained, frozen = run(params, scales)
    np.testing.assert_allclose(frozen, trained, atol=1e-6)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert all(float(jnp.abs(g).max()) > 0 for g in grads[0].values())
    bits = quantize.plan_bits(params, rule)
    assert bits["model.embed_tokens.weight"] == 8
    assert {b for path, b in bits.items() if "layers" in path} == {2}


def test_flax_computes_with_what_is_written_out_and_dense_layers_multiply_through() -> None:
    from flax import linen as nn

    module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    x = jax.random.normal(jax.random.key(1), (4, 5))
    params = module.init(jax.random.key(0), x)["params"]
    training = quantize.qat(4, activations="float")
    scales = training.init(params)
    assert {path: s.shape for path, s in scales.items()} == {"layers_0.kernel": (8,), "layers_2.kernel": (3,)}
    frozen, attached = training.freeze(params, scales), training.attach(params, scales)
    run = adapters.linen_apply(module)

    @jax.jit
    def outputs(frozen: Any, attached: Any) -> list[jax.Array]:
        small, kept = quantize.merge(frozen, params), quantize.merge(attached, params)
        return [
            module.apply({"params": small}, x),
            module.apply({"params": kept}, x),
            run({"params": frozen}, x),
            run({"params": attached}, x),
        ]

    first, *others = outputs(frozen, attached)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-6)
    assert jax.tree.map(jnp.shape, quantize.merge(frozen, params)) == jax.tree.map(jnp.shape, params)
    wrapped = adapters.over_kernels(adapters.lora(rank=2, where="layers_2"))
    delta = wrapped.init(jax.random.key(2), frozen)
    np.testing.assert_allclose(run({"params": wrapped.attach(frozen, delta)}, x), first, atol=1e-6)


def test_convolutions_and_projections_of_heads_are_matrices_too() -> None:
    tree = {
        "conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 5))},
        "query": {"kernel": jax.random.normal(jax.random.key(1), (6, 2, 4))},
        "out": {"kernel": jax.random.normal(jax.random.key(2), (2, 4, 6))},
    }
    small = quantize.quantize_tree(quantize.kernels(tree, inputs={"conv": 3, "query": 1, "out": 2}), 8)
    shapes = {"conv": (5, 36), "query": (8, 6), "out": (6, 8)}
    assert {name: small[name]["kernel"].shape for name in tree} == shapes
    written = quantize.merge(small, tree)
    for name in tree:
        np.testing.assert_allclose(written[name]["kernel"], tree[name]["kernel"], atol=0.03)


# Distillation


def test_divergence_is_the_formula_and_masked_positions_may_hold_anything() -> None:
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 3, 7))
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(axis=-1, keepdims=True) for x in (t, s))
    expected = 4 * (p * np.log(p / q)).sum(axis=-1)
    s, t = jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32)
    mask = jnp.array([True, False, True])
    bad = s.at[1].set(jnp.nan)

    @jax.jit
    def run(s: jax.Array, bad: jax.Array) -> Any:
        value, grad = jax.value_and_grad(lambda s: quantize.distill_logits(s, t, temperature=2.0, mask=mask).sum())(bad)
        excluded = quantize.distill_logits(s, t.at[:, 0].set(-jnp.inf))
        near = jax.value_and_grad(lambda s: quantize.distill_hidden(s, t, mask=mask).sum())(bad)
        return quantize.distill_logits(s, t, temperature=2.0), value, grad, excluded, near

    whole, value, grad, excluded, (near, pull) = run(s, bad)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    np.testing.assert_allclose(value, expected[[0, 2]].sum(), rtol=1e-5)
    assert jnp.array_equal(grad[1], jnp.zeros(7))
    assert bool(jnp.isfinite(grad).all() & jnp.isfinite(pull).all() & jnp.isfinite(excluded).all())
    apart = np.square(np.asarray(s - t)).mean(axis=1) / np.square(np.asarray(t)).mean(axis=1)
    np.testing.assert_allclose(near, apart[[0, 2]].sum(), rtol=1e-5)
    assert jnp.array_equal(quantize.distill_logits(t, t), jnp.zeros(3))


# Mistakes

TREE = {"a": {"weight": jnp.ones((4, 8))}, "b": {"weight": jnp.ones((4, 6))}}


def _scales(**other: Any) -> Any:
    return {"a.weight": jnp.ones(4), "b.weight": jnp.ones(4)} | other


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: quantize.qat(3).init(TREE), ValueError, "rule: 3 is not one of 2, 4, 8"),
        (lambda: quantize.qat({"a": 5}).init(TREE), ValueError, "rule['a']: 5 is not one of 2, 4, 8"),
        (lambda: quantize.qat({"c": 4}).init(TREE), ValueError, "rule: 'c' matches no weight; the paths are a.weight"),
        (lambda: quantize.qat({"(": 4}).init(TREE), ValueError, "rule: '(' is no regular expression"),
        (lambda: quantize.qat({1: 4}).init(TREE), TypeError, "rule: expected a regular expression, got 1"),
        (lambda: quantize.qat("a").init(TREE), TypeError, "rule: expected bits by regular expression"),
        (lambda: quantize.qat(4, start="max"), ValueError, "start: 'max' is not one of"),
        (lambda: quantize.qat(4, activations="int4"), ValueError, "activations: 'int4' is not one of"),
        (lambda: quantize.qat(4, block=4).init(TREE), ValueError, "block: 4 does not divide the 6 inputs"),
        (lambda: quantize.qat({"a": 4}).attach(TREE, _scales()), ValueError, "scales: are not of these weights: b"),
        (
            lambda: quantize.qat(4).attach(TREE, _scales(**{"b.weight": jnp.ones(3)})),
            ValueError,
            "scales: that of b.weight has shape (3,), expected (4,)",
        ),
        (lambda: quantize.quantize_tree(TREE, "4"), TypeError, "rule: expected bits by regular expression"),
        (lambda: quantize.quantize_tree(TREE, True), TypeError, "rule: expected bits by regular expression"),
        (lambda: quantize.quantize_tree(TREE, 4, block=4), ValueError, "block: 4 does not divide the 6 inputs of b"),
        (
            lambda: quantize.quantize_tree({}, 4),
            ValueError,
            "rule: '' matches no weight; the tree has none that could be quantised",
        ),
        (lambda: quantize.standard_rule({}), ValueError, "params: the tree has no weight"),
        (lambda: quantize.merge({"a": TREE["a"]}, TREE), ValueError, "small: has other paths than params: b.weight"),
        (lambda: quantize.distill_logits(jnp.ones(3), jnp.ones(4)), ValueError, "teacher: shape (4,) disagrees"),
        (lambda: quantize.distill_logits(jnp.ones(3), jnp.ones(3), temperature=0.0), ValueError, "temperature: 0.0 is"),
        (
            lambda: quantize.distill_hidden(jnp.ones((2, 3)), jnp.ones((2, 3)), mask=jnp.ones(3, bool)),
            ValueError,
            "mask: shape (3,) disagrees",
        ),
    ],
)
def test_mistakes_name_the_argument(call: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_a_number_is_a_rule_for_every_weight() -> None:
    small = quantize.quantize_tree(TREE | {"norm": {"weight": jnp.ones((2, 8))}}, 4)
    assert (small["a"]["weight"].bits, small["b"]["weight"].bits) == (4, 4)
    assert not isinstance(small["norm"]["weight"], weights.QuantizedWeight)


@pytest.mark.parametrize("block", [None, 4])
def test_a_nan_that_came_up_in_training_is_seen_when_frozen(block: int | None) -> None:
    training = quantize.qat(4, block=block)
    params = {"w": jnp.ones((3, 8))}
    scales = training.init(params)
    frozen = jax.jit(training.freeze)({"w": params["w"].at[1, 2].set(jnp.nan)}, scales)["w"]
    bad = jnp.isnan(frozen.dense())
    assert bad[1, :4].all()
    assert bad.sum() == (8 if block is None else 4)


def test_rules_leave_what_an_adapter_trains_alone() -> None:
    lora = weights.LoRA(base=jnp.ones((4, 8)), a=jnp.ones((2, 8)), b=jnp.ones((4, 2)), scale=jnp.array(1.0))
    assert quantize.plan_bits({"q": {"weight": lora}}, 4) == {"q.weight.base": 4}


def test_a_weight_in_training_says_that_it_must_be_frozen_before_export() -> None:
    w = fake(2, None, "dynamic_int8")

    class Anything:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    exporter: Any = Anything()
    with exporting(exporter), pytest.raises(TypeError, match=re.escape("freeze it first (qat(...).freeze)")):
        weights.matmul(jnp.ones((1, IN)), w)
