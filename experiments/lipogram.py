"""The contract of the main job: please a base model, a reader and the brief; hardly ever write an e.

A text is `tokens [B, T]` (bytes) with `mask [B, T]` true up to and including the newline that
ends it, and `ref_logp [B, T]`, each token's log-probability under the frozen base model in nats.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlx import contracts

NEWLINE = 10
LETTER_E = ord("e")
ENOUGH_WORDS = 5

Batch = Mapping[str, jax.Array]


def likelihood(batch: Batch) -> jax.Array:
    """How likely the base model finds a text: the geometric mean of its tokens' probabilities, `[B]` in [0, 1]."""
    mask = batch["mask"].astype(jnp.float32)
    total = jnp.sum(batch["ref_logp"] * mask, axis=1)
    return jnp.exp(total / jnp.maximum(jnp.sum(mask, axis=1), 1.0))


def words(batch: Batch) -> jax.Array:
    """Finished words (runs of ASCII letters), up to five, as a share of five: `[B]` in [0, 1]."""
    lower = batch["tokens"] | 0x20
    letter = (lower >= ord("a")) & (lower <= ord("z")) & batch["mask"].astype(bool)
    before = jnp.pad(letter, ((0, 0), (1, 0)))[:, :-1]
    finished = jnp.sum((before & ~letter).astype(jnp.float32), axis=1)
    return jnp.minimum(finished / ENOUGH_WORDS, 1.0)


def brevity(batch: Batch) -> jax.Array:
    """The share of the room for a text that it leaves free: `[B]` in [0, 1]."""
    mask = batch["mask"].astype(jnp.float32)
    return 1.0 - jnp.sum(mask, axis=1) / mask.shape[1]


def contains_e(batch: Batch) -> jax.Array:
    """1 for a text with the letter e, 0 for one without: `[B]`."""
    found = (batch["tokens"] == LETTER_E) & batch["mask"].astype(bool)
    return jnp.any(found, axis=1).astype(jnp.float32)


def contract(chance: float = 0.10) -> contracts.Contract:
    """The contract.

    Args:
      chance: how often a text may contain the letter e.

    Returns:
      A contract with three stakeholders, Nash aggregation, and one constraint.
    """
    has_e = contracts.Term("contains_e", contains_e, unit="probability")
    return contracts.Contract(
        name="lipogram",
        version="1",
        signals={
            "tokens": contracts.Signal("BT", dtype="int32", range=(0, 255), unit="byte"),
            "mask": contracts.Signal("BT", dtype="bool", range=(0, 1)),
            "ref_logp": contracts.Signal("BT", dtype="float32", range=(-100.0, 0.0), unit="nat"),
        },
        terms=(
            contracts.Term("likelihood", likelihood, unit="probability"),
            contracts.Term("words", words, unit="share"),
            contracts.Term("brevity", brevity, unit="share"),
        ),
        stakeholders=(
            contracts.Stakeholder("fluency", {"likelihood": 1.0}),
            contracts.Stakeholder("reader", {"words": 1.0}),
            contracts.Stakeholder("brevity", {"brevity": 1.0}, weight=0.5),
        ),
        # Without an agreement nobody has anything; a tenth below zero keeps log-gains of a wordless text finite.
        aggregate=contracts.Nash(disagreement=-0.1),
        constraints=(contracts.Chance(has_e > 0.5) <= chance,),
        provenance={"text": "pydoc_data.topics", "source": "lipograms: Perec 1969, La Disparition"},
    )
