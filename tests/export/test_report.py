"""The report says what is in the file; its table fits a terminal."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rlx import export, quantize, weights
from rlx.export.__main__ import main


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signatures that share one weight; one of them has a loop and a weight of its own."""
    q = quantize.quantize(jax.random.normal(jax.random.key(0), (16, 32)), 4)
    own = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)

    def short(x: jax.Array) -> jax.Array:
        return weights.matmul(x, q)

    def long(x: jax.Array, times: jax.Array) -> dict[str, jax.Array]:
        x = lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ own), x)
        return {"a_result_with_a_rather_long_name": weights.matmul(jnp.sin(jnp.sin(x)), q), "x": x}

    x = jax.ShapeDtypeStruct((2, 32), jnp.float32)
    signatures = {"short": (short, [x]), "long": (long, [x, jax.ShapeDtypeStruct((), jnp.int32)])}
    target = tmp_path_factory.mktemp("report") / "m.tflite"
    return export.to_tflite(signatures, target, metadata={"tokenizer": "abc" * 100}).path


def test_it_counts_what_is_in_the_file(path: Path) -> None:
    found = export.report(path, repeats=3)
    assert found.bytes == path.stat().st_size
    short, long = found.signatures["short"], found.signatures["long"]
    assert short.operations == {"FULLY_CONNECTED": 1}
    assert short.inputs == ("x float32[2, 32]",)
    assert short.outputs == ("out0000 float32[2, 16]",)
    assert short.weight_bytes == 16 * 32 // 2
    assert short.live_bytes == 4 * (2 * 32 + 2 * 16)
    assert long.operations["SIN"] == 2
    assert long.operations["WHILE"] == long.operations["TANH"] == 1  # in the body of the loop
    assert long.weight_bytes >= 16 * 32 // 2 + 4 * 32 * 32
    assert found.weight_bytes < short.weight_bytes + long.weight_bytes  # a weight of both is there once
    assert found.metadata == {"tokenizer": 300}
    for one in (short, long):
        assert 0 < one.median_ms <= one.p90_ms < 1000


def test_the_table_fits_eighty_columns(path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(path), "--repeats", "2"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("signature", "median ms", "short", "FULLY_CONNECTED 1", "tokenizer 300 bytes", "WHILE 1"):
        assert part in text


def test_a_file_that_is_none_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "no.tflite").write_bytes(b"nothing at all")
    assert main(["report", str(tmp_path / "no.tflite")]) == 2
    assert main(["report", str(tmp_path / "gone.tflite")]) == 2
    said = capsys.readouterr().err
    assert "not a TensorFlow Lite file" in said
    assert "gone.tflite" in said
    with pytest.raises(ValueError, match="repeats"):
        export.report(tmp_path / "no.tflite", repeats=0)


def test_a_file_without_a_manifest_is_read_too(path: Path, tmp_path: Path) -> None:
    from rlx.export._tflite_tree import pack, unpack

    tree = unpack(path.read_bytes())
    tree.metadata = []
    (tmp_path / "bare.tflite").write_bytes(pack(tree))
    found = export.report(tmp_path / "bare.tflite", repeats=1)
    assert found.signatures["short"].inputs == ("arg0000 float32[2, 32]",)
    assert found.metadata == {}
