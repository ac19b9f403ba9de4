"""What travels in a file comes back as it was; what is damaged is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import export, quantize, weights
from rlx.export._file import sealed
from rlx.export._tflite_metadata import encode, manifest, write_metadata
from rlx.export._tflite_tree import pack, unpack

SEAL = len(sealed(b""))
VALUES: dict[str, Any] = {
    "tokenizer.json": '{"a": 1, "größe": "日本"}',
    "vocabulary": bytes(range(256)) * 3,
    "empty": b"",
    "no text": "",
    "preprocess": {"mean": [0.485, 0.1], "size": [32, 64], "exact": 0.1, "big": 2**70, "none": None, "yes": True},
    "number": -0.5,
    "Ünïcode": [],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> export.Exported:
    """One file of two signatures that share a weight."""
    q = quantize.quantize(jax.random.normal(jax.random.key(0), (4, 6)), 2)

    def encode(x: jax.Array) -> jax.Array:
        return weights.matmul(x, q)

    def decode(token: jax.Array, cache: Any) -> Any:
        return {"logits": weights.matmul(cache["v"], q), "token": token + 1}

    x, token = jax.ShapeDtypeStruct((3, 6), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    signatures = {"encode": (encode, [x]), "decode": (decode, [token, {"k": x, "v": x}])}
    return export.to_tflite(signatures, tmp_path_factory.mktemp("file") / "m.tflite", metadata=VALUES)


def test_values_come_back_as_they_were(written: export.Exported) -> None:
    model = export.load_tflite(written.path)
    assert model.metadata == VALUES
    assert {name: type(value) for name, value in model.metadata.items()} == {n: type(v) for n, v in VALUES.items()}
    assert model("encode", np.zeros((3, 6), np.float32))[0].shape == (3, 4)
    model.metadata["preprocess"]["mean"] = None  # a copy
    assert model.metadata == VALUES


def test_the_manifest_says_what_the_file_is(written: export.Exported) -> None:
    said = export.load_tflite(written.path).manifest
    assert said is not None
    assert said["rlx"] == rlx.__version__
    assert said["bits"] == written.quantized == {"quantized0_4x6": 2}
    decode = said["signatures"]["decode"]
    assert [(a["name"], a["path"], a["shape"], a["dtype"]) for a in decode["inputs"]] == [
        ("arg0000", "token", [], "int32"),
        ("arg0001", "cache.k", [3, 6], "float32"),
        ("arg0002", "cache.v", [3, 6], "float32"),
    ]
    assert [(a["name"], a["path"], a["shape"]) for a in decode["outputs"]] == [
        ("out0000", "logits", [3, 4]),
        ("out0001", "token", []),
    ]
    assert said["signatures"]["encode"]["outputs"][0]["path"] == ""
    assert said["metadata"]["vocabulary"] == {
        "kind": "bytes",
        "bytes": 768,
        "sha256": hashlib.sha256(VALUES["vocabulary"]).hexdigest(),
    }
    for name, one in said["signatures"].items():
        assert [(tuple(a["shape"]), a["dtype"]) for a in one["inputs"]] == written.inputs[name]
        assert [(tuple(a["shape"]), a["dtype"]) for a in one["outputs"]] == written.outputs[name]


def test_other_readers_find_entries_by_their_names(written: export.Exported) -> None:
    """As the schema says, without rlx: a name and a buffer, at a multiple of sixteen."""
    from ai_edge_litert import schema_py_generated as schema

    content = written.path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    entries = {model.Metadata(i).Name().decode(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
    data = model.Buffers(entries["vocabulary"]).DataAsNumpy()
    assert data.tobytes() == VALUES["vocabulary"]
    assert (data.ctypes.data - np.frombuffer(content, np.uint8).ctypes.data) % 16 == 0
    assert model.Buffers(entries["tokenizer.json"]).DataAsNumpy().tobytes().decode() == VALUES["tokenizer.json"]
    assert json.loads(model.Buffers(entries["rlx.manifest"]).DataAsNumpy().tobytes())["rlx"] == rlx.__version__


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (VALUES["vocabulary"], "'vocabulary' is damaged"),
        ('{"a": 1, "größe"'.encode(), "'tokenizer.json' is damaged"),
        (b'"mean":[0.485', "'preprocess' is damaged"),
        (b'"bits":{"quantized0_4x6":2', "'rlx.manifest' is damaged"),
        (b'{"bits"', "'rlx.manifest' is damaged"),
    ],
)
def test_a_changed_byte_is_noticed(part: bytes, named: str, written: export.Exported, tmp_path: Path) -> None:
    content = bytearray(written.path.read_bytes())
    assert content.count(part) == 1
    place = content.index(part) + len(part) - 1
    content[place] ^= 1
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.tflite is damaged: its SHA-256 is another"):
        export.load_tflite(tmp_path / "m.tflite")
    (tmp_path / "m.tflite").write_bytes(sealed(bytes(content[:-SEAL])))
    with pytest.raises(ValueError, match=f"model: its entry {named}"):
        export.load_tflite(tmp_path / "m.tflite")


def test_every_truncation_and_every_changed_byte_is_refused(written: export.Exported) -> None:
    """Those of the graph and of the weights too, which the entries' digests do not cover."""
    whole = written.path.read_bytes()
    assert export.TFLite(whole).metadata.keys() == VALUES.keys()
    for at in range(0, len(whole), 61):
        with pytest.raises(ValueError, match=r"is damaged|not a TensorFlow Lite file|truncated, or changed"):
            export.TFLite(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="was truncated, or changed since rlx wrote it"):
        export.TFLite(whole[:-SEAL])
    with pytest.raises(ValueError, match="model"):
        export.TFLite(whole[: len(whole) // 2])


def test_an_entry_that_is_gone_and_a_later_format_are_noticed(written: export.Exported) -> None:
    content = written.path.read_bytes()
    tree = unpack(content)
    tree.metadata = [entry for entry in tree.metadata if entry.name != b"number"]
    with pytest.raises(ValueError, match="its entry 'number' is gone, 4 bytes"):
        export.TFLite(sealed(pack(tree)))
    tree = unpack(content)
    tree.metadata = [entry for entry in tree.metadata if entry.name != b"rlx.manifest"]
    bare = export.TFLite(sealed(pack(tree)))
    assert bare.metadata == {}
    assert bare.manifest is None
    write_metadata(tree, {}, manifest({}, {}, {}) | {"format": 2})
    with pytest.raises(ValueError, match=r"has format 2; rlx .* reads 1"):
        export.TFLite(sealed(pack(tree)))


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"a": (1, 2)}, ValueError, "use lists for tuples"),
        ({"a": {1: 2}}, ValueError, "strings as keys"),
        ({"a": float("nan")}, ValueError, "'a' is not JSON"),
        ({"a": np.zeros(3)}, TypeError, "'a' is neither bytes, a string nor JSON"),
        ({"a": "\ud800"}, ValueError, "not Unicode text"),
        ({"a": ["\ud800"]}, ValueError, "not Unicode text"),
        ({"": 1}, ValueError, "cannot be the name"),
        ({"rlx.manifest": 1}, ValueError, "cannot be the name"),
        ({"min_runtime_version": "9"}, ValueError, "cannot be the name"),
        ({3: "x"}, TypeError, "names are strings, got 3"),
    ],
)
def test_what_would_not_come_back_is_refused(metadata: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        encode(metadata)
