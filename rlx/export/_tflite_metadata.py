"""What travels in a TensorFlow Lite file besides the graph: a manifest, and whatever the user puts in."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import rfc8785

from rlx import __version__

from ._tflite_tree import append_buffer

MANIFEST = "rlx.manifest"
# The converter and other tools write these; two entries of one name would be a guess.
RESERVED = (MANIFEST, "min_runtime_version", "CONVERSION_METADATA")
_FORMAT = 1

Contents = dict[str, tuple[str, bytes]]


def encode(metadata: Mapping[str, Any] | None) -> Contents:
    """Each entry as its kind ("bytes", "text" or "json") and its bytes.

    Raises:
      TypeError: a name is no string, or a value is none that JSON has.
      ValueError: a name is taken or empty, or a value would not be read back as it is.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected values by name, got {type(metadata).__name__}")
    found: Contents = {}
    for name, value in (metadata or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"metadata: names are strings, got {name!r}")
        if not name or name in RESERVED or "\0" in name:
            raise ValueError(f"metadata: {name!r} cannot be the name of an entry; {', '.join(RESERVED)} are taken")
        if isinstance(value, (bytes, bytearray, memoryview)):
            found[name] = ("bytes", bytes(value))
        elif isinstance(value, str):
            found[name] = ("text", _utf8(name, value))
        else:
            found[name] = ("json", _json(name, value))
    return found


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"metadata: {name!r} is not Unicode text ({error}); give bytes") from error


def _json(name: str, value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(f"metadata: {name!r} is neither bytes, a string nor JSON: {error}") from error
    except ValueError as error:  # NaN, infinity, a cycle
        raise ValueError(f"metadata: {name!r} is not JSON: {error}") from error
    if json.loads(text) != value:
        raise ValueError(
            f"metadata: {name!r} would be read back as something else: use lists for tuples and strings as keys"
        )
    return _utf8(name, text)


def manifest(signatures: Mapping[str, Any], bits: Mapping[str, int], entries: Contents) -> dict[str, Any]:
    """What rlx says about a file: its signatures, the bits of its weights, and the digests of its entries."""
    described = {
        name: {"kind": kind, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, (kind, content) in entries.items()
    }
    return {
        "format": _FORMAT,
        "rlx": __version__,
        "signatures": dict(signatures),
        "bits": dict(bits),
        "metadata": described,
    }


def write_metadata(tree: Any, entries: Contents, described: dict[str, Any]) -> None:
    """Add entries and manifest to a `ModelT`; the manifest carries a digest of itself."""
    from ai_edge_litert import schema_py_generated as schema

    signed = rfc8785.dumps(described | {"sha256": _digest(described)})
    tree.metadata = list(tree.metadata or [])
    for name, content in [*((name, content) for name, (_, content) in entries.items()), (MANIFEST, signed)]:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), append_buffer(tree, content)
        tree.metadata.append(entry)


def read_metadata(model: bytes) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The manifest of a file (None if rlx has not written it) and the user's entries, both checked.

    Raises:
      ValueError: an entry is not what the manifest says, or the manifest itself is damaged or of a later format.
    """
    from ai_edge_litert import schema_py_generated as schema

    root: Any = schema.Model.GetRootAs(model, 0)
    raw: dict[str, bytes] = {}
    for i in range(root.MetadataLength()):
        entry = root.Metadata(i)
        data = root.Buffers(entry.Buffer()).DataAsNumpy()
        raw[(entry.Name() or b"").decode(errors="replace")] = b"" if isinstance(data, int) else data.tobytes()
    if MANIFEST not in raw:
        return None, {}
    described = _checked(raw[MANIFEST])
    return described, {name: _decoded(name, raw.get(name), said) for name, said in described["metadata"].items()}


def _checked(content: bytes) -> dict[str, Any]:
    try:
        described = json.loads(content)
        said = described.pop("sha256")
        intact = said == _digest(described)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"model: its entry {MANIFEST!r} is damaged: {error}") from error
    if not intact:
        raise ValueError(f"model: its entry {MANIFEST!r} is damaged: its SHA-256 is another")
    if described.get("format") != _FORMAT:
        raise ValueError(
            f"model: its manifest has format {described.get('format')!r}; rlx {__version__} reads {_FORMAT}"
        )
    return described


def _decoded(name: str, content: bytes | None, said: Mapping[str, Any]) -> Any:
    if content is None:
        raise ValueError(f"model: its entry {name!r} is gone, {said['bytes']} bytes by its manifest")
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise ValueError(f"model: its entry {name!r} is damaged: its SHA-256 is another than its manifest says")
    if said["kind"] == "bytes":
        return content
    return content.decode() if said["kind"] == "text" else json.loads(content)


def _digest(described: dict[str, Any]) -> str:
    return hashlib.sha256(rfc8785.dumps(described)).hexdigest()
