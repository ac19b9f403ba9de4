"""Representations of a weight agree with the dense array they stand for, and cost no gradient for what is frozen."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import quantize, weights

B, T, IN, OUT, RANK = 5, 7, 48, 80, 4


def arrays(key: jax.Array, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    k = jax.random.split(key, 6)
    draw = lambda i, *shape: jax.random.normal(k[i], shape, jnp.float32).astype(dtype)  # noqa: E731
    return {
        "base": draw(0, OUT, IN),
        "a": draw(1, RANK, IN),
        "b": draw(2, OUT, RANK),
        "magnitude": draw(3, OUT),
        "output_scale": draw(4, OUT),
        "input_scale": draw(5, IN),
    }


def representations(key: jax.Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    v = arrays(key, dtype)
    low = {name: v[name] for name in ("base", "a", "b")}
    lora = weights.LoRA(**low, scale=jnp.array(0.7))
    return {
        "dense": v["base"],
        "lora": lora,
        "dora": weights.DoRA(**low, scale=jnp.array(0.7), magnitude=v["magnitude"]),
        "ia3": weights.IA3(base=v["base"], output_scale=v["output_scale"], input_scale=v["input_scale"]),
        "ia3 on inputs": weights.IA3(base=v["base"], input_scale=v["input_scale"]),
        "ia3 over lora": weights.IA3(base=lora, output_scale=v["output_scale"]),
        "lora over lora": weights.LoRA(base=lora, a=v["a"] + 1, b=v["b"] - 1, scale=jnp.array(0.1)),
    }


def dense_oracle(name: str, key: jax.Array) -> np.ndarray:
    """The formulas of the papers in float64 numpy."""
    v = {k: np.asarray(x, np.float64) for k, x in arrays(key).items()}
    lora = v["base"] + 0.7 * v["b"] @ v["a"]
    return {
        "dense": v["base"],
        "lora": lora,
        "dora": v["magnitude"][:, None] * lora / np.linalg.norm(lora, axis=1, keepdims=True),
        "ia3": v["output_scale"][:, None] * v["base"] * v["input_scale"],
        "ia3 on inputs": v["base"] * v["input_scale"],
        "ia3 over lora": v["output_scale"][:, None] * lora,
        "lora over lora": lora + 0.1 * (v["b"] - 1) @ (v["a"] + 1),
    }[name]


NAMES = ("dense", "lora", "dora", "ia3", "ia3 on inputs", "ia3 over lora", "lora over lora")


@pytest.mark.parametrize("name", NAMES)
def test_matmul_take_and_dense_are_the_formula(name: str, key: jax.Array) -> None:
    w, oracle = representations(key)[name], dense_oracle(name, key)
    x = jax.random.normal(jax.random.key(1), (B, T, IN))
    ids = jax.random.randint(jax.random.key(2), (B, T), 0, OUT)
    scale = np.abs(oracle).max()
    np.testing.assert_allclose(weights.dense(w), oracle, atol=3e-6 * scale)
    np.testing.assert_allclose(weights.take(w, ids), oracle[np.asarray(ids)], atol=3e-6 * scale)
    expected = np.asarray(x, np.float64) @ oracle.T
    np.testing.assert_allclose(weights.matmul(x, w), expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_representation_knows_its_shape_and_dtype(name: str, key: jax.Array) -> None:
    w = representations(key, jnp.bfloat16)[name]
    assert w.shape == (OUT, IN)
    assert w.dtype == jnp.bfloat16
    assert weights.dense(w).dtype == jnp.bfloat16
    assert isinstance(w, weights.Representation) is (name != "dense")


def test_per_example_is_each_example_with_its_own_lora(key: jax.Array) -> None:
    k = jax.random.split(key, 5)
    base = jax.random.normal(k[0], (OUT, IN))
    a, b = jax.random.normal(k[1], (3, RANK, IN)), jax.random.normal(k[2], (3, OUT, RANK))
    scale, ids = jnp.array([0.5, 1.0, 0.0]), jnp.array([2, 0, 1, 1, 0])
    x = jax.random.normal(k[3], (B, T, IN))
    tokens = jax.random.randint(k[4], (B, T), 0, OUT)
    bank = weights.PerExample(base=base, a=a, b=b, scale=scale, ids=ids)
    for i, adapter in enumerate(ids):
        alone = weights.LoRA(base=base, a=a[adapter], b=b[adapter], scale=scale[adapter])
        np.testing.assert_allclose(weights.matmul(x, bank)[i], weights.matmul(x[i], alone), atol=1e-4)
        np.testing.assert_allclose(weights.take(bank, tokens)[i], weights.take(alone, tokens[i]), atol=1e-5)


def test_per_example_choice_is_data_not_a_trace(key: jax.Array) -> None:
    traces = []

    @jax.jit
    def run(ids: jax.Array) -> jax.Array:
        traces.append(1)
        bank = weights.PerExample(
            base=jnp.ones((2, 3)), a=jnp.ones((4, 1, 3)), b=jnp.ones((4, 2, 1)), scale=jnp.arange(4.0), ids=ids
        )
        return weights.matmul(jnp.ones((2, 3)), bank)

    assert not jnp.array_equal(run(jnp.array([0, 1])), run(jnp.array([3, 2])))
    assert len(traces) == 1


def shapes_in(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The result (dtype, shape) of every buffer in compiled HLO text but the parameters and their transposes.

    Only the entry computation counts: what is inside a fusion has no buffer.
    """
    found = []
    entry = text[text.index("\nENTRY ") :]
    for match in re.finditer(r"= (\w+)\[([\d,]*)\]\S* ([\w-]+)\(", entry):
        dtype, dims, op = match.groups()
        if op not in ("parameter", "bitcast", "get-tuple-element", "copy", "transpose"):
            found.append((dtype, tuple(int(d) for d in dims.split(",") if d)))
    return found


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "lora over lora"])
def test_no_gradient_buffer_for_the_frozen_weight(name: str, key: jax.Array) -> None:
    """The compiled backward pass of an adapted layer holds no [out, in] array; with a dense one trained it does."""
    x = jax.random.normal(jax.random.key(1), (B, T, IN))

    def loss(w: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(weights.matmul(x, w)))

    def matrices(trainable: Any, rebuild: Any) -> list[tuple[int, ...]]:
        step = jax.jit(jax.grad(lambda t, frozen, x: loss(rebuild(t, frozen), x), argnums=(0, 2)))
        text = step.lower(trainable, w, x).compile().as_text()
        return [shape for _, shape in shapes_in(text) if sorted(shape) == [IN, OUT]]

    w = representations(key)[name]
    leaves, structure = jax.tree.flatten(w)
    base = next(i for i, leaf in enumerate(leaves) if leaf.shape == (OUT, IN))

    def adapter_only(trainable: list[jax.Array], frozen: Any) -> Any:
        full = list(trainable)
        full.insert(base, jax.tree.leaves(frozen)[base])
        return jax.tree.unflatten(structure, full)

    held = matrices(leaves[:base] + leaves[base + 1 :], adapter_only)
    if (
        name == "dora"
    ):  # the squares under the row norms are summed in one fusion; the fusion's inner lines are text too
        held = held[2:]
    assert held == []
    assert matrices(w, lambda trainable, frozen: trainable) != []


