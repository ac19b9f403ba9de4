"""The law: killed at any moment and started again, a run ends as one that was never killed."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlx.run import read_metrics, status, verify

pytestmark = pytest.mark.multiproc


def lines(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: Any, ready: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it came to be before the process ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ready():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    raise AssertionError("waited too long")


def without_time(directory: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "time"} for line in read_metrics(directory)]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"directory": tmp_path_factory.mktemp("whole") / "run"}


@pytest.fixture
def whole(never_killed: dict[str, Any], start: Any) -> tuple[str, list[dict[str, Any]]]:
    """What a run that was never killed ends with."""
    if "sha256" not in never_killed:
        code, out, err = start(never_killed["directory"]).finish()
        assert code == 0, err
        never_killed["sha256"] = out.strip()
    return never_killed["sha256"], without_time(never_killed["directory"])


def check_equal(directory: Path, out: str, whole: tuple[str, list[dict[str, Any]]]) -> None:
    assert out.strip() == whole[0]
    assert without_time(directory) == whole[1]
    assert len(whole[1]) == 60
    found = verify(directory)
    assert found.ok, str(found)


def test_killed_once_ends_the_same(tmp_path: Path, start: Any, whole: Any) -> None:
    directory = tmp_path / "run"
    process = start(directory, "--sleep", "0.01")
    assert wait_for(process, lambda: lines(directory) >= 42)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not status(directory).ok
    assert "killed; start it again" in str(status(directory))
    with open(directory / "metrics.jsonl", "ab") as file:
        file.write(b'{"loss":0.5,"sta')  # as a kill in the middle of a write leaves it
    code, out, err = start(directory).finish()
    assert code == 0, err
    check_equal(directory, out, whole)
    assert status(directory).ok


@pytest.mark.slow
def test_a_signal_saves_and_exits_75(tmp_path: Path, start: Any, whole: Any) -> None:
    directory = tmp_path / "run"
    process = start(directory, "--sleep", "0.02")
    assert wait_for(process, lambda: lines(directory) >= 7)
    process.send_signal(signal.SIGTERM)
    code, out, err = process.finish()
    assert (code, out) == (75, "")
    assert "Traceback" not in err
    assert "job: stopped by SIGTERM at step" in err
    steps = [int(path.name) for path in (directory / "ckpt" / "first").iterdir() if path.name.isdecimal()]
    assert max(steps) == lines(directory)
    code, out, err = start(directory).finish()
    assert code == 0, err
    check_equal(directory, out, whole)


@pytest.mark.slow
def test_a_second_process_is_refused(tmp_path: Path, start: Any) -> None:
    directory = tmp_path / "run"
    first = start(directory, "--sleep", "0.05")
    assert wait_for(first, lambda: lines(directory) >= 1)
    code, _, err = start(directory).finish()
    assert code == 2
    assert f"{directory} is in use by process {first.pid} on " in err
    assert "Traceback" not in err
    assert status(directory).ok
    assert "running" in str(status(directory))


@pytest.mark.slow
def test_killed_many_times_ends_the_same(tmp_path: Path, start: Any, whole: Any) -> None:
    """Five kills: three at random moments, two while a checkpoint is being written."""
    chance = random.Random(time.time_ns())
    directory = tmp_path / "run"
    during = 0
    kills = 0
    for attempt in range(5):
        process = start(directory, "--sleep", "0.01")
        if attempt % 2:
            before = lines(directory)
            partial = f"ckpt/*/*.orbax-checkpoint-tmp{'/state*' if attempt == 1 else ''}"
            seen = wait_for(process, lambda b=before, p=partial: lines(directory) >= b + 6 and any(directory.glob(p)))
        else:
            seen = wait_for(process, lambda: lines(directory) >= 1)
            time.sleep(chance.uniform(0, 0.4))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        during += bool(attempt % 2 and seen and any(directory.glob("ckpt/*/*.orbax-checkpoint-tmp")))
    assert kills >= 3
    assert during >= 1
    code, out, err = start(directory).finish()
    assert code == 0, err
    check_equal(directory, out, whole)


@pytest.mark.slow
def test_killed_around_a_rollback_ends_the_same(tmp_path: Path, start: Any) -> None:
    flags = ("--nan-from", "12", "--nan-to", "17", "--sleep", "0.01")
    code, out, err = start(tmp_path / "whole", *flags).finish()
    assert code == 0, err
    directory = tmp_path / "run"
    process = start(directory, *flags)
    assert wait_for(
        process,
        lambda: (
            b'"kind":"rollback"' in (directory / "events.jsonl").read_bytes()
            if (directory / "events.jsonl").exists()
            else False
        ),
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL
    code, again, err = start(directory, *flags).finish()
    assert code == 0, err
    assert again == out
    assert without_time(directory) == without_time(tmp_path / "whole")
