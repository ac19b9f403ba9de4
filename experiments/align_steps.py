"""What the main job computes: language-model steps, sampling, policy steps, evaluation. Pure functions, jitted once."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import lipogram
from rlx import adapters, align, contracts
from rlx.models import decoder

if TYPE_CHECKING:
    from experiments.align import Config

State = dict[str, Any]
Metrics = dict[str, jax.Array]
BITS = 1 / np.log(2)


def model_config(config: "Config") -> decoder.Config:
    """The decoder's sizes."""
    return decoder.Config(
        vocab_size=256,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.inner,
    )


def language_model(
    config: "Config", heldout: Mapping[str, np.ndarray]
) -> tuple[State, Callable[[State, Any, jax.Array], tuple[State, Metrics]]]:
    """The start and the step of pre-training: next-byte cross-entropy, Muon for matrices, Adam for the rest.

    Every forty steps the metrics have the bits per byte of 64 held-out windows, for the curve.
    """
    sizes = model_config(config)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.lm_rate, max(1, config.lm_steps // 10), config.lm_steps, config.lm_rate / 50
    )
    params = decoder.init(jax.random.key(config.seed), sizes)
    # Stacked projections [layers, out, in] are orthogonalised layer by layer.
    wide = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
    matrices = jax.tree_util.tree_map_with_path(
        lambda path, leaf: wide if "_proj" in jax.tree_util.keystr(path) else None, params
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(rate, muon_weight_dimension_numbers=matrices, weight_decay=0.01, consistent_rms=0.2),
    )
    spread = np.linspace(0, len(heldout["tokens"]) - 1, min(64, len(heldout["tokens"]))).astype(int)
    some = {name: jnp.asarray(array[spread]) for name, array in heldout.items()}

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return -jnp.mean(decoder.token_log_probs(params, sizes, tokens))

    def step(state: State, batch: Mapping[str, jax.Array], index: jax.Array) -> tuple[State, Metrics]:
        value, gradient = jax.value_and_grad(loss)(state["params"], batch["tokens"])
        updates, opt_state = optimiser.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        due = ((index + 1) % 40 == 0) | (index + 1 == config.lm_steps)
        measured = jax.lax.cond(due, lambda: _nats(sizes, params, some) / jnp.sum(some["score"]), lambda: jnp.nan)
        metrics = {"loss": value, "bits_per_byte": value * BITS, "heldout": measured * BITS}
        return {"params": params, "opt_state": opt_state}, metrics

    return {"params": params, "opt_state": optimiser.init(params)}, step


def _nats(sizes: decoder.Config, params: Any, windows: Mapping[str, jax.Array]) -> jax.Array:
    return -jnp.sum(jnp.where(windows["score"], decoder.token_log_probs(params, sizes, windows["tokens"]), 0.0))


def heldout_bits(config: "Config", params: Any, windows: Mapping[str, np.ndarray]) -> float:
    """Bits per byte on windows `tokens [N, L+1]`, counting the targets where `score [N, L]` is true."""
    sizes = model_config(config)
    nats = jax.jit(lambda params, part: _nats(sizes, params, part))
    room = -len(windows["tokens"]) % 64
    padded = {name: np.pad(array, ((0, room), (0, 0))) for name, array in windows.items()}
    parts = [{name: array[i : i + 64] for name, array in padded.items()} for i in range(0, len(padded["score"]), 64)]
    return sum(float(nats(params, part)) for part in parts) / float(windows["score"].sum()) * BITS


def adapter_of(config: "Config") -> adapters.Adapter:
    """LoRA on every projection."""
    return adapters.lora(rank=config.rank, alpha=2.0 * config.rank, where=r"_proj\.")


def texts(
    config: "Config", base: Any, policy: Any, prompts: jax.Array, key: jax.Array
) -> tuple[decoder.Generation, dict[str, jax.Array]]:
    """A completion of each prompt, and the batch that the contract reads."""
    sizes = model_config(config)
    drawn = decoder.generate(
        policy, sizes, prompts, key=key, max_new_tokens=config.text_length, stop_token=lipogram.NEWLINE
    )
    ref_logp = _completion_log_probs(sizes, base, prompts, drawn.tokens)
    return drawn, {"tokens": drawn.tokens, "mask": drawn.mask, "ref_logp": ref_logp}


def _completion_log_probs(sizes: decoder.Config, params: Any, prompts: jax.Array, tokens: jax.Array) -> jax.Array:
    ids = jnp.concatenate([prompts, tokens], axis=1)
    return decoder.token_log_probs(params, sizes, ids)[:, prompts.shape[1] - 1 :]


