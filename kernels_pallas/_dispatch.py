"""Which implementation computes an operation: chosen in Python, when it is traced."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax

from ._table import Entry, recorded

_log = logging.getLogger("kernels_pallas")


def choose(
    operation: str,
    implementation: str,
    ways: Mapping[str, str | None],
    *,
    shape: Mapping[str, int],
    dtype: Any,
    otherwise: str = "xla",
) -> tuple[str, Mapping[str, Mapping[str, int]]]:
    """The implementation to use, and the configurations that were recorded for it on this device, by direction.

    Args:
      operation: its name, as in the table.
      implementation: a key of `ways`, which is taken or refused and never replaced; or "auto", which takes what was
        recorded as faster than XLA on this kind of device (in one direction at least, and in none slower) and can
        run, and `otherwise` where nothing was.
      ways: why an implementation cannot run here, or None, by name.
      shape: sizes by name, as in the table.
      dtype: of the inputs.
      otherwise: what "auto" means where nothing was recorded; the ratios in the table are against it.

    Raises:
      NotImplementedError: one that is not there, or cannot run: says why, and which can.
    """
    if implementation != "auto" and implementation not in ways:
        known = ", ".join(repr(name) for name in ("auto", *ways))
        raise NotImplementedError(f"implementation: {implementation!r} is not one of {known}")
    by_way: dict[str, list[Entry]] = {}
    for entry in recorded(operation, shape, dtype, device()):
        by_way.setdefault(entry.implementation, []).append(entry)
    if implementation == "auto":
        wins = {name: max(e.ratio for e in found) for name, found in by_way.items() if min(e.ratio for e in found) >= 1}
        able = [name for name in wins if wins[name] > 1 and ways.get(name, "is not there") is None]
        taken = max(able, key=wins.__getitem__, default=otherwise)
        _say_once(operation, taken, tuple(shape.items()))
    else:
        taken, reason = implementation, ways[implementation]
        if reason is not None:
            others = " or ".join(repr(name) for name, why in ways.items() if why is None)
            raise NotImplementedError(f"implementation: {taken!r} {reason}; use {others}")
    return taken, {entry.direction: entry.config for entry in by_way.get(taken, [])}


def needs_hopper() -> str | None:
    """Why a Mosaic kernel cannot run here, or None."""
    if jax.default_backend() != "gpu":
        return f"needs a Hopper GPU, the backend is {jax.default_backend()}"
    if not any(name in device() for name in ("H100", "H200", "GH200", "H20", "H800")):
        return f"needs a Hopper GPU, this is {device()}"
    return None


def device() -> str:
    """The kind of device that a computation runs on unless told otherwise."""
    return jax.devices()[0].device_kind


@cache
def _say_once(operation: str, taken: str, shape: tuple[tuple[str, int], ...]) -> None:
    _log.info("%s: %r of %s", operation, taken, ", ".join(f"{name}={size}" for name, size in shape))
