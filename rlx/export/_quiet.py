"""TensorFlow and LiteRT write to the process's stderr from C++; keep that aside."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Redirect file descriptor 2 inside the block; what is yielded reads what was written, for an error message."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as aside:
        kept = os.dup(2)

        def read() -> str:
            aside.seek(0)
            return aside.read().decode(errors="replace")

        try:
            os.dup2(aside.fileno(), 2)
            yield read
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
