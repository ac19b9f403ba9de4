"""How far a run is: a bar on a terminal, plain lines at a calm rate anywhere else; 80 columns."""

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any


def duration(seconds: float) -> str:
    """A duration to read.

    >>> duration(42), duration(754), duration(9000)
    ('42 s', '12 min 34 s', '2 h 30 min')
    """
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Progress of one label towards a total; a context manager.

    A terminal shows a bar with the time that is left; a file or a pipe gets a line first, at most one each
    `every` seconds, and one at the end.

        >>> with Progress(2, "warm up", file=sys.stdout, clock=lambda: 0.0) as progress:
        ...     progress.update(1, loss=2.5)
        ...     progress.update(2, loss=2.25)
        warm up  1/2   50%  ? left  loss 2.5
        warm up  2/2  100%  0 s  loss 2.25

    Args:
      total: the count at the end.
      label: name in front.
      start: the count to begin at; the rate counts from here.
      began: when the count was `start`, by the clock; now by default.
      file: where to write; stderr by default.
      every: seconds between plain lines.
      clock: seconds; for tests.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        start: int = 0,
        began: float | None = None,
        file: IO[str] | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Nothing is shown before the first update."""
        self._total, self._label, self._start, self._every, self._clock = total, label, start, every, clock
        self._file = sys.stderr if file is None else file
        self._began = clock() if began is None else began
        self._last: float | None = None
        self._bar: Any = None
        self._task: Any = None
        if self._file.isatty():
            self._open_bar()

    def update(self, done: int, **metrics: Any) -> None:
        """Say that `done` of the total are done; the metrics are shown behind, as many as fit."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, metrics=_metrics(metrics))
            return
        now = self._clock()
        first = self._last is None
        if not first and done < self._total and now - (self._last or 0.0) < self._every:
            return
        self._last = now
        width = len(str(self._total))
        share = 100 * done // self._total if self._total else 100
        head = f"{self._label}  {done:>{width}}/{self._total}  {share:>3}%  {self._time(done, now)}"
        print(f"{head}  {_metrics(metrics)}"[:80].rstrip(), file=self._file, flush=True)

    def _time(self, done: int, now: float) -> str:
        spent = now - self._began
        if done >= self._total:
            return duration(spent)
        moved = done - self._start
        return f"{duration(spent / moved * (self._total - done)) if moved > 0 and spent > 0 else '?'} left"

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}"),
        )
        self._bar = Bar(*columns, console=Console(file=self._file), refresh_per_second=4)
        self._task = self._bar.add_task(self._label, total=self._total, completed=self._start, metrics="")
        self._bar.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _metrics(metrics: dict[str, Any]) -> str:
    parts = []
    for name, value in metrics.items():
        if isinstance(value, float):
            parts.append(f"{name} {value:.4g}")
        elif value is not None:
            parts.append(f"{name} {value}")
    return " ".join(parts)
