"""What is timed of an operation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of an operation in one direction.

    Attributes:
      op, shape, dtype, direction: what it is called in the record.
      arguments: makes the inputs.
      implementations: functions of the inputs by name; "xla" is the whole array at once, the first is ours.
      unsupported: why an implementation is left out on this device, by name.
      flops, bytes: of the least work there is; a floor follows from the ceilings of the run.
      truth: the same in float64, of the inputs as NumPy arrays; None where it is too large.
      fallback: which implementation "auto" means where no kernel is taken.
      configs: configurations of "mosaic_gpu" that the tuner tries, those that can run on this shape.
      tuned: "mosaic_gpu" with one of them, a function of the inputs.
    """

    op: str
    shape: Mapping[str, int]
    dtype: str
    direction: str
    arguments: Callable[[], tuple[Any, ...]]
    implementations: Mapping[str, Callable[..., Any]]
    flops: float
    bytes: float
    unsupported: Mapping[str, str]
    truth: Callable[..., Any] | None = None
    fallback: str = "xla"
    configs: Sequence[Any] = ()
    tuned: Callable[[Any], Callable[..., Any]] | None = None
