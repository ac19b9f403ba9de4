"""The file of the gpu preset, before any training: how large it is, and that it loads and answers.

    python -m experiments.mobile_size [--directory DIR] [--json FILE]

Bytes and milliseconds depend on the sizes of the network alone. Weights are random and rounded to the bits of
`mobile_train.RULE`; what it answers means nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import mobile_data as data
from experiments import mobile_file, mobile_scenes, mobile_train, mobile_vlm
from experiments.mobile_judge import PROMPT, padded
from rlx import export, quantize, weights
from rlx.models import multimodal

LIMIT = 35_000_000


def build(config: mobile_vlm.Config, path: Path) -> dict[str, Any]:
    """Write the file of a preset and ask it one question; what was measured."""
    model = mobile_vlm.sizes(config)
    shapes = jax.eval_shape(lambda: multimodal.init(jax.random.key(0), model))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    params = jax.jit(multimodal.init, static_argnums=1)(jax.random.key(0), model)
    low = quantize.quantize_tree(params, mobile_train.RULE, scale="minmax")
    two = sum(
        int(np.prod(leaf.shape))
        for leaf in jax.tree.leaves(low, is_leaf=lambda x: isinstance(x, weights.QuantizedWeight))
        if isinstance(leaf, weights.QuantizedWeight) and leaf.bits == 2
    )
    written = mobile_file.write(low, model, path)
    file = mobile_file.File(path)
    scene = mobile_scenes.Scene(np.zeros((mobile_scenes.SIDE, mobile_scenes.SIDE, 3), np.uint8), ())
    ids, lengths = padded([[data.ASK, *data.encode("how many things are there"), data.ANSWER]], PROMPT)
    said = file.say(scene.pixels, ids[0], int(lengths[0]))
    return {
        "parameters": count,
        "at_2_bits": two,
        "bytes": written.bytes,
        "limit": LIMIT,
        "metadata": sorted(file.model.metadata),
        "tokens_said": len(said),
        "report": str(export.report(path, repeats=5, threads=2)),
    }


def main() -> None:
    """Build, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.mobile_size", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("runs/mobile_size"))
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    flags.directory.mkdir(parents=True, exist_ok=True)
    found = build(mobile_vlm.GpuConfig(), flags.directory / "model.tflite")
    print(f"{found['parameters']:,} parameters, {found['at_2_bits']:,} of them at 2 bits, in {found['bytes']:,} bytes")
    print(f"limit {LIMIT:,}; inside: {', '.join(found['metadata'])}; it said {found['tokens_said']} tokens")
    print(found["report"])
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