def test_dora_gradient_is_that_of_the_formula_with_a_detached_norm(key: jax.Array) -> None:
    w = representations(key)["dora"]
    x = jax.random.normal(jax.random.key(1), (B, IN))

    def formula(w: weights.DoRA) -> jax.Array:
        update = w.base + w.scale * w.b @ w.a
        norm = jax.lax.stop_gradient(jnp.linalg.norm(update, axis=1, keepdims=True))
        return jnp.sum(jnp.sin(x @ (w.magnitude[:, None] * update / norm).T))

    actual = jax.grad(lambda w: jnp.sum(jnp.sin(weights.matmul(x, w))))(w)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(jax.grad(formula)(w)), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-4 * float(jnp.abs(e).max()))


def test_dora_at_the_start_is_the_base_and_a_zero_row_stays_zero(key: jax.Array) -> None:
    base = jax.random.normal(key, (OUT, IN)).at[3].set(0.0)
    norms = jnp.linalg.norm(base, axis=1)
    w = weights.DoRA(base=base, a=jnp.ones((RANK, IN)), b=jnp.zeros((OUT, RANK)), scale=jnp.array(1.0), magnitude=norms)
    np.testing.assert_allclose(weights.dense(w), base, atol=1e-6)
    gradient = jax.grad(lambda w: jnp.sum(weights.matmul(jnp.ones((1, IN)), w)))(w)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))


