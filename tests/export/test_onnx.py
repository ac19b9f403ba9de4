"""ONNX files run by onnxruntime compute what JAX does (`make test-onnx`)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax2onnx")
pytest.importorskip("onnxruntime")

from rlx import export, quantize, weights
from rlx.models import decoder

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

CONFIG = decoder.Config(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, residual="plain"
)


def run(path: Path, **arrays: Any) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(array) for name, array in arrays.items()})


def test_any_batch_and_names(tmp_path: Path) -> None:
    def model(image: jax.Array, extra: Any) -> Any:
        return {"y": jnp.tanh(image) * extra["gain"], "total": jnp.sum(image, axis=1)}

    (b,) = jax.export.symbolic_shape("b")
    arguments = [jax.ShapeDtypeStruct((b, 5), jnp.float32), {"gain": jax.ShapeDtypeStruct((1, 5), jnp.float32)}]
    size = export.to_onnx(model, arguments, tmp_path / "m.onnx")
    assert size == (tmp_path / "m.onnx").stat().st_size
    for batch in (1, 3):
        x, gain = np.random.default_rng(batch).standard_normal((2, batch, 5)).astype(np.float32)
        arrays = {"image": x, "extra.gain": gain[:1]}
        total, y = run(tmp_path / "m.onnx", **arrays)
        np.testing.assert_allclose(y, np.tanh(x) * gain[:1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(total, x.sum(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activations", ["dynamic_int8", "float"])
@pytest.mark.parametrize(("bits", "block"), [(8, None), (4, None), (2, None), (4, 8)])
def test_low_bits_are_int8_codes(bits: Any, block: Any, activations: Any, tmp_path: Path) -> None:
    w = jax.random.normal(jax.random.key(0), (40, 512))
    q = quantize.quantize(w, bits, block=block, activations=activations)

    def model(x: jax.Array, ids: jax.Array) -> Any:
        return weights.matmul(x, q), weights.take(q, ids)

    arguments = [jax.ShapeDtypeStruct((3, 512), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)]
    size = export.to_onnx(model, arguments, tmp_path / "m.onnx")
    if block is None:  # a byte a code, once an operation; spreading the scales of blocks takes arrays of indices
        assert size < 2 * 40 * 512 + 20_000
    x, ids = np.asarray(jax.random.normal(jax.random.key(1), (3, 512))), np.array([0, 39, 7, 7], np.int32)
    y, rows = run(tmp_path / "m.onnx", x=x, ids=ids)
    np.testing.assert_allclose(y, weights.matmul(x, q), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(rows, weights.take(q, ids), rtol=1e-6)


def test_what_it_cannot_write_is_named(tmp_path: Path) -> None:
    def model(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct((2,), jnp.float32), x)

    with pytest.raises(ValueError, match=r"fn: jax2onnx cannot convert it.*pure_callback"):
        export.to_onnx(model, [jax.ShapeDtypeStruct((2,), jnp.float32)], tmp_path / "m.onnx")
    stacked = quantize.quantize(jnp.ones((2, 8, 8)), 8)
    scanned = lambda x: jax.lax.scan(lambda x, w: (weights.matmul(x, w), None), x, stacked)[0]  # noqa: E731
    with pytest.raises(TypeError, match="Unroll the layers"):
        export.to_onnx(scanned, [jax.ShapeDtypeStruct((1, 8), jnp.float32)], tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [None, 2])
def test_prompts_and_steps(bits: Any, tmp_path: Path) -> None:
    params = decoder.init(jax.random.key(0), CONFIG)
    params["model"]["embed_tokens"]["weight"] *= 30
    if bits:
        params = quantize.quantize_tree(params, {"_proj": bits, "embed": 8})
    params = jax.tree.map(np.asarray, params)

    def prefill(tokens: jax.Array) -> Any:
        return decoder.prefill(params, CONFIG, tokens, slots=12, unroll=True)

    def decode(token: jax.Array, cache: decoder.Cache) -> Any:
        return decoder.extend(params, CONFIG, token, cache, unroll=True)

    tokens = np.random.default_rng(0).integers(0, 64, (1, 8)).astype(np.int32)
    token = np.array([[5]], np.int32)
    logits, cache = jax.jit(prefill)(tokens)
    after, _ = jax.jit(decode)(token, cache)
    export.to_onnx(prefill, [tokens], tmp_path / "p.onnx")
    export.to_onnx(decode, [token, cache], tmp_path / "d.onnx")
    actual, *filled = run(tmp_path / "p.onnx", tokens=tokens)
    names = ("keys", "values", "valid", "length")
    given = {f"cache.{name}": array for name, array in zip(names, filled, strict=True)}
    following = run(tmp_path / "d.onnx", token=token, **given)[0]
    limit = 1e-5 if bits is None else 0.05  # one activation at the next code
    for one, expected in ((actual, logits), (following, after)):
        assert np.linalg.norm(one - expected) <= limit * np.linalg.norm(expected)
        assert np.array_equal(one.argmax(-1), np.asarray(expected).argmax(-1))
