"""What a checkpoint says about itself: a sha256 for each leaf, and one for the manifest."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rlx._tree import leaf_sha256, named_leaves, path_name

from ._exits import CheckpointMismatch
from ._files import canonical, strict_loads
from ._quiet import Quiet

# TensorStore has no array of these; their bytes are stored.
_STORED_AS_BYTES = ("int2", "uint2", "int4", "uint4", "float4", "float6", "float8")


class Damaged(Exception):
    """A step is not what was written; the text names the leaf or the file."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What became of one step when it was checked.

    Args:
      step: its number.
      ok: every leaf is what was written.
      reason: the first bad leaf or file; empty when there is none.
      manifest: what the step says about itself; empty when it cannot be read.
    """

    step: int
    ok: bool
    reason: str
    manifest: dict[str, Any]


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def record(leaf: Any) -> tuple[dict[str, Any], np.ndarray | None]:
    """A leaf's entry in the manifest, and the array to store; None where the entry holds it all."""
    if isinstance(leaf, (bool, int, float, str)):
        kind, text = type(leaf).__name__, json.dumps(leaf)
        digest = hashlib.sha256(f"{kind}:{text}".encode()).hexdigest()
        return {"kind": kind, "value": text, "sha256": digest}, None
    if is_key(leaf):
        array = np.array(jax.random.key_data(leaf))
        entry: dict[str, Any] = {"kind": "key", "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        entry["impl"] = str(jax.random.key_impl(leaf))
    else:
        array = np.array(leaf)  # a copy: the buffer may be donated while it is still being written
        entry = {"kind": "array", "dtype": str(array.dtype), "shape": list(array.shape)}
    entry["sha256"] = leaf_sha256(leaf)
    if array.size == 0:
        return entry, None
    if entry["kind"] == "array" and entry["dtype"].startswith(_STORED_AS_BYTES):
        array = array.view(np.uint8)
    return entry, array


def tree_digest(leaves: dict[str, dict[str, Any]]) -> str:
    """sha256 over each leaf's path and digest, as `rlx._tree.tree_sha256` for a tree of arrays."""
    digest = hashlib.sha256()
    for path, entry in sorted(leaves.items()):
        digest.update(f"{path}={entry['sha256']}\n".encode())
    return digest.hexdigest()


def manifest_digest(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest without its own digest."""
    return hashlib.sha256(canonical({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def step_numbers(directory: Path) -> list[int]:
    """The steps in a directory, oldest first; an empty folder is not a step, whatever its name."""
    if not directory.is_dir():
        return []
    found = [
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and str(int(path.name)) == path.name and path.is_dir() and any(path.iterdir())
    ]
    return sorted(found)


def read_manifest(directory: Path, step: int) -> dict[str, Any]:
    """A step's manifest.

    Raises:
      Damaged: it is missing, is not JSON, or is not what was written.
    """
    path = directory / str(step) / "manifest" / "metadata"
    try:
        manifest = strict_loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"manifest: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != manifest_digest(manifest):
        raise Damaged("manifest: its content is not what its sha256 says")
    if manifest["step"] != step:
        raise Damaged(f"manifest: it belongs to step {manifest['step']}")
    return manifest


def read_leaves(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A step's leaves as numpy arrays, keys and Python scalars, each checked against its sha256.

    Raises:
      Damaged: names the first leaf that is not what was written.
    """
    entries: dict[str, dict[str, Any]] = manifest["leaves"]
    stored = [path for path, entry in entries.items() if "value" not in entry and np.prod(entry["shape"]) > 0]
    arrays = _read_arrays(directory.absolute() / str(manifest["step"]) / "state", stored)
    leaves = {}
    for path, entry in entries.items():
        try:
            leaves[path] = _leaf(entry, arrays.get(path))
            good = record(leaves[path])[0]["sha256"] == entry["sha256"]
        except (TypeError, ValueError) as error:
            raise Damaged(f"leaf {path}: {error}") from error
        if not good:
            raise Damaged(f"leaf {path}: its content is not what its sha256 says")
    return leaves


def _read_arrays(folder: Path, stored: list[str]) -> dict[str, np.ndarray]:
    if not stored:
        return {}
    restore_args = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in stored}
    try:
        with Quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except MemoryError:
        raise
    except Exception as error:  # orbax reports a truncated file as a bare Exception
        text = " ".join(str(error).split())
        raise Damaged(f"state: {type(error).__name__}: {text[:160]}") from error


def _leaf(entry: dict[str, Any], array: np.ndarray | None) -> Any:
    kind = entry["kind"]
    if "value" in entry:
        return json.loads(entry["value"])
    if kind == "key":
        if array is None:
            raise ValueError("an empty array of keys cannot be restored")
        return jax.random.wrap_key_data(jnp.asarray(array), impl=entry["impl"])
    dtype = jnp.dtype(entry["dtype"])
    if array is None:
        return np.zeros(entry["shape"], dtype)
    if array.dtype == np.uint8 and dtype != np.uint8:
        array = array.view(dtype)
    if array.dtype != dtype or list(array.shape) != entry["shape"]:
        raise ValueError(f"stored as {array.dtype}{list(array.shape)}, written as {dtype}{entry['shape']}")
    return array


def check_step(directory: Path, step: int) -> StepReport:
    """Read a step back and compare every leaf with its sha256."""
    manifest: dict[str, Any] = {}
    try:
        manifest = read_manifest(directory, step)
        read_leaves(directory, manifest)
    except Damaged as error:
        return StepReport(step=step, ok=False, reason=str(error), manifest=manifest)
    return StepReport(step=step, ok=True, reason="", manifest=manifest)


def check_template(template: Any, entries: dict[str, dict[str, Any]], step: int) -> None:
    """Check that a state has the leaves, shapes and dtypes that a checkpoint holds.

    Raises:
      CheckpointMismatch: names each leaf that differs, up to five.
    """
    wrong = []
    wanted = named_leaves(template)
    for path, leaf in wanted.items():
        if path not in entries:
            wrong.append(f"{path} is not in the checkpoint")
            continue
        held, asked = _kind(entries[path]), _kind_of(leaf)
        if held != asked:
            wrong.append(f"{path} is {held} in the checkpoint and {asked} in the state")
    wrong += [f"{path} is in the checkpoint and not in the state" for path in entries if path not in wanted]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointMismatch(f"step {step}: {'; '.join(wrong[:5])}{more}")


def _kind(entry: dict[str, Any]) -> str:
    if "value" in entry:
        return f"a Python {entry['kind']}"
    return f"{entry['dtype']}{entry['shape']}"


def _kind_of(leaf: Any) -> str:
    if isinstance(leaf, (bool, int, float, str)):
        return f"a Python {type(leaf).__name__}"
    return f"{leaf.dtype}{list(leaf.shape)}"


def place(template: Any, leaves: dict[str, Any]) -> Any:
    """The leaves in the template's structure, each on the devices that the template's leaf is on."""

    def put(path: Any, like: Any) -> Any:
        value = leaves[path_name(path)]
        if isinstance(like, jax.Array):
            return jax.device_put(value, like.sharding) if like.committed else jax.device_put(value)
        if isinstance(like, jax.ShapeDtypeStruct):
            return jax.device_put(value, like.sharding)
        return value[()] if isinstance(like, np.generic) else value

    return jax.tree_util.tree_map_with_path(put, template)
