"""StableHLO is written, loaded back and computes the same."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import export, quantize, weights


def test_a_function_comes_back(tmp_path: Path) -> None:
    q = quantize.quantize(jax.random.normal(jax.random.key(0), (6, 4)), 4)
    path = tmp_path / "m.stablehlo"
    arguments = [jax.ShapeDtypeStruct((2, 4), jnp.float32), {"shift": jax.ShapeDtypeStruct((), jnp.float32)}]
    size = export.to_stablehlo(lambda x, p: {"y": weights.matmul(x, q) + p["shift"]}, arguments, path)
    assert size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    x, shift = jax.random.normal(jax.random.key(1), (2, 4)), jnp.array(2.0)
    loaded = export.load_stablehlo(path)
    np.testing.assert_allclose(loaded(x, {"shift": shift})["y"], weights.matmul(x, q) + 2, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loaded)(x, {"shift": shift})["y"], weights.matmul(x, q) + 2, rtol=1e-6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.stablehlo"):
        export.load_stablehlo(tmp_path / "gone.stablehlo")


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 64, b"\xff" * 64])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.stablehlo"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.stablehlo is not a file of to_stablehlo"):
        export.load_stablehlo(path)


def test_a_missing_jax2onnx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"rlx\[onnx\]"):
        export.to_onnx(jnp.sin, [jax.ShapeDtypeStruct((2,), jnp.float32)], tmp_path / "m.onnx")