def policy(
    config: "Config", base: Any, prompts: np.ndarray, reward: contracts.Reward
) -> tuple[Callable[[float], State], Callable[..., tuple[State, Metrics]]]:
    """The start and the step of alignment: GRPO on the contract's Lagrangian, the adapter alone is trained.

    One compiled step serves the constrained run and the control: how fast the multiplier moves
    is data, and at 0, from 0, the constraint costs nothing.
    """
    sizes, adapter, dual = model_config(config), adapter_of(config), align.lagrangian()
    rate = optax.cosine_decay_schedule(config.rl_rate, config.rl_steps, 0.1)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.95))
    bank = jnp.asarray(prompts)

    def start(multiplier: float) -> State:
        delta = adapter.init(jax.random.key(config.seed + 1), base)
        return {
            "delta": delta,
            "opt_state": optimiser.init(delta),
            "dual": dual.init(jnp.full((1,), multiplier)),
            "price": jnp.asarray(config.price if multiplier > 0 else 0.0, jnp.float32),
        }

    @jax.jit
    def update(base: Any, state: State, index: jax.Array) -> tuple[State, Metrics]:
        which, how = jax.random.split(jax.random.fold_in(jax.random.key(config.seed + 2), index))
        chosen = bank[jax.random.randint(which, (config.rl_prompts,), 0, len(bank))]
        repeated = jnp.repeat(chosen, config.group, axis=0)
        drawn, batch = texts(config, base, adapter.attach(base, state["delta"]), repeated, how)
        out = reward({**reward.params, "multipliers": state["dual"].multipliers}, batch)
        advantages = align.group_advantages(out.total.reshape(config.rl_prompts, config.group)).reshape(-1)

        def loss(delta: Any) -> jax.Array:
            logp = _completion_log_probs(sizes, adapter.attach(base, delta), repeated, drawn.tokens)
            surrogate = align.policy_loss(logp, drawn.logp, advantages, drawn.mask, reduce="sum") / config.text_length
            return jnp.mean(surrogate + config.kl * align.kl_estimate(logp, batch["ref_logp"], drawn.mask))

        updates, opt_state = optimiser.update(jax.grad(loss)(state["delta"]), state["opt_state"], state["delta"])
        cost = jnp.mean(out.costs, axis=0)
        # The multiplier aims at half of what is allowed, so that a bound on fresh samples can clear it.
        excess = cost - 0.5 * reward.params["thresholds"]
        step_size = state["price"]
        price = dual.update(state["dual"], excess, step_size=step_size, proportional=5 * step_size, maximum=10.0)
        metrics = {
            "reward": jnp.mean(welfare(reward, out)),
            "cost": cost[0],
            "multiplier": state["dual"].multipliers[0],
            "length": jnp.mean(jnp.sum(drawn.mask, axis=1).astype(jnp.float32)),
            **{
                stakeholder.name: jnp.mean(out.utilities[:, k])
                for k, stakeholder in enumerate(reward.contract.stakeholders)
            },
        }
        delta = optax.apply_updates(state["delta"], updates)
        return {**state, "delta": delta, "opt_state": opt_state, "dual": price}, metrics

    def step(state: State, batch: None, index: int) -> tuple[State, Metrics]:
        return update(base, state, index)

    return start, step


def welfare(reward: contracts.Reward, out: contracts.RewardOut) -> jax.Array:
    """The aggregate alone, without the price of the constraint: `[B]`."""
    rule = reward.contract.aggregate
    return rule.apply(out.utilities, reward.params["weights"], reward.params)


def sampler(
    config: "Config", prompts: np.ndarray, reward: contracts.Reward
) -> Callable[[Any, Any, int], dict[str, np.ndarray]]:
    """Fresh completions of held-out prompts by any policy, in batches: tokens, masks, utilities and costs."""
    size = min(config.judge_batch, len(prompts))

    @jax.jit
    def one(base: Any, policy: Any, chosen: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        _, batch = texts(config, base, policy, chosen, key)
        out = reward(reward.params, batch)
        return {"tokens": batch["tokens"], "mask": batch["mask"], "utilities": out.utilities, "costs": out.costs}

    def all_of(base: Any, policy: Any, seed: int) -> dict[str, np.ndarray]:
        key = jax.random.key(seed)
        parts = [
            one(base, policy, jnp.asarray(prompts[i : i + size]), jax.random.fold_in(key, i))
            for i in range(0, len(prompts), size)
        ]
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    return all_of