def test_stacked_layers_are_sliced_by_scan(key: jax.Array) -> None:
    layers = [representations(jax.random.key(seed))["lora"] for seed in range(3)]
    square = [weights.LoRA(base=w.base[:IN], a=w.a, b=w.b[:IN], scale=w.scale) for w in layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *square)
    assert stacked.shape == (3, IN, IN)
    x = jax.random.normal(key, (B, IN))
    scanned, _ = jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, stacked)
    for w in square:
        x = jnp.tanh(weights.matmul(x, w))
    np.testing.assert_allclose(scanned, x, atol=1e-5)


def test_merge_rounds_once() -> None:
    """A bfloat16 base plus a float32 update: the sum is rounded, not its parts."""
    w = weights.LoRA(
        base=jnp.array([[1.0]], jnp.bfloat16), a=jnp.array([[1.0]]), b=jnp.array([[0.0058]]), scale=jnp.array(1.0)
    )
    assert weights.dense(w)[0, 0] == jnp.bfloat16(1.0 + 0.0058)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w, x: weights.matmul(x[..., :-1], w), ValueError, "x: its last dim must be the weight's 48 inputs"),
        (lambda w, x: weights.matmul(x.astype(jnp.int32), w), TypeError, "x: expected a floating dtype, got int32"),
        (lambda w, x: weights.matmul(x, "w"), TypeError, "w: expected an array"),
        (lambda w, x: weights.matmul(x, jnp.ones((2, OUT, IN))), ValueError, "w: expected dims"),
        (lambda w, x: weights.matmul(x, jnp.ones((OUT, IN), jnp.int8)), TypeError, "w: expected a floating dtype"),
        (lambda w, x: x @ quantize.quantize(w, 8), TypeError, "is multiplied by weights.matmul(x, w)"),
        (lambda w, x: np.asarray(x) @ quantize.quantize(w, 8), TypeError, "is multiplied by weights.matmul(x, w)"),
        (lambda w, x: weights.take(w, x), TypeError, "ids: expected an integer dtype"),
        (
            lambda w, x: weights.matmul(
                x, weights.PerExample(base=w, a=w[None, :2], b=w[None, :, :2], scale=jnp.ones(1), ids=jnp.zeros(9, int))
            ),
            ValueError,
            "x: its first dim must be the batch of 9 adapter ids",
        ),
        (
            lambda w, x: weights.dense(
                weights.PerExample(base=w, a=w[None], b=w[None], scale=jnp.ones(1), ids=jnp.zeros(1, int))
            ),
            TypeError,
            "PerExample stands for one weight an example",
        ),
    ],
)
def test_mistakes_name_the_argument(call: Any, error: type, message: str, key: jax.Array) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(arrays(key)["base"], jnp.ones((B, IN)))


@pytest.mark.parametrize("call", [lambda w, x: weights.matmul(x, w), lambda w, x: weights.dense(w)])
def test_factors_of_a_wrong_shape_do_not_broadcast(call: Any, key: jax.Array) -> None:
    v = arrays(key)
    lora = {"base": v["base"], "a": v["a"], "b": v["b"], "scale": jnp.array(1.0)}
    x = jnp.ones((B, IN))
    with pytest.raises(ValueError, match="b: expected dims"):
        call(weights.LoRA(**{**lora, "b": v["b"][:1]}), x)
    with pytest.raises(ValueError, match="a: expected dims"):
        call(weights.LoRA(**{**lora, "a": v["a"][:, :1]}), x)
    assert call(weights.LoRA(**{**lora, "scale": 1.0}), x).shape[-1] in (OUT, IN)


@pytest.mark.parametrize("index", [-1, OUT, 2**30])
@pytest.mark.parametrize("name", ["dense", "lora", "ia3"])
def test_an_id_outside_the_vocabulary_is_seen(name: str, index: int, key: jax.Array) -> None:
    rows = weights.take(representations(key)[name], jnp.array([0, index]))
    assert bool(jnp.all(jnp.isfinite(rows[0])))
    assert bool(jnp.all(jnp.isnan(rows[1])))
