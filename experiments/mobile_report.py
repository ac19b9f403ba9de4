"""What is said about the file: time, likeness to JAX, Tesseract on the same crops, a table, a picture.

python -m experiments.mobile_report runs/mobile docs/benchmarks/mobile_cpu.json   # keep a run's numbers
"""

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import mobile_data as data
from experiments import mobile_scenes as scenes
from experiments import mobile_words as words
from experiments.mobile_file import File, signatures
from experiments.mobile_judge import PROMPT, Tests, padded
from rlx.models import multimodal

TASKS = {
    "words": "words read exactly",
    "answers": "questions answered",
    "attributes": "caption attributes, F1",
    "retrieval": "caption found, of 100",
}
TARGETS = {
    "cpu": {"words": 0.50, "answers": 0.70, "attributes": 0.75, "retrieval": 0.50},
    "long": {"words": 0.75, "answers": 0.90, "attributes": 0.85, "retrieval": 0.80},
}
_ENVIRONMENT = ("python", "machine", "cpu_count", "device", "jax", "flax", "optax")


def timed(file: File, held_out: Tests, *, repeats: int = 100) -> dict[str, float]:
    """Median milliseconds of one word, and of one answer of 16 tokens with its scene encoded, one input at a time."""

    def answer(i: int) -> None:
        ids, lengths = padded([[data.CAPTION]], PROMPT)
        pixels = held_out.scenes[i % len(held_out.scenes)].pixels
        _, *seen = file.model("look", pixels[None])
        logits, *cache = file.model("prefill", ids, lengths, *seen)
        for position in range(1, 17):
            token = np.argmax(logits[0], keepdims=True).astype(np.int32)
            logits, *cache = file.model("step", token, np.array([position], np.int32), *seen, *cache)

    def median(function: Any) -> float:
        seconds = []
        for i in range(repeats):
            began = time.perf_counter()
            function(i)
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds) * 1e3)

    crops = held_out.crops
    return {"word_ms": median(lambda i: file.read(crops[i % len(crops)].pixels)), "answer_ms": median(answer)}


def beside_jax(file: File, params: Any, config: multimodal.Config, held_out: Tests) -> dict[str, Any]:
    """For each signature: the largest error of its floats over the largest value, and how often the best class agrees.

    `read` is given every crop of the held-out set, the others 100 scenes or captions.
    """
    functions = {name: jax.jit(fn) for name, (fn, _) in signatures(params, config).items()}
    errors: dict[str, list[float]] = {name: [] for name in functions}
    agree: dict[str, list[bool]] = {name: [] for name in ("read", "prefill", "step")}

    def compare(name: str, *arguments: Any) -> Any:
        expected = [np.asarray(leaf) for leaf in jax.tree.leaves(functions[name](*arguments))]
        actual = file.model(name, *arguments)
        floats = [(a, e) for a, e in zip(actual, expected, strict=True) if e.dtype == np.float32]
        errors[name].append(max(float(np.abs(a - e).max() / max(np.abs(e).max(), 1e-9)) for a, e in floats))
        return actual, expected

    for crop in held_out.crops:
        actual, expected = compare("read", crop.pixels[None])
        agree["read"].append(data.read_word(actual[0][0]) == data.read_word(expected[0][0]))
    ids, lengths = padded([[data.CAPTION]], PROMPT)
    for scene in held_out.scenes[:100]:
        actual, _ = compare("look", scene.pixels[None])
        seen = multimodal.Cache(*actual[1:])
        actual, expected = compare("prefill", ids, lengths, seen)
        agree["prefill"].append(bool(np.argmax(actual[0]) == np.argmax(expected[0])))
        token = np.argmax(actual[0], axis=-1).astype(np.int32)
        actual, expected = compare("step", token, lengths, seen, multimodal.Cache(*actual[1:]))
        agree["step"].append(bool(np.argmax(actual[0]) == np.argmax(expected[0])))
        caption = padded([data.encode("a small red circle")], data.TEXT)
        compare("embed_text", *caption)
    return {
        "median_relative_error": {name: float(np.median(found)) for name, found in errors.items()},
        "largest_relative_error": {name: max(found) for name, found in errors.items()},
        "agreement": {name: float(np.mean(found)) for name, found in agree.items()},
    }


def tesseract(crops: list[words.Crop]) -> dict[str, Any]:
    """Tesseract on the same crops, told which letters exist, in the mode and at the scale that it does best with."""
    if shutil.which("tesseract") is None:
        return {"missing": "apt-get install tesseract-ocr"}
    found = {}
    for mode in (7, 8):
        for scale in (1, 2):
            found[f"psm {mode}, scale {scale}"] = _tesseract(crops, mode, scale)
    best = max(found, key=lambda name: found[name]["words"])
    return {"best": best, **found[best], "all": found}


