"""One network for a phone: read words, caption, answer, find; trained, rounded to 2 bits, exported, judged as a file.

    python -m experiments.mobile_vlm --directory runs/mobile            # two CPU cores
    python -m experiments.mobile_vlm --preset gpu --directory runs/gpu  # one GPU

1. Words in many fonts over photographs and small scenes are rendered, without the network.
2. All tasks are trained in every step; after a share of the steps, with 2-bit weights (and beside it in float).
3. The 2-bit network becomes a TensorFlow Lite file, with its tokeniser inside.
4. The exported file is judged through LiteRT on fonts, photographs, words, handwriting and pairs of attributes that
   training did not see, beside both networks in JAX, and beside Tesseract on the same word crops.

report.json and pictures of inputs and answers are in the directory. Killed and started again, it goes on.
"""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlx import run


@dataclass(frozen=True)
class Config:
    """Sizes and rates for two CPU cores."""

    directory: str = "runs/mobile"
    """Where the run lives; the same directory resumes."""
    preset: Literal["cpu", "gpu", "long"] = "cpu"
    """Defaults for everything below: 10 minutes on two cores, one GPU, or hours on two cores."""
    seed: int = 0
    """Of everything that is random."""
    crops: int = 60_000
    """Word crops rendered for training."""
    pictures: int = 30_000
    """Scenes rendered for training."""
    batch: int = 32
    """Crops a step, and scenes a step."""
    steps: int = 1350
    """Updates in all."""
    match: float = 0.8
    """Weight of telling scenes and captions of a batch apart."""
    fork: float = 0.65
    """The share of them before weights are rounded: what is still to be learned is learned faster in float."""
    rate: float = 8e-3
    """Highest learning rate."""
    compare: bool = True
    """Train the float network to the end too."""
    stem: int = 64
    """Channels of the stem."""
    stem_layers: int = 2
    """Blocks of the stem."""
    width: int = 160
    """Width of the layers."""
    heads: int = 4
    """Attention heads."""
    inner: int = 480
    """Inner width of the MLPs."""
    vision_layers: int = 3
    """Layers over image tokens."""
    decoder_layers: int = 2
    """Layers over text and image."""
    test_crops: int = 1000
    """Held-out word crops."""
    test_pictures: int = 500
    """Held-out scenes."""


@dataclass(frozen=True)
class LongConfig(Config):
    """Sizes and rates for hours on two CPU cores."""

    preset: Literal["cpu", "gpu", "long"] = "long"
    crops: int = 240_000
    pictures: int = 80_000
    steps: int = 12_000
    rate: float = 6e-3
    match: float = 0.5
    fork: float = 0.25
    compare: bool = False


@dataclass(frozen=True)
class GpuConfig(Config):
    """Sizes and rates for one GPU."""

    preset: Literal["cpu", "gpu", "long"] = "gpu"
    crops: int = 240_000
    pictures: int = 80_000
    batch: int = 256
    steps: int = 8000
    rate: float = 2e-3
    match: float = 0.5
    fork: float = 0.25
    compare: bool = False
    stem: int = 128
    stem_layers: int = 4
    width: int = 768
    heads: int = 12
    inner: int = 3072
    vision_layers: int = 6
    decoder_layers: int = 3


_PRESETS = {"cpu": Config, "long": LongConfig, "gpu": GpuConfig}


def parse(argv: list[str] | None = None) -> Config:
    """The configuration from the command line; `--preset` chooses the defaults of the other flags."""
    arguments = sys.argv[1:] if argv is None else argv
    chosen = [value for name, value in itertools.pairwise(arguments) if name == "--preset"]
    chosen += [a.partition("=")[2] for a in arguments if a.startswith("--preset=")]
    kind = _PRESETS.get(chosen[-1] if chosen else "cpu", Config)
    return run.parse(kind, arguments, prog="python -m experiments.mobile_vlm", description=__doc__)


def sizes(config: Config) -> Any:
    """The network's configuration."""
    from experiments import mobile_data, mobile_words
    from rlx.models import multimodal

    return multimodal.Config(
        vocab_size=len(mobile_data.tokens().words),
        classes=len(mobile_words.LETTERS) + 1,
        stem_size=config.stem,
        stem_layers=config.stem_layers,
        hidden_size=config.width,
        num_attention_heads=config.heads,
        intermediate_size=config.inner,
        vision_layers=config.vision_layers,
        decoder_layers=config.decoder_layers,
    )


def job(config: Config) -> None:
    """Run every stage, or what is left of it, and write the report."""
    import jax

    from experiments import mobile_data, mobile_file, mobile_judge, mobile_report, mobile_train

    with run.Run.open(config.directory, config, may_differ=("directory",)) as running:
        bank = mobile_data.load(running.directory.parent / "mobile_data", crops=config.crops, pictures=config.pictures)
        model, fork = sizes(config), int(config.steps * config.fork)
        plan = mobile_train.Plan(steps=config.steps, rate=config.rate, match=config.match)

        def go_on(name: str, state: Any, steps: int, start: int, low_bit: bool) -> Any:
            return running.train(
                name,
                mobile_train.step_fn(model, plan, start=start, low_bit=low_bit),
                state,
                steps=steps,
                data_iterator=mobile_data.batches(bank, batch=config.batch, seed=config.seed + start),
                log_every=50,
                save_every=300,
            )

        state = go_on("common", mobile_train.begin(jax.random.key(config.seed), model, plan), fork, 0, False)
        rest = config.steps - fork
        held_out = mobile_judge.held_out_sets(config.test_crops, config.test_pictures)
        report: dict[str, Any] = {}
        low = mobile_train.judged(go_on("low_bit", mobile_train.lower(state), rest, fork, True), low_bit=True)
        report["low_bit"] = running.result(
            "low_bit_judged", lambda: mobile_judge.judge(mobile_judge.from_jax(low, model), held_out)
        )
        path = running.directory / "model.tflite"

        def ship() -> dict[str, Any]:
            written = mobile_file.write(low, model, path)
            return {"bytes": written.bytes, "quantized": written.quantized}

        report["file"] = running.result("file", ship, files=["model.tflite"])
        file = mobile_file.File(path)
        report["file"] |= running.result("file_judged", lambda: mobile_judge.judge(file.answers(), held_out))
        report["file"] |= running.result("file_timed", lambda: mobile_report.timed(file, held_out))
        report["file"] |= running.result(
            "file_beside_jax", lambda: mobile_report.beside_jax(file, low, model, held_out)
        )
        report["tesseract"] = running.result("tesseract", lambda: mobile_report.tesseract(held_out.crops))
        if config.compare:
            whole = mobile_train.judged(go_on("float", state, rest, fork, False), low_bit=False)
            report["float"] = running.result(
                "float_judged", lambda: mobile_judge.judge(mobile_judge.from_jax(whole, model), held_out)
            )
        report["timings"], report["environment"] = running.timings(), running.environment
        report["training_s"] = sum(report["timings"][name] for name in ("common", "low_bit"))
        report["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state["trained"]["params"]))
        report["command"] = f"python -m experiments.mobile_vlm --preset {config.preset}"
        (running.directory / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        mobile_report.picture(file, held_out, Path(running.directory) / "answers.png")
        print(mobile_report.table(report))


if __name__ == "__main__":
    run.main(lambda: job(parse()))
