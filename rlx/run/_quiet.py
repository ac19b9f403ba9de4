"""Keeps orbax from printing, several times over, the error that it also raises."""

import logging
import sys
import time
from typing import Any

_LOGGERS = ("absl", "asyncio")


class Quiet:
    """A context in which a failed write or read of orbax is one exception and no tracebacks on stderr.

    It logs the error in each of its threads. It closes its event loop at the first bad leaf, too, and TensorStore's
    threads then report each leaf that was still under way to the closed loop, which nobody can catch.
    """

    def __enter__(self) -> "Quiet":
        self._hook = sys.unraisablehook
        self._mine = self._unraisable
        sys.unraisablehook = self._mine
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._filter)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            time.sleep(0.1)  # the threads report within milliseconds
        if sys.unraisablehook is self._mine:
            sys.unraisablehook = self._hook
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._filter)

    @staticmethod
    def _filter(found: logging.LogRecord) -> bool:
        return not (found.exc_info and ("orbax" in found.pathname or found.name == "asyncio"))

    def _unraisable(self, found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and "Event loop is closed" in str(found.exc_value)):
            self._hook(found)
