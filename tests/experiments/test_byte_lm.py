"""The byte model's measure: every byte is scored once, and a model that knows nothing needs eight bits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import byte_lm, recall

TINY = replace(byte_lm.CONFIG, width=16, layers=1, heads=2, steps=2, batch=1)


@pytest.mark.parametrize("kind", ["dense", "hierarchical"])
def test_a_model_that_knows_nothing_needs_eight_bits(kind: byte_lm.Kind) -> None:
    config = replace(TINY, attention=kind)
    params = recall.init(jax.random.key(0), config)
    params["head"] = jnp.zeros_like(params["head"])
    text = np.arange(1200, dtype=np.uint8)
    found, scored = byte_lm.bits(params, config, text, batch=2)
    np.testing.assert_allclose(found, 8.0, rtol=1e-6)
    assert scored.sum() == len(text) - 1


def test_two_steps_on_one_byte_say_that_byte() -> None:
    text = np.full(byte_lm.LENGTH + 2, 65, np.uint8)
    before = byte_lm.bits(recall.init(jax.random.fold_in(jax.random.key(3), 0), TINY), TINY, text)[0]
    params = byte_lm.learn(replace(TINY, steps=20, rate=3e-2), text, seed=3)
    assert byte_lm.bits(params, TINY, text)[0].mean() < 0.5 * before.mean()
