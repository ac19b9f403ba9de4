import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("job.py")


class Process(subprocess.Popen):
    """The job, with what it says kept in files so that a full pipe never stops it."""

    def finish(self, timeout: float = 120) -> tuple[int, str, str]:
        try:
            out, err = self.communicate(timeout=timeout)
        finally:
            self.kill()
        return self.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Process]:
    """Starts the job in a directory with flags."""
    started: list[Process] = []

    def go(directory: Path, *flags: str, largest_file: int | None = None) -> Process:
        command = [sys.executable, "-W", "error", str(JOB), "--directory", str(directory), *flags]
        if largest_file is not None:  # in KiB
            command = ["bash", "-c", f'ulimit -f {largest_file} && exec "$@"', "bash", *command]
        environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = Process(command, env=environment, cwd=tmp_path, **pipes)
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
