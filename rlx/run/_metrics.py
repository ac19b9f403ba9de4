"""metrics.jsonl: the source of truth of what was measured; TensorBoard gets a copy."""

import math
import os
from pathlib import Path
from typing import Any

from ._files import LineFile, canonical, json_lines, write_atomic


def read_metrics(directory: str | Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, of one stage or of all.

    Args:
      directory: a run's directory.
      stage: keep this stage's lines only.
    Returns:
      One dict a line, with `stage`, `step` (updates done), `time` [s since the epoch] and the metrics; a metric
      that was not finite is None.
    Raises:
      DataError: a line is damaged; names it.
    """
    lines = json_lines(Path(directory) / "metrics.jsonl")
    return [line for line in lines if stage is None or line.get("stage") == stage]


def scalar(name: str, value: Any) -> float | int | bool | str | None:
    """A metric as JSON has it: scalars of Python, numpy and jax; None for NaN and the infinities.

    Raises:
      TypeError: the value is not a scalar; names the metric.
    """
    if hasattr(value, "shape"):
        if value.shape != ():
            raise TypeError(f"{name}: expected a scalar metric, got shape {tuple(value.shape)}; reduce it first")
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{name}: expected a scalar metric, got {type(value).__name__}")


class Metrics:
    """Appends to metrics.jsonl, cuts what a resumed run will write again, mirrors to TensorBoard."""

    def __init__(self, directory: Path, *, tensorboard: bool):
        """Open for appending; a half-written last line is cut."""
        self._path = directory / "metrics.jsonl"
        self._mirror = directory / "tb" if tensorboard else None
        self._writers: dict[str, Any] = {}
        self._file = LineFile(self._path)

    def write(self, stage: str, step: int, time: float, values: dict[str, Any]) -> dict[str, Any]:
        """Write one line and return its metrics as plain numbers."""
        clash = values.keys() & {"stage", "step", "time"}
        if clash:
            raise ValueError(f"{min(clash)}: the name is taken by the line itself; call the metric something else")
        plain = {name: scalar(name, value) for name, value in values.items()}
        self._file.append(canonical({"stage": stage, "step": step, "time": round(time, 3), **plain}))
        writer = self._writer(stage, step)
        if writer is not None:
            for name, value in plain.items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(name, value, step, walltime=time)
        return plain

    def rows(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The lines written up to now, of one stage or of all; see `read_metrics`."""
        return read_metrics(self._path.parent, stage)

    def cut(self, stage: str, after: int) -> int:
        """Remove a stage's lines beyond a step, since they will be written again; return how many there were."""
        lines = list(json_lines(self._path))
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= after]
        if len(kept) < len(lines):
            self._file.close()
            write_atomic(self._path, b"".join(canonical(line) + b"\n" for line in kept))
            self._file = LineFile(self._path)
        writer = self._writers.pop(stage, None)
        if writer is not None:
            writer.close()
        return len(lines) - len(kept)

    def sync(self) -> None:
        """Make every line durable; done before a checkpoint, so that none of its lines is ever missing."""
        self._file.sync()
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, stage: str, step: int) -> Any:
        if self._mirror is None:
            return None
        if stage not in self._writers:
            from tensorboardX import SummaryWriter

            # What a resumed run writes again takes the place of what the mirror has from before.
            self._writers[stage] = SummaryWriter(os.fspath(self._mirror / stage), purge_step=step)
        return self._writers[stage]
