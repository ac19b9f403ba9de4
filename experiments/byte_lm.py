"""Bytes of real English, modelled with dense and with hierarchical attention at equal parameters.

    python -m experiments.byte_lm [--attention dense|hierarchical|both] [--steps N] [--seed N]

The model of `experiments.recall`, larger, learns windows of the topics of Python's `help()` and is judged on topics it
has not seen. Both kinds start from the same parameters and see the same windows, so the difference is that of the
attention; its interval is over held-out windows.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import recall, tasks, topics

Kind = Literal["dense", "hierarchical"]
LENGTH = 512
CONFIG = recall.Config(
    vocabulary=256, width=128, layers=3, heads=4, block=16, beam=4, wider=4, slots=4, steps=800, batch=4, rate=2e-3
)
DATA = Path("runs/bytes")


def bits(params: recall.Params, config: recall.Config, text: np.ndarray, *, batch: int = 8) -> np.ndarray:
    """Bits a byte of a text, by window: `[N]`, with how many bytes each scored as the weights `[N]` in a second row."""
    windows = topics.heldout_windows(text, length=LENGTH)

    @jax.jit
    def score(tokens: jax.Array, counts: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(recall.apply(params, config, tokens[:, :-1], beam=config.wider))
        chosen = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(counts, chosen, 0), axis=-1) / math.log(2)

    rows = len(windows["tokens"])
    room = -rows % batch  # whole batches, so that there is one program; what is added scores nothing
    tokens = np.pad(windows["tokens"], ((0, room), (0, 0)))
    counts = np.pad(windows["score"], ((0, room), (0, 0)))
    total = np.concatenate([score(tokens[i : i + batch], counts[i : i + batch]) for i in range(0, rows + room, batch)])
    scored = windows["score"].sum(axis=-1)
    return np.stack([total[:rows] / np.maximum(scored, 1), scored])


def learn(config: recall.Config, text: np.ndarray, seed: int) -> recall.Params:
    """Parameters trained on random windows of a text."""
    data = jnp.asarray(text)

    def draw(key: jax.Array) -> tasks.Example:
        start = jax.random.randint(key, (), 0, len(text) - LENGTH)
        window = jax.lax.dynamic_slice(data, (start,), (LENGTH + 1,)).astype(jnp.int32)
        return tasks.Example(window[:-1], window[1:])

    return recall.train(config, draw, jax.random.key(seed))[0]


def compare(config: recall.Config, seed: int, kinds: tuple[Kind, ...] = ("dense", "hierarchical")) -> dict[str, float]:
    """Held-out bits a byte of each kind; how much more the second needs, and half a 95% interval of that."""
    text = topics.load(DATA)
    found, rows = {}, []
    for kind in kinds:
        one = replace(config, attention=kind)
        rows.append(bits(learn(one, text.train, seed), one, text.heldout))
        found[kind] = float(np.average(rows[-1][0], weights=rows[-1][1]))
        print(f"  {kind}: {found[kind]:.4f} bits a byte, held out", flush=True)
    if len(rows) == 2:
        apart, weights = rows[1][0] - rows[0][0], rows[0][1] / rows[0][1].sum()
        found["above"] = float(weights @ apart)
        found["within"] = 1.96 * float(np.sqrt(np.sum((weights * (apart - found["above"])) ** 2)))
    return found


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=("dense", "hierarchical", "both"), default="both")
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = replace(CONFIG, steps=given.steps)
    print(config)
    kinds: tuple[Kind, ...] = ("dense", "hierarchical") if given.attention == "both" else (given.attention,)
    print(compare(config, given.seed, kinds))


if __name__ == "__main__":
    main()
