"""The report is one self-contained page that shows what was measured and escapes what was sampled."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.align_report import summary_figure, write_report


def made_up() -> dict[str, Any]:
    """Plausible numbers; the page is what is tested."""
    steps = list(range(1, 61))
    rng = np.random.default_rng(0)

    def curve(end: float) -> dict[str, list[float]]:
        cost = [end + (0.9 - end) * float(np.exp(-i / 12)) + 0.03 * float(rng.normal()) for i in steps]
        return {
            "step": steps, "cost": cost,
            "reward": [-2 + i / 60 for i in steps], "multiplier": [2 + i / 60 for i in steps],
            "fluency": cost, "reader": cost, "brevity": cost,
        }  # fmt: skip

    bound = {"n": 4096, "threshold": 0.1, "alpha": 0.05}
    return {
        "lm": {"bits_per_byte": 1.99, "trigram": 2.84, "fivegram": 1.98, "parameters": 525184, "steps": 320,
               "seconds": 80.0, "heldout_bytes": 45341, "text_sha256": "2a95" * 16},
        "contract": {"name": "lipogram", "digest": "ab" * 32,
                     "checks": [{"name": "range words", "verdict": "PROVED", "detail": "[0, 1] within [0, 1]"}]},
        "certificate": {
            "constrained": {"verdict": "CERTIFIED", "upper": 0.055, "lower": 0.027, "rate": 0.038, **bound},
            "control": {"verdict": "REFUTED", "upper": 0.99, "lower": 0.96, "rate": 0.975, **bound},
        },
        "stakeholders": [{"name": n, "base": 0.3, "constrained": 0.2, "control": 0.35, "difference": -0.1,
                          "ci": [-0.12, -0.08]} for n in ("fluency", "reader", "brevity")],
        "tflite": {"bytes": 714288, "float_bytes": 2142668, "max_abs_error": 0.057, "mean_abs_error": 1e-4,
                   "largest_logit": 21.0, "greedy_agreement": 0.9987,
                   "positions": 4096, "ms_per_call": 1.8},
        "samples": [{"prompt": "the function ", "base": "is <b>called</b>\n", "constrained": "this is \x00 it\n",
                     "control": ""}] * 3,
        "curves": {"lm": {"step": steps, "train": [5 / (1 + i / 30) + 1 for i in steps], "heldout_step": steps[::10],
                          "heldout": [5 / (1 + i / 30) + 1.2 for i in steps[::10]]},
                   "constrained": curve(0.03), "control": curve(0.97)},
        "timings": {"pretrain": 80.0, "constrained": 36.5}, "seconds": 231.0,
        "environment": {"python": "3.11.7", "jax": "0.10.2"},
        "command": "python -m experiments.align --directory 'runs/de mo'", "preset": "cpu", "seed": 0,
    }  # fmt: skip


def test_the_page_is_self_contained_and_escapes_samples(tmp_path: Path) -> None:
    path = write_report(tmp_path, made_up())
    page = path.read_text()
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", page)
    assert "<script" not in page
    assert "<b>called" not in page
    assert "&lt;b&gt;call<mark>e</mark>d&lt;/b&gt;" in page
    assert "this is · it" in page
    for shown in ("CERTIFIED", "REFUTED", "1.990", "99.87%", "-0.100 [-0.120, -0.080]", "ab" * 32, "5.5%"):
        assert shown in page, shown
    assert json.loads((tmp_path / "report.json").read_text()) == made_up()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    bad = made_up()
    bad["lm"]["bits_per_byte"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_a_picture(tmp_path: Path) -> None:
    summary_figure(made_up(), tmp_path / "summary.png")
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")
