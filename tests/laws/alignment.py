"""Cases of contracts and align; see cases.py for what a case is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import lipogram
from rlx import align, contracts

from .case import B, Case, normal

T, K, G = 6, 3, 4


def _utilities(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    utilities = jax.random.uniform(k[0], (B, K), jnp.float32, 0.05, 1.0)
    return utilities, jax.random.uniform(k[1], (K,), jnp.float32, 0.1, 1.0)


def _groups(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 2)
    utilities = jax.random.uniform(k[0], (B, G, K), jnp.float32, 0.05, 1.0)
    return utilities, jax.random.uniform(k[1], (K,), jnp.float32, 0.1, 1.0)


def _log_probabilities(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 4)
    logp = -jnp.abs(normal(k[0], B, T))
    # The mask keeps the first tokens, so that padding is more of the same.
    mask = jnp.arange(T)[None] < jax.random.randint(k[3], (B, 1), 1, T + 1)
    return logp, logp + 0.05 * normal(k[1], B, T), normal(k[2], B), mask


def _policy(name: str, fn: Callable[..., Any], pick: tuple[int, ...]) -> Case:
    def make(key: jax.Array) -> tuple[Any, ...]:
        everything = _log_probabilities(key)
        return tuple(everything[i] for i in pick)

    def pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
        return tuple(jnp.pad(a, ((0, 0), (0, 3))) if a.ndim == 2 else a for a in args), lambda out: out

    return Case(name, fn, make, (True,) * len(pick), differentiable=(0,), half=(0, 1), half_out=jnp.float32, pad=pad)


def _texts(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    mask = jnp.arange(8)[None] < jax.random.randint(k[0], (B, 1), 1, 9)
    tokens = jax.random.randint(k[1], (B, 8), 97, 110)
    return lipogram_reward.params, {"tokens": tokens, "mask": mask, "ref_logp": -jnp.abs(normal(k[2], B, 8))}


_borda = partial(contracts.aggregate.borda, temperature=0.1)


def _owa(utilities: jax.Array, weights: jax.Array) -> jax.Array:
    return contracts.aggregate.owa(utilities, weights, jnp.asarray([3.0, 2.0, 1.0], weights.dtype))


def _lottery(utilities: jax.Array, weights: jax.Array) -> jax.Array:
    return contracts.aggregate.maximal_lottery(
        contracts.aggregate.margins(utilities, weights, temperature=0.5), temperature=0.1
    )


lipogram_reward = contracts.compile(lipogram.contract())


def _lipogram(params: Any, batch: Any) -> Any:
    out = lipogram_reward(params, batch)
    return out.total, out.utilities, out.costs


CASES = [
    Case("weighted_sum", contracts.aggregate.weighted_sum, _utilities, (True, False), (0, 1), half=(0, 1)),
    Case("nash", contracts.aggregate.nash, _utilities, (True, False), (0, 1), half=(0, 1)),
    Case(
        "max_min", partial(contracts.aggregate.max_min, temperature=0.1), _utilities, (True, False), (0, 1), half=(0, 1)
    ),
    Case("leximin", contracts.aggregate.leximin, _utilities, (True, False), (0,), half=(0, 1)),
    Case("owa", _owa, _utilities, (True, False), (0, 1), half=(0, 1)),
    Case("ces", partial(contracts.aggregate.ces, rho=-1.0), _utilities, (True, False), (0, 1), half=(0, 1)),
    Case("borda", _borda, _groups, (True, False), (0, 1)),
    Case("copeland", partial(contracts.aggregate.copeland, temperature=0.1), _groups, (True, False), (0, 1)),
    Case("maximal_lottery", _lottery, _groups, (True, False), (0, 1)),
    Case(
        "lipogram contract",
        _lipogram,
        _texts,
        (False, True),
        differentiable=(),
        half=None,
    ),
    *(
        Case(
            f"group_advantages[{kind}]",
            partial(align.group_advantages, kind=kind),
            lambda key: (normal(key, B, G),),
            (True,),
            differentiable=(0,),
            half=(0,),
            half_out=jnp.float32,
        )
        for kind in ("grpo", "rloo", "drgrpo")
    ),
    _policy("policy_loss", align.policy_loss, (0, 1, 2, 3)),
    *(
        _policy(f"kl_estimate[{kind}]", partial(align.kl_estimate, estimator=kind), (0, 1, 3))
        for kind in ("k1", "k2", "k3")
    ),
    *(
        Case(
            f"preference_loss[{kind}]",
            partial(align.preference_loss, beta=0.3, kind=kind),
            lambda key: tuple(normal(k, B) for k in jax.random.split(key, 4)),
            (True,) * 4,
            differentiable=(0, 1, 2, 3),
            half=(0, 1, 2, 3),
            half_out=jnp.float32,
        )
        for kind in ("dpo", "ipo")
    ),
]
