"""A stack whose layers have different bits computes, trains, saves and exports as its layers do alone."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import adapters, export, quantize, run, weights
from rlx.models import decoder

BITS = (8, 2, 4, 2)
WIDTH = 16
NAME = "layers.{}.up_proj.weight"
RULE = {r"layers\.0\.": 8, r"layers\.2\.": 4, "up_proj": 2}


def stack(dtype: Any = jnp.float32) -> dict[str, Any]:
    w = jax.random.normal(jax.random.key(0), (len(BITS), WIDTH, WIDTH)).astype(dtype)
    return {"layers": {"up_proj": {"weight": w}}}


def of(tree: Any) -> Any:
    return tree["layers"]["up_proj"]["weight"]


def layer(w: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], w)


def x(dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, WIDTH)).astype(dtype)


def test_a_rule_finds_layers_by_their_names_and_the_first_that_matches_counts() -> None:
    assert quantize.plan_bits(stack(), RULE) == {"layers.up_proj.weight": BITS}
    assert quantize.plan_bits(stack(), {"": 2} | RULE) == {"layers.up_proj.weight": 2}  # all the same: as ever
    assert quantize.plan_bits(stack(), {r"layers\.[0-3]\.": 4}) == {"layers.up_proj.weight": 4}
    one = {"model": {"layers": {"weight": jnp.ones((1, 4, 4))}}}
    assert quantize.plan_bits(one, {r"layers\.0\.": 8, "": 2}) == {"model.layers.weight": 8}
    t5 = {"block": {"layer": {"0": {"q": {"weight": jnp.ones((2, 4, 4))}}}}}  # numbers of both kinds
    assert quantize.plan_bits(t5, {r"block\.1\.layer\.0\.": 8, r"layer\.0\.": 2}) == {"block.layer.0.q.weight": (2, 8)}
    experts = {"layers": [{"weight": jnp.ones((5, 4, 4))}]}  # numbered, not stacked: the first axis is something else
    assert quantize.plan_bits(experts, {r"layers\.0\.": 4}) == {"layers.0.weight": 4}
    deep = {"layers": {"experts": jnp.ones((2, 3, 4, 4))}}
    small = quantize.quantize_tree(deep, {r"layers\.0\.": 4, "": 2})["layers"]["experts"]
    assert np.asarray(small.layer_bits).tolist() == [[4, 4, 4], [2, 2, 2]]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {r"layers\.4\.": 8, "": 2},
            r"'layers\\.4\\.' matches no weight; the paths are layers.up_proj.weight; layers are",
        ),
        ({r"layers\.4\.": 8, "": 2}, f"layers are named {NAME.format(0)} to {NAME.format(3)}"),
        ({r"layers\.[03]\.": 8}, f"some layers of a stack have bits and {NAME.format(1)}, {NAME.format(2)} none"),
        ({r"layers\.0\.": 3, "": 2}, "3 is not one of 2, 4, 8"),
    ],
)
def test_mistakes_name_the_layers(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize.quantize_tree(stack(), rule)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"scale": "mse"}, jnp.float32),
        ({}, jnp.bfloat16),
        ({"block": 8}, jnp.float32),
        ({"activations": "float", "block": 4}, jnp.bfloat16),
    ],
)
def test_it_computes_what_its_layers_compute_alone_to_the_last_bit(options: Any, dtype: Any) -> None:
    params = stack(dtype)
    mixed = of(jax.jit(lambda p: quantize.quantize_tree(p, RULE, **options))(params))
    assert (mixed.bits, mixed.layer_bits.tolist(), mixed.shape) == (8, list(BITS), (4, WIDTH, WIDTH))
    alone = [quantize.quantize(of(params)[i], bits, **options) for i, bits in enumerate(BITS)]
    for i, one in enumerate(alone):
        assert jnp.array_equal(layer(mixed, i).integers(), one.integers())
        assert jnp.array_equal(layer(mixed, i).scale, one.scale)

    def step(y: jax.Array, w: Any) -> tuple[jax.Array, Any]:
        y = jnp.tanh(weights.matmul(y, w))
        return y, (y, weights.take(w, jnp.array([0, 5, WIDTH])), weights.dense(w))

    scanned = jax.jit(lambda w, y: jax.lax.scan(step, y, w)[1])(mixed, x(dtype))
    y, one = x(dtype), jax.jit(step)
    for i, w in enumerate(alone):
        y, expected = one(y, w)
        for a, b in zip(scanned, expected, strict=True):
            assert jnp.array_equal(a[i], b, equal_nan=True)
    assert jnp.array_equal(weights.dense(mixed), jnp.stack([w.dense() for w in alone]))
    assert jnp.array_equal(of(quantize.merge({"layers": {"up_proj": {"weight": mixed}}}, params)), weights.dense(mixed))


def test_layers_of_the_same_bits_are_the_plain_representation() -> None:
    plain = of(quantize.quantize_tree(stack(), 2))
    named = of(quantize.quantize_tree(stack(), {NAME.format(i): 2 for i in range(4)}))
    assert jax.tree.structure(named) == jax.tree.structure(plain)
    assert named.layer_bits is None
    assert named.codes.nbytes == 4 * WIDTH * WIDTH // 4
    training = quantize.qat({NAME.format(i): 2 for i in range(4)})
    assert of(training.attach(stack(), training.init(stack()))).layer_bits is None


def test_feedback_is_that_of_each_layer() -> None:
    rows = jax.random.normal(jax.random.key(2), (4, 40, WIDTH))
    moment = jnp.einsum("lri,lrj->lij", rows, rows)
    moments = {"layers.up_proj.weight": moment}
    mixed = of(quantize.quantize_tree(stack(), RULE, moments=moments, sweeps=0))
    for i, bits in enumerate(BITS[:3]):
        expected = quantize.gptq(of(stack())[i], moment[i], bits, scale="minmax", sweeps=0)
        np.testing.assert_allclose(weights.dense(layer(mixed, i)), expected.dense(), rtol=1e-5, atol=1e-6)


# Training


@pytest.mark.parametrize(("block", "start"), [(None, "minmax"), (8, "lsq")])
def test_training_is_that_of_each_layer_and_freezes_to_the_last_bit(block: int | None, start: Any) -> None:
    training = quantize.qat(RULE, block=block, start=start)
    params = stack()
    scales = training.init(params)
    g = jax.random.normal(jax.random.key(3), (4, WIDTH, WIDTH))

    def apply(w: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, w)[0]

    @jax.jit
    def both(params: Any, scales: Any) -> Any:
        attached, frozen = of(training.attach(params, scales)), of(training.freeze(params, scales))
        pull = jax.grad(lambda p, s: jnp.sum(of(training.attach(p, s)).dense() * g), argnums=(0, 1))(params, scales)
        return apply(attached, x()), apply(frozen, x()), attached.dense(), frozen, pull

    trained, computed, dense, frozen, (gw, gs) = both(params, scales)
    assert jnp.array_equal(trained, computed)
    assert jnp.array_equal(dense, frozen.dense())
    assert frozen.layer_bits.tolist() == list(BITS)
    for i, bits in enumerate(BITS[:3]):
        alone = quantize.qat(bits, block=block, start=start)
        own = {"w": of(params)[i]}
        own_scales = alone.init(own)
        np.testing.assert_allclose(scales["layers.up_proj.weight"][i], own_scales["w"], rtol=1e-6)
        own_scales = {"w": scales["layers.up_proj.weight"][i]}

        def total(p: Any, s: Any, alone: Any = alone, g: jax.Array = g[i]) -> jax.Array:
            return jnp.sum(alone.attach(p, s)["w"].dense() * g)

        ew, es = jax.jit(jax.grad(total, argnums=(0, 1)))(own, own_scales)
        assert jnp.array_equal(of(gw)[i], ew["w"])
        np.testing.assert_allclose(gs["layers.up_proj.weight"][i], es["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("residual", ["plain", "reversible"])
def test_a_decoder_trains_under_scan_unrolls_and_takes_adapters(residual: Any) -> None:
    config = decoder.Config(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        residual=residual,
    )
    params, ids = decoder.init(jax.random.key(0), config), jnp.array([[1, 2, 3, 4]])
    rule = quantize.standard_rule(params)
    plan = quantize.plan_bits(params, rule)
    assert plan.pop("model.embed_tokens.weight") == 8
    assert set(plan.values()) == {(8, 2, 8)}
    training = quantize.qat(rule, start="minmax")
    scales = training.init(params)
    adapter = adapters.lora(rank=2, where=r"layers\.1\..*\.(q|down)_proj")
    frozen = training.freeze(params, scales)
    delta = jax.tree.map(lambda leaf: leaf + 0.1, adapter.init(jax.random.key(1), frozen))

    @jax.jit
    def outputs(params: Any, scales: Any, frozen: Any, delta: Any) -> Any:
        def loss(p: Any, s: Any) -> tuple[jax.Array, jax.Array]:
            logits = decoder.apply(training.attach(p, s), config, ids)
            return jnp.mean(jnp.square(logits)), logits

        def adapted(delta: Any) -> tuple[jax.Array, jax.Array]:
            logits = decoder.apply(adapter.attach(frozen, delta), config, ids)
            return jnp.mean(jnp.square(logits)), logits

        (_, trained), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, scales)
        (_, over), pull = jax.value_and_grad(adapted, has_aux=True)(delta)
        scanned = decoder.apply(frozen, config, ids)
        return trained, scanned, decoder.apply(frozen, config, ids, unroll=True), over, grads, pull

    trained, scanned, unrolled, over, grads, pull = outputs(params, scales, frozen, delta)
    np.testing.assert_allclose(scanned, trained, atol=1e-6)
    np.testing.assert_allclose(unrolled, scanned, atol=1e-5)
    assert all(float(jnp.abs(g).max()) > 0 and bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads[1]))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves((grads, pull)))
    assert float(jnp.abs(over - scanned).max()) > 1e-3
    merged = quantize.merge(adapter.attach(frozen, delta), params)
    own, written = (tree["model"]["layers"]["mlp"]["down_proj"]["weight"] for tree in (frozen, merged))
    low_rank = delta["model.layers.mlp.down_proj.weight"]
    np.testing.assert_allclose(
        written[1], own.dense()[1] + 8 * low_rank["b"][1] @ low_rank["a"][1], rtol=1e-5, atol=1e-5
    )
    assert jnp.array_equal(written[0], own.dense()[0])


def test_the_usual_rule_keeps_what_is_asked_of_the_outer_layers() -> None:
    params = {"layers": {"up": jnp.ones((5, 4, 4))}, "stem": jnp.ones((3, 4, 4)), "lm_head": jnp.ones((4, 4))}
    plan = {"layers.up": (8, 2, 2, 2, 8), "stem": 2, "lm_head": 8}
    assert quantize.plan_bits(params, quantize.standard_rule(params)) == plan
    plan = {"layers.up": (4, 2, 2, 2, 4), "stem": 2, "lm_head": 8}
    assert quantize.plan_bits(params, quantize.standard_rule(params, outer=4)) == plan
    assert len(quantize.standard_rule(params, outer=2)) == 3
    for depth in (1, 2):
        assert quantize.plan_bits({"layers": {"up": jnp.ones((depth, 4, 4))}}, {"": 8}) == {"layers.up": 8}
        few = {"layers": {"up": jnp.ones((depth, 4, 4))}}
        assert quantize.plan_bits(few, quantize.standard_rule(few)) == {"layers.up": 8}
    ends = {name: jnp.ones((4, 4)) for name in ("reader", "image_projection", "text_projection", "patch_embed")}
    assert set(quantize.plan_bits(ends, quantize.standard_rule(ends)).values()) == {8}


# Bits under a budget


def test_a_budget_is_spent_on_the_layer_that_matters() -> None:
    params = stack()

    def loss(p: Any) -> jax.Array:
        apart = jnp.square(of(p) - of(params)).sum(axis=(1, 2))
        return jnp.sum(apart * jnp.array([1.0, 100.0, 1.0, 1.0]))

    errors = quantize.sensitivity(loss, params, by_layer=True)
    assert list(errors) == [NAME.format(i) for i in range(4)]
    for i, name in enumerate(errors):
        low = quantize.quantize(of(params)[i], 2, scale="mse").dense()
        expected = float(jnp.square(low - of(params)[i]).sum()) * (100 if i == 1 else 1)
        assert errors[name][2] == pytest.approx(expected, rel=1e-4)
    sizes = quantize.sizes(params, by_layer=True)
    assert sizes[NAME.format(0)] == {bits: quantize.weight_bytes((WIDTH, WIDTH), bits) for bits in (2, 4, 8)}
    budget = 3 * sizes[NAME.format(0)][2] + sizes[NAME.format(0)][8]
    found = quantize.allocate(errors, sizes, budget)
    assert list(found.bits.values()) == [2, 8, 2, 2]
    small = of(quantize.quantize_tree(params, found.rule))
    assert small.layer_bits.tolist() == [2, 8, 2, 2]
    plan = quantize.plan_bits(params, found.rule)
    assert quantize.weight_bytes((4, WIDTH, WIDTH), plan["layers.up_proj.weight"]) == found.bytes == budget
    whole = quantize.sizes(params, where="up")
    assert whole == {"layers.up_proj.weight": {b: 4 * sizes[NAME.format(0)][b] for b in (2, 4, 8)}}
    some = quantize.sizes(params, choices=(2,), where=r"layers\.3\.", by_layer=True)
    assert list(some) == [NAME.format(3)]
    with pytest.raises(ValueError, match=re.escape("where: 'layers\\\\.9' matches no weight")):
        quantize.sizes(params, where=r"layers\.9", by_layer=True)
    with pytest.raises(ValueError, match=re.escape("bits: 3 of them are not one for each layer of (4, 16, 16)")):
        quantize.weight_bytes((4, WIDTH, WIDTH), (2, 2, 8))


# Saved and shipped


def test_a_checkpoint_brings_each_layer_back_at_its_own_bits(tmp_path: Path) -> None:
    small = quantize.quantize_tree(stack(), RULE)
    other = quantize.quantize_tree(stack(), {r"layers\.1\.": 8, "": 4})  # the same shapes, other bits
    with run.VerifiedCheckpointer(tmp_path) as checkpoints:
        checkpoints.save(1, small)
        found = checkpoints.restore(other)
    assert found is not None
    assert of(found.state).layer_bits.tolist() == list(BITS)
    assert jnp.array_equal(weights.dense(of(found.state)), weights.dense(of(small)))


def test_the_file_has_each_layer_at_its_own_bits(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    small = jax.tree.map(np.asarray, of(quantize.quantize_tree(stack(), RULE, scale="mse")))

    def apply(x: jax.Array, ids: jax.Array) -> list[jax.Array]:
        for i in range(len(BITS)):
            x = weights.matmul(x, layer(small, i))
        return [x, weights.take(layer(small, 2), ids)]

    wrong = dataclasses.replace(layer(small, 0), layer_bits=np.uint8(2))
    with pytest.raises(ValueError, match=re.escape("codes outside [-2, 1], for layer_bits=2")):
        export.to_tflite(
            {"f": (lambda x: weights.matmul(x, wrong), [jax.ShapeDtypeStruct((3, WIDTH), jnp.float32)])},
            tmp_path / "m.tflite",
        )
    specs = [jax.ShapeDtypeStruct((3, WIDTH), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)]
    written = export.to_tflite({"f": (apply, specs)}, tmp_path / "m.tflite")
    assert list(written.quantized.values()) == list(BITS)
    content = written.path.read_bytes()
    for i, bits in enumerate(BITS):
        alone = quantize.quantize(of(stack())[i], bits, scale="mse")
        assert np.asarray(alone.codes).tobytes() in content
        assert np.asarray(alone.scale).tobytes() in content
    ids = jnp.array([1, 7], jnp.int32)
    y, rows = export.run_tflite(written.path, "f", x(), ids)
    expected, looked = apply(x(), ids)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(rows, looked)


@pytest.mark.slow
def test_a_decoder_of_mixed_layers_is_exported_and_its_bytes_are_those_that_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    config = decoder.Config(
        vocab_size=32,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=96,
        residual="plain",
    )
    params = decoder.init(jax.random.key(0), config)
    ids = jnp.arange(8, dtype=jnp.int32)[None]

    def size(rule: Any) -> tuple[int, int, Any]:
        small = jax.tree.map(np.asarray, quantize.quantize_tree(params, rule))
        fn = lambda ids: decoder.apply(small, config, ids, unroll=True)  # noqa: E731
        spec = [jax.ShapeDtypeStruct(ids.shape, ids.dtype)]
        written = export.to_tflite({"f": (fn, spec)}, tmp_path / "m.tflite")
        (actual,) = export.run_tflite(written.path, "f", ids)
        apart = np.abs(actual - jax.jit(fn)(ids))
        # A difference of 1e-7 before a product may move an activation to the next of its 255 codes.
        assert np.median(apart) <= 1e-5 * np.abs(actual).max()
        assert apart.max() <= 0.05 * np.abs(actual).max()
        shapes = {path: leaf.shape for path, leaf in _leaves(params).items()}
        plan = quantize.plan_bits(params, rule)
        counted = sum(quantize.weight_bytes(shapes[path], bits) for path, bits in plan.items())
        return written.bytes, counted, sorted(written.quantized.values())

    bytes_2, counted_2, _ = size(quantize.standard_rule(params, outer=2))
    bytes_mixed, counted_mixed, found = size(quantize.standard_rule(params))
    assert found == sorted([8] + [8, 2, 2, 8] * 7)
    assert abs((bytes_mixed - bytes_2) - (counted_mixed - counted_2)) <= 64 * 29


def _leaves(params: Any) -> dict[str, Any]:
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}
