"""What the main job measures: the model, the contract, the policies, the shipped file."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import align_steps, topics
from experiments.ngram import KneserNey
from rlx import contracts, export, quantize, stats
from rlx.models import decoder

if TYPE_CHECKING:
    from experiments.align import Config
    from rlx.run import Run


def ngrams(text: topics.Text) -> dict[str, float]:
    """Held-out bits per byte of the Kneser-Ney models that the language model is measured against."""
    return {
        "trigram": KneserNey(text.train, 3).bits_per_byte(text.heldout),
        "fivegram": KneserNey(text.train, 5).bits_per_byte(text.heldout),
    }


def language_model(config: "Config", base: Any, text: topics.Text) -> dict[str, Any]:
    """Held-out bits per byte of the pre-trained model, every byte but the first scored once."""
    windows = topics.heldout_windows(text.heldout, length=config.context)
    return {
        "bits_per_byte": align_steps.heldout_bits(config, base, windows),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(base)),
        "steps": config.lm_steps,
        "heldout_bytes": len(text.heldout),
    }


def check(contract: contracts.Contract) -> dict[str, Any]:
    """The contract's hash and what could be proved of it.

    Raises:
      ValueError: something that the contract declares is refuted; the counterexample is in the message.
    """
    checks = contracts.verify(contract)
    refuted = [f"{c.name}: {c.detail}" for c in checks if c.verdict == "REFUTED"]
    if refuted:
        raise ValueError(f"contract: {'; '.join(refuted)}")
    return {
        "name": contract.name,
        "digest": contracts.digest(contract),
        "checks": [{"name": c.name, "verdict": c.verdict, "detail": c.detail} for c in checks],
    }


def judge(
    config: "Config", base: Any, deltas: Mapping[str, Any], text: topics.Text, reward: contracts.Reward, running: "Run"
) -> dict[str, Any]:
    """Fresh completions of the same held-out prompts by the base and both policies: certificates, changes, samples."""
    adapter = align_steps.adapter_of(config)
    policies = {"base": base, **{name: adapter.attach(base, delta) for name, delta in deltas.items()}}
    prompts = topics.prompts(text.heldout, config.samples, length=config.prompt_length, seed=config.seed + 1000)
    sample = align_steps.sampler(config, prompts, reward)
    drawn: dict[str, dict[str, np.ndarray]] = {}
    with running.progress(len(policies), "judge") as progress:
        for number, (name, policy) in enumerate(policies.items()):
            drawn[name] = sample(base, policy, config.seed + 2000 + number)
            progress.update(number + 1)
    certificates = {}
    for name in deltas:
        certificates[name] = contracts.certify(
            drawn[name]["costs"][:, 0],
            threshold=config.chance,
            alpha=config.alpha,
            contract=reward,
            params=reward.params,
            policy=deltas[name],
        ).to_dict()
    stakeholders = []
    for k, stakeholder in enumerate(reward.contract.stakeholders):
        utilities = {name: one["utilities"][:, k].astype(np.float64) for name, one in drawn.items()}
        change = stats.paired_difference(utilities["constrained"], utilities["base"])
        means = {name: float(u.mean()) for name, u in utilities.items()}
        stakeholders.append({"name": stakeholder.name, **means, "difference": change.estimate, "ci": list(change.ci)})
    samples = [
        {"prompt": _text(prompts[i]), **{name: _text(one["tokens"][i][one["mask"][i]]) for name, one in drawn.items()}}
        for i in range(12)
    ]
    return {"certificate": certificates, "stakeholders": stakeholders, "samples": samples}


def _text(tokens: np.ndarray) -> str:
    return tokens.astype(np.uint8).tobytes().decode("latin-1")


def ship(config: "Config", base: Any, delta: Any, text: topics.Text, directory: Path) -> dict[str, Any]:
    """Merge the adapter, round to int8, write model.tflite, and compare LiteRT with JAX on held-out windows."""
    sizes = align_steps.model_config(config)
    merged = jax.tree.map(np.asarray, align_steps.adapter_of(config).merge(base, delta))
    small = jax.tree.map(np.asarray, quantize.quantize_tree(merged, {r"_proj\.": 8}))
    arguments = [jax.ShapeDtypeStruct((1, config.context), jnp.int32)]

    def logits(params: Any, ids: jax.Array) -> jax.Array:
        return decoder.apply(params, sizes, ids, unroll=True)

    written = export.to_tflite({"logits": (lambda ids: logits(small, ids), arguments)}, directory / "model.tflite")
    windows = topics.heldout_windows(text.heldout, length=config.context)["tokens"][:64, :-1]
    expected = np.concatenate([np.asarray(jax.jit(logits)(small, windows[i : i + 16])) for i in range(0, 64, 16)])
    exact = np.concatenate([np.asarray(jax.jit(logits)(merged, windows[i : i + 16])) for i in range(0, 64, 16)])
    model = export.TFLite(written.path)
    actual, began = [], time.monotonic()
    for window in windows:
        actual.append(model("logits", window[None])[0][0])
    seconds = time.monotonic() - began
    result = np.stack(actual)
    greedy = result.argmax(-1)
    return {
        "bytes": written.bytes,
        "float_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(merged)),
        "max_abs_error": float(np.abs(result - expected).max()),
        "mean_abs_error": float(np.abs(result - expected).mean()),
        "largest_logit": float(np.abs(expected).max()),
        "greedy_agreement": float((greedy == expected.argmax(-1)).mean()),
        "greedy_agreement_float": float((greedy == exact.argmax(-1)).mean()),
        "positions": int(greedy.size),
        "ms_per_call": 1000 * seconds / len(windows),
    }


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """The numbers over time that the report draws, from the lines of metrics.jsonl."""
    lm = [row for row in rows if row["stage"] == "pretrain"]
    heldout = [row for row in lm if row["heldout"] is not None]
    found = {
        "lm": {
            "step": [row["step"] for row in lm],
            "train": [row["bits_per_byte"] for row in lm],
            "heldout_step": [row["step"] for row in heldout],
            "heldout": [row["heldout"] for row in heldout],
        }
    }
    names = ("step", "reward", "cost", "multiplier", "fluency", "reader", "brevity")
    for stage in ("constrained", "control"):
        own = [row for row in rows if row["stage"] == stage]
        found[stage] = {name: [row[name] for row in own] for name in names}
    return found
