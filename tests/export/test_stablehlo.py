"""StableHLO is written, loaded back and computes the same."""

import sys
from pathlib import Path
from typing import Any

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
    with pytest.raises(ValueError, match=r"other\.stablehlo is truncated, or not a file of to_stablehlo"):
        export.load_stablehlo(path)


def test_a_missing_jax2onnx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"rlx\[onnx\]"):
        export.to_onnx(jnp.sin, [jax.ShapeDtypeStruct((2,), jnp.float32)], tmp_path / "m.onnx")


def test_every_truncation_and_every_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.stablehlo"
    size = export.to_stablehlo(lambda x: 2 * x, [jax.ShapeDtypeStruct((2,), jnp.float32)], path)
    whole = path.read_bytes()
    assert len(whole) == size
    assert jax.export.deserialize(bytearray(whole)).call(jnp.ones(2)).tolist() == [2.0, 2.0]  # others read it too
    damaged = [whole[: size * i // 20] for i in range(20)] + [b"text" * 50, whole + b"\0"]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, size, 37)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"stablehlo is (damaged: its SHA-256|truncated, or not a file of to_stablehlo)"
        ):
            export.load_stablehlo(path)


@pytest.mark.parametrize("platforms", ["cpu", (), ("gpu",)])
def test_platforms_that_there_are_not_are_refused(platforms: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="platforms: "):
        export.to_stablehlo(jnp.sin, [jax.ShapeDtypeStruct((2,), jnp.float32)], tmp_path / "m", platforms=platforms)


def test_a_path_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(x: jax.Array) -> jax.Array:
        raise AssertionError

    arguments = [jax.ShapeDtypeStruct((2,), jnp.float32)]
    writers = [
        lambda path: export.to_stablehlo(never, arguments, path),
        lambda path: export.to_tflite({"f": (never, arguments)}, path),
    ]
    for write in writers:
        with pytest.raises(IsADirectoryError, match=r"path: .* is a folder"):
            write(tmp_path)
        with pytest.raises(FileNotFoundError, match="path: there is no folder"):
            write(tmp_path / "gone" / "m")
        with monkeypatch.context() as patch:
            patch.setattr("os.access", lambda *_: False)  # root may write anywhere
            with pytest.raises(PermissionError, match="path: nothing can be written"):
                write(tmp_path / "m")