def _tesseract(crops: list[words.Crop], mode: int, scale: int) -> dict[str, float]:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, crop in enumerate(crops):
            image = Image.fromarray(crop.pixels)
            if scale > 1:
                image = image.resize((words.WIDTH * scale, words.HEIGHT * scale), Image.Resampling.BICUBIC)
            paths.append(f"{folder}/{i:05}.png")
            image.save(paths[-1])
        listed = Path(folder, "list.txt")
        listed.write_text("\n".join(paths))
        command = ["tesseract", str(listed), "stdout", "--psm", str(mode), "--oem", "1"]
        command += ["-c", f"tessedit_char_whitelist={words.LETTERS}"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"OMP_THREAD_LIMIT": "1"})
        seconds = time.perf_counter() - began
    pages = ["".join(page.split()) for page in done.stdout.split("\f")]
    hits = [page == crop.word for page, crop in zip(pages, crops, strict=False)]
    return {"words": float(np.sum(hits) / len(crops)), "word_ms": seconds / len(crops) * 1e3}


def table(report: dict[str, Any]) -> str:
    """The numbers of a report, at most 80 columns wide."""
    columns = [name for name in ("float", "low_bit", "file") if name in report]
    heads = {"float": "float, JAX", "low_bit": "2 bits, JAX", "file": "the file"}
    lines = [f"{'':24}" + "".join(f"{heads[name]:>14}" for name in columns) + f"{'Tesseract':>12}"]
    for task, label in TASKS.items():
        cells = "".join(f"{report[name][task]:>14.1%}" for name in columns)
        peer = report["tesseract"].get(task)
        lines.append(f"{label:24}{cells}" + (f"{peer:>12.1%}" if peer is not None else ""))
    file, peer = report["file"], report["tesseract"]
    slower = f" (Tesseract {peer['word_ms']:.1f} ms)" if "word_ms" in peer else ""
    median, largest = (max(file[f"{kind}_relative_error"].values()) for kind in ("median", "largest"))
    return "\n".join(
        [
            *lines,
            f"{report['parameters']:,} parameters, {file['bytes']:,} bytes, trained in {report['training_s']:.0f} s",
            f"one word {file['word_ms']:.1f} ms{slower}, an answer of 16 tokens {file['answer_ms']:.1f} ms",
            f"relative error to JAX at most {largest:.1e} ({median:.1e} in the median)",
            f"words and tokens as JAX gives them: {min(file['agreement'].values()):.2%}",
        ]
    )


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what belongs to one machine's folders."""
    environment = {name: report["environment"][name] for name in _ENVIRONMENT}
    file = {name: value for name, value in report["file"].items() if name != "quantized"}
    return report | {"environment": environment, "file": file}


def page_rows(*reports: dict[str, Any]) -> list[str]:
    """Rows of the page's table: what; of each report the file, what was to be reached, the float network; Tesseract."""
    rows = []
    for task, label in TASKS.items():
        cells = []
        for report in reports:
            goal = TARGETS[report["command"].split()[-1]][task]
            found = report["file"][task]
            cells += [f"{found:.1%}", f">= {goal:.0%}" + ("" if found >= goal else ", not reached")]
            cells += [f"{report['float'][task]:.1%}"] if "float" in report else []
        peer = reports[0]["tesseract"].get(task)
        rows.append("| " + " | ".join([label, *cells, "-" if peer is None else f"{peer:.1%}"]) + " |")
    return rows


def picture(file: File, held_out: Tests, path: Path, *, rows: int = 8) -> None:
    """Inputs and what the file says about them, right or wrong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        rows + 1,
        4,
        figsize=(9.5, 0.95 * rows + 0.3),
        width_ratios=(1.6, 1.5, 0.7, 3.4),
        height_ratios=(0.3, *[1] * rows),
    )
    for axis, title in zip(axes[0], ("a word", "as read", "a scene", "what is said of it"), strict=True):
        axis.text(0, 0, title, fontsize=11)
        axis.axis("off")

    def write(axis: Any, height: float, said: str, true: str, before: str = "") -> None:
        right = said == true
        text = before + said + ("" if right else f"   (is: {true})")
        axis.text(0, height, text, va="center", fontsize=9, color="black" if right else "firebrick")

    for i in range(rows):
        crop, (which, one) = held_out.crops[i], held_out.asked[2 * i]
        scene = held_out.scenes[which]
        ids, lengths = padded([[data.ASK, *data.encode(one.question), data.ANSWER], [data.CAPTION]], PROMPT)
        answer, caption = (
            data.decode(file.say(scene.pixels, row, int(length))) for row, length in zip(ids, lengths, strict=True)
        )
        word, read, picture, told = axes[i + 1]
        word.imshow(crop.pixels)
        picture.imshow(scene.pixels)
        write(read, 0.5, data.read_word(file.read(crop.pixels)), crop.word)
        write(told, 0.75, answer, one.answer, f"{one.question}? ")
        true = scenes.caption(scene.things)
        for height, part in zip((0.4, 0.12), _halves(caption), strict=False):
            told.text(0, height, part, va="center", fontsize=9, color="black" if caption == true else "firebrick")
        for axis in axes[i + 1]:
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _halves(caption: str) -> list[str]:
    """A caption on two lines at most."""
    return textwrap.wrap(caption, 58) or ["(nothing)"]


if __name__ == "__main__":
    found = kept(json.loads(Path(sys.argv[1], "report.json").read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(page_rows(found)))
