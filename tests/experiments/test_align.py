"""The main job, small: every stage runs, the report has its numbers, a second start does nothing again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import align

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--width", "32", "--heads", "2", "--inner", "48", "--layers", "2", "--context", "32", "--lm-batch", "8"),
    *("--lm-steps", "40", "--rl-steps", "3", "--rl-prompts", "2", "--group", "4", "--samples", "128"),
    *("--judge-batch", "64", "--rank", "2"),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(directory: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.align", "--directory", str(directory), *SMALL],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-3000:]
    return out


def test_the_main_job_runs_resumes_and_is_not_changed_by_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "a run", tmp_path / "killed"
    out = finish(start(whole))
    assert "report.html" in out
    report = json.loads((whole / "report.json").read_text())
    assert set(report["lm"]) >= {"bits_per_byte", "trigram", "fivegram"}
    for run in ("constrained", "control"):
        assert set(report["certificate"][run]) >= {"verdict", "upper"}
    assert set(report["tflite"]) >= {"bytes", "max_abs_error", "greedy_agreement"}
    assert report["tflite"]["bytes"] == (whole / "model.tflite").stat().st_size
    assert report["tflite"]["greedy_agreement"] > 0.95
    assert len(report["curves"]["constrained"]["step"]) == 3
    assert report["seconds"] > 0

    began = time.monotonic()
    finish(start(whole))
    assert time.monotonic() - began < 60
    again = json.loads((whole / "report.json").read_text())
    assert {k: again[k] for k in ("lm", "certificate", "samples")} == {
        k: report[k] for k in ("lm", "certificate", "samples")
    }

    process = start(killed)
    checkpoints = killed / "ckpt" / "constrained"
    while process.poll() is None and not checkpoints.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(killed))
    resumed = json.loads((killed / "report.json").read_text())
    assert {k: resumed[k] for k in ("certificate", "samples")} == {k: report[k] for k in ("certificate", "samples")}


def test_a_bad_value_exits_2_and_names_the_flag(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        align.parse(["--lm-steps", "many"])
    assert end.value.code == 2
    assert "lm-steps" in capfd.readouterr().err


def test_the_gpu_preset_changes_the_defaults_and_flags_override_it() -> None:
    config = align.parse(["--preset", "gpu", "--rank", "4"])
    assert (config.preset, config.width, config.layers, config.context, config.rank) == ("gpu", 512, 8, 256, 4)
    assert align.parse([]).width == 128
