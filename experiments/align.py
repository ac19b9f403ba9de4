"""The main job: a small reversible language model, aligned under a contract, certified and shipped.

    python -m experiments.align --directory runs/demo

1. A decoder of reversible blocks learns real English text, and is measured against Kneser-Ney.
2. LoRA adapters are trained under a contract: three stakeholders, and a text may contain the
   letter e in at most one case of ten. A control is trained without the constraint.
3. Fresh samples certify the first and refute the second; each stakeholder's change has an interval.
4. The adapter is merged, rounded to int8, exported to TensorFlow Lite and run there.
5. report.html and report.json say all of it.

Expected on two CPU cores (seed 0): held-out bits per byte 0.2 or more below the trigram; CERTIFIED
and REFUTED; LiteRT's greedy tokens equal to JAX's in more than 99 of 100 positions; 5 minutes.
Killed and started again with the same directory, it goes on where it was.
"""

import itertools
import shlex
import sys
import time
from dataclasses import dataclass
from typing import Literal

from rlx import run


@dataclass(frozen=True)
class Config:
    """Sizes and rates of the main job."""

    directory: str = "runs/align"
    """Where the run lives; the same directory resumes."""
    preset: Literal["cpu", "gpu"] = "cpu"
    """Defaults for everything below: two CPU cores, or one GPU."""
    seed: int = 0
    """Of everything that is random."""
    width: int = 128
    """Width of each of the two streams."""
    layers: int = 3
    """Reversible layers."""
    heads: int = 4
    """Attention heads."""
    inner: int = 256
    """Inner width of the MLP."""
    context: int = 128
    """Bytes of context in pre-training."""
    lm_batch: int = 32
    """Windows a pre-training step."""
    lm_steps: int = 320
    """Pre-training steps."""
    lm_rate: float = 0.02
    """Peak learning rate of pre-training."""
    rank: int = 8
    """Rank of the adapters."""
    prompt_length: int = 24
    """Bytes of real text that a completion continues."""
    text_length: int = 32
    """Bytes that a completion has room for."""
    rl_prompts: int = 16
    """Prompts an alignment step."""
    group: int = 8
    """Completions of each prompt."""
    rl_steps: int = 60
    """Alignment steps."""
    rl_rate: float = 0.012
    """Peak learning rate of alignment."""
    kl: float = 0.05
    """Weight of the divergence from the base model, per nat a token."""
    price: float = 0.2
    """Step size of the constraint's multiplier."""
    multiplier: float = 2.0
    """Multiplier at the start of the constrained run."""
    chance: float = 0.10
    """How often a text may contain the letter e."""
    alpha: float = 0.05
    """Probability that the certificate is wrong."""
    samples: int = 4096
    """Fresh completions that judge a policy."""
    judge_batch: int = 256
    """Completions at a time while judging."""


@dataclass(frozen=True)
class GpuConfig(Config):
    """Sizes and rates for one GPU."""

    preset: Literal["cpu", "gpu"] = "gpu"
    width: int = 512
    layers: int = 8
    heads: int = 8
    inner: int = 1024
    context: int = 256
    lm_batch: int = 128
    lm_steps: int = 2000
    rl_prompts: int = 64
    rl_steps: int = 200
    rl_rate: float = 0.006
    judge_batch: int = 4096


def parse(argv: list[str] | None = None) -> Config:
    """The configuration from the command line; `--preset` chooses the defaults of the other flags."""
    arguments = sys.argv[1:] if argv is None else argv
    gpu = "--preset=gpu" in arguments or ("--preset", "gpu") in itertools.pairwise(arguments)
    kind = GpuConfig if gpu else Config
    return run.parse(kind, arguments, prog="python -m experiments.align", description=__doc__)


def job(config: Config) -> None:
    """Run every stage, or what is left of it, and write the report."""
    began = time.monotonic()
    from experiments import align_judge, align_report, align_steps, lipogram, topics
    from rlx import contracts

    with run.Run.open(config.directory, config, may_differ=("directory",)) as running:
        text = topics.load(running.directory / "data")
        print(f"text sha256 {text.sha256}, {len(text.train):,} bytes to train on, {len(text.heldout):,} held out")
        ngrams = running.result("ngrams", lambda: align_judge.ngrams(text))

        state, step = align_steps.language_model(config, topics.heldout_windows(text.heldout, length=config.context))
        windows = topics.train_iterator(text.train, batch=config.lm_batch, length=config.context, seed=config.seed)
        base = running.train(
            "pretrain", step, state, steps=config.lm_steps, data_iterator=windows, log_every=10, save_every=80
        )["params"]
        lm = running.result("lm", lambda: align_judge.language_model(config, base, text))
        print(
            f"held-out bits per byte {lm['bits_per_byte']:.3f} "
            f"(trigram {ngrams['trigram']:.3f}, 5-gram {ngrams['fivegram']:.3f})"
        )

        contract = lipogram.contract(config.chance)
        checked = running.result("contract", lambda: align_judge.check(contract))
        print(
            f"contract {contract.name} {checked['digest'][:16]}: "
            + ", ".join(
                f"{sum(c['verdict'] == verdict for c in checked['checks'])} {verdict}"
                for verdict in ("PROVED", "UNKNOWN", "REFUTED")
            )
        )
        reward = contracts.compile(contract)
        prompts = topics.prompts(text.train, 4096, length=config.prompt_length, seed=config.seed)
        start, policy_step = align_steps.policy(config, base, prompts, reward)
        deltas = {
            name: running.train(
                name, policy_step, start(multiplier), steps=config.rl_steps, log_every=1, save_every=20, jit=False
            )["delta"]
            for name, multiplier in (("constrained", config.multiplier), ("control", 0.0))
        }

        judged = running.result("judge", lambda: align_judge.judge(config, base, deltas, text, reward, running))
        for name, bound in judged["certificate"].items():
            print(
                f"{name}: {bound['verdict']}, P(text contains e) in [{bound['lower']:.3f}, {bound['upper']:.3f}] "
                f"(allowed {bound['threshold']:g})"
            )
        shipped = running.result(
            "ship",
            lambda: align_judge.ship(config, base, deltas["constrained"], text, running.directory),
            files=["model.tflite"],
        )
        timings = running.timings()
        report = {
            "lm": {**lm, **ngrams, "seconds": timings["pretrain"], "text_sha256": text.sha256},
            "contract": checked,
            **judged,
            "tflite": shipped,
            "curves": align_judge.curves(running.metrics.rows()),
            "timings": timings,
            "seconds": round(max(time.monotonic() - began, sum(timings.values())), 1),
            "environment": running.environment,
            "command": f"python -m experiments.align --directory {shlex.quote(config.directory)}",
            "preset": config.preset,
            "seed": config.seed,
        }
        page = align_report.write_report(running.directory, report)
        print(
            f"int8 TFLite {shipped['bytes']:,} bytes, greedy tokens equal in {shipped['greedy_agreement']:.2%}\n"
            f"{report['seconds']:.0f} s; report: {page}"
        )


if __name__ == "__main__":
    run.main(lambda: job(parse()))
