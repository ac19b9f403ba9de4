"""What was exported computes the same numbers; what cannot be exported is refused by name."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import export, quantize, weights
from rlx.models import decoder

# TensorFlow's own modules and protobuf warn while they are imported; none of it is rlx's to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:tensorflow.*"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

CONFIG = decoder.Config(vocab_size=19, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


def test_several_signatures_in_one_file(tmp_path: Path) -> None:
    w = jax.random.normal(jax.random.key(0), (5, 3))
    signatures = {
        "first": (lambda x: weights.matmul(x, w), [jax.ShapeDtypeStruct((2, 3), jnp.float32)]),
        "second": (
            lambda a, b: {"sum": a + b, "less": a - b},
            [jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)],
        ),
    }
    report = export.to_tflite(signatures, tmp_path / "m.tflite")
    assert report.bytes == (tmp_path / "m.tflite").stat().st_size
    assert report.outputs == {"first": [((2, 5), "float32")], "second": [((4,), "float32"), ((4,), "float32")]}
    model = export.TFLite(report.path)
    assert set(model.signatures) == {"first", "second"}
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(model("first", x)[0], x @ np.asarray(w).T, rtol=1e-5)
    a, b = np.arange(4, dtype=np.float32), np.full(4, 10, np.float32)
    less, total = export.run_tflite(report.path, "second", a, b)  # leaves in the order of the tree: "less", "sum"
    assert np.array_equal(less, a - b)
    assert np.array_equal(total, a + b)
    with pytest.raises(ValueError, match="'third' is not one of 'first', 'second'"):
        model("third")
    with pytest.raises(ValueError, match="takes 1, got 2"):
        model("first", x, x)
    with pytest.raises(ValueError, match=r"argument 0 of 'first' is float32\(2, 3\), got float64\(2, 3\)"):
        model("first", x.astype(np.float64))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_file_holds_the_codes_and_computes_what_rlx_computes(bits: Any, tmp_path: Path) -> None:
    q = quantize.quantize(jax.random.normal(jax.random.key(0), (64, 96)), bits)
    x = np.asarray(jax.random.normal(jax.random.key(1), (3, 7, 96)))
    arguments = [jax.ShapeDtypeStruct(x.shape, jnp.float32)]
    report = export.to_tflite({"y": (lambda x: weights.matmul(x, q), arguments)}, tmp_path / "m.tflite")
    assert report.quantized == {bits: 1}
    content = report.path.read_bytes()
    assert np.asarray(q.codes).tobytes() in content
    assert np.asarray(q.scale).tobytes() in content
    expected = np.asarray(weights.matmul(jnp.asarray(x), q))
    (actual,) = export.run_tflite(report.path, "y", x)
    # Measured 1e-6; one activation rounded the other way would move an output by 1e-3.
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


def test_a_decoder_in_float_and_in_eight_bits(tmp_path: Path) -> None:
    params = decoder.init(jax.random.key(0), CONFIG)
    params["model"]["embed_tokens"]["weight"] *= 30
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, 12), 0, 19), np.int32)
    arguments = [jax.ShapeDtypeStruct((1, 12), jnp.int32)]
    sizes = {}
    for name, tree, limit in (
        ("float", params, 1e-5),
        ("int8", quantize.quantize_tree(params, {"_proj": 8}), 5e-3),  # a code of an activation may flip inside
    ):
        concrete = jax.tree.map(np.asarray, tree)

        def logits(ids: Any, concrete: Any = concrete) -> jax.Array:
            return decoder.apply(concrete, CONFIG, ids, unroll=True)

        report = export.to_tflite({"logits": (logits, arguments)}, tmp_path / f"{name}.tflite")
        sizes[name] = report.bytes
        expected = np.asarray(logits(jnp.asarray(ids)))
        (actual,) = export.run_tflite(report.path, "logits", ids)
        assert np.abs(actual - expected).max() <= limit * np.abs(expected).max()
        assert np.array_equal(actual.argmax(-1), expected.argmax(-1))
    assert sizes["int8"] < 0.7 * sizes["float"]
    assert report.quantized == {8: 14}


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    vector = [jax.ShapeDtypeStruct((8,), jnp.float32)]
    with pytest.raises(ValueError, match=r"no TensorFlow Lite builtin for .*top_k"):
        export.to_tflite({"k": (lambda x: jax.lax.top_k(x, 2), vector)}, path)
    stacked = quantize.quantize(jnp.ones((2, 8, 8)), 8)

    def scanned(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (weights.matmul(x, w), None), x[None], stacked)[0]

    with pytest.raises(TypeError, match=r"quantised weight inside scan.*unroll"):
        export.to_tflite({"s": (scanned, vector)}, path)
    with pytest.raises(ValueError, match="signatures: at least one"):
        export.to_tflite({}, path)
    with pytest.raises(ValueError, match="'a b' is not an identifier"):
        export.to_tflite({"a b": (lambda x: x, vector)}, path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"not a model, surely")
    with pytest.raises(ValueError, match="is not a TensorFlow Lite file"):
        export.TFLite(path)


def test_stablehlo_comes_back(tmp_path: Path) -> None:
    q = quantize.quantize(jax.random.normal(jax.random.key(0), (6, 4)), 4)
    path = tmp_path / "m.stablehlo"
    size = export.to_stablehlo(lambda x: weights.matmul(x, q), [jax.ShapeDtypeStruct((2, 4), jnp.float32)], path)
    assert size == path.stat().st_size
    x = jax.random.normal(jax.random.key(1), (2, 4))
    np.testing.assert_allclose(export.load_stablehlo(path)(x), weights.matmul(x, q), atol=1e-6)
