"""Exit codes: of a full disk, of updates that are not finite, of what was asked for."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rlx.run
from rlx.run import Exit, StorageError


def test_codes() -> None:
    assert {code.name: int(code) for code in Exit} == {
        "OK": 0, "CONFIG": 2, "DATA": 65, "NON_FINITE": 70, "STORAGE": 74, "PREEMPTED": 75,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (rlx.run.ConfigError("x"), 2),
        (rlx.run.ConfigMismatch("x"), 2),
        (rlx.run.RunLocked("x"), 2),
        (rlx.run.CheckpointMismatch("x"), 2),
        (rlx.run.DataError("x"), 65),
        (rlx.run.NonFiniteAbort("x"), 70),
        (rlx.run.StorageError("x"), 74),
        (rlx.run.CheckpointCorrupt("x"), 74),
        (rlx.run.Preempted("x"), 75),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (ValueError("RESOURCE_EXHAUSTED: Error writing local file"), 74),
    ],
)
def test_main_exits_with_one_line(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        rlx.run.main(job, prog="job")
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert err.startswith("job: ")
    assert err.count("\n") == 1


def test_main_leaves_defects_alone() -> None:
    def job() -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        rlx.run.main(job)
    with pytest.raises(FileNotFoundError):
        rlx.run.main(Path("/nonexistent/file").read_text)


@pytest.mark.parametrize(("value", "code"), [(None, 0), (3, 3), ("text", 0)])
def test_main_gives_back_an_int(value: object, code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        rlx.run.main(lambda: value)
    assert caught.value.code == code


@pytest.mark.multiproc
def test_not_finite_rolls_back_then_exits_70(tmp_path: Path, start: Any) -> None:
    code, out, err = start(tmp_path / "run", "--nan-from", "12", "--nan-to", "999").finish()
    assert (code, out) == (70, "")
    assert "Traceback" not in err
    assert "job: first: the 3 updates before step 21 were not finite, after 2 rollbacks; look at the loss" in err
    events = [e for e in rlx.run.verify_events(tmp_path / "run" / "events.jsonl").entries if e["kind"] == "rollback"]
    assert [(e["data"]["at"], e["data"]["to"], e["data"]["go_on_at"]) for e in events] == [(15, 10, 15), (18, 15, 18)]
    metrics = rlx.run.read_metrics(tmp_path / "run")
    assert [line["skipped"] for line in metrics] == [0] * 12 + list(range(1, 10))
    assert metrics[12]["loss"] is None
    found = rlx.run.status(tmp_path / "run")
    assert not found.ok
    assert "stopped with exit code 70" in str(found)


@pytest.mark.slow
@pytest.mark.multiproc
def test_a_full_disk_exits_74_and_the_run_goes_on(tmp_path: Path, start: Any) -> None:
    # As large as every file may be: enough for the logs, not for a checkpoint's arrays.
    process = start(tmp_path / "run", "--model.width", "1024", largest_file=60)
    code, out, err = process.finish()
    assert (code, out) == (74, "")
    assert "file too large" in err or "no space left" in err
    assert err.strip().splitlines()[-1].startswith("job: sav")
    assert "Traceback" not in err
    code, out, err = start(tmp_path / "run", "--model.width", "1024").finish()
    assert code == 0, err
    assert rlx.run.verify(tmp_path / "run").ok


def test_a_full_disk_under_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rlx.run.Run.open(tmp_path / "run", {}, tensorboard=False)
    with run, run.stage("s", steps=3, log_every=1, progress=False) as stage:
        stage.log(1, loss=1.0)
        full = os.open("/dev/full", os.O_WRONLY)
        real = run.metrics._file._file

        class Full:
            def write(self, data: bytes) -> int:
                real.write(data[:7])
                return os.write(full, data)

            def fileno(self) -> int:
                return real.fileno()

        monkeypatch.setattr(run.metrics._file, "_file", Full())
        with pytest.raises(StorageError, match=r"writing metrics\.jsonl: no space left"):
            stage.log(2, loss=2.0)
        monkeypatch.setattr(run.metrics._file, "_file", real)
        os.close(full)
        stage.log(3, loss=3.0)
    assert [line["step"] for line in rlx.run.read_metrics(tmp_path / "run")] == [1, 3]


def test_help_loads_no_jax(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['job', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(Path(__file__).with_name('job.py'))!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    heavy = {'jax', 'orbax', 'numpy', 'flax', 'tensorboardX', 'tensorflow'} & sys.modules.keys()\n"
        "    sys.exit(f'{stop.code} {sorted(heavy)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr.strip() == "0 []"
    assert "--model.width" in done.stdout
    assert "Width of the hidden layer" in done.stdout
    assert "--config FILE.json" in done.stdout


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--steps", "many"], "--steps"), (["--stepz", "3"], "--stepz"), (["--rate", "nan"], "--rate: nan is not")],
)
def test_a_wrong_flag_exits_2_and_is_named(start: Any, tmp_path: Path, flags: list[str], named: str) -> None:
    code, out, err = start(tmp_path / "run", *flags).finish()
    assert (code, out) == (2, "")
    assert named in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
