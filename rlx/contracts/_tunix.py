"""A compiled contract in Tunix: as a reward function, and as a reward manager."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._compile import Reward
from ._encode import Encode
from ._texts import ParamsOf, finite_scores, imported, label_of, named, scorer


def as_tunix(
    reward: Reward,
    *,
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    name: str | None = None,
    pad_batch: bool = False,
) -> Callable[..., list[float]]:
    """A reward function for Tunix's learners: `GRPOLearner(reward_fns=as_tunix(reward), ...)`.

    Tunix fills every parameter whose name is a field of the algorithm's config (a reward function with an argument
    "beta" receives GRPO's 0.04), so this one has `prompts`, `completions` and `**kwargs` alone. Tunix logs the total;
    `register_tunix` logs each term as well.

    Args:
      reward, encode, params, name, pad_batch: as in `as_trl`.

    Returns:
      A function of keywords that returns B Python floats.

    Raises:
      ValueError: when called: as in `as_trl`; a total that is not finite is always an error, since Tunix counts NaN
        as 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.contracts import Contract, Stakeholder, Term, compile
      >>> level = Term("level", lambda batch: batch["level"])
      >>> contract = Contract("level", terms=(level,), stakeholders=(Stakeholder("reader", {"level": 1.0}),))
      >>> as_tunix(compile(contract))(prompts=["a"], completions=["b"], level=[0.5], mode="train")
      [0.5]
    """
    score = scorer(reward, encode=encode, params=params, pad_batch=pad_batch)

    def reward_fn(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return finite_scores(score, prompts, completions, kwargs).total.tolist()

    reward_fn.reward = reward  # pyrefly: ignore
    return named(reward_fn, label_of(reward, name))


def register_tunix(
    reward: Reward,
    name: str = "rlx-contract",
    *,
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    pad_batch: bool = False,
) -> type:
    """Register a reward manager with Tunix: the contract's total, and the mean of each of its parts in the log.

    Use it by name, `GRPOConfig(reward_manager="rlx-contract")`. The learner wants `reward_fns` too: they are added to
    the contract's total, as Tunix adds them to each other; one that `as_tunix` made of the same reward is left out,
    since it would count twice.

    Args:
      reward, encode, params, pad_batch: as in `as_trl`.
      name: what the config names.

    Returns:
      The class, a subclass of `tunix.rl.reward_manager.SequenceRewardManager`. Called, it returns what that returns:
      "rewards" `[B]` and "log_metrics" with, in addition, `<contract>/term/<term>` and so on, as in `as_trl`.

    Raises:
      ImportError: Tunix is not installed.
    """
    manager = imported("tunix.rl.reward_manager", "register_tunix", "google-tunix")
    registry = imported("tunix.rl.function_registry", "register_tunix", "google-tunix")
    score = scorer(reward, encode=encode, params=params, pad_batch=pad_batch)
    label = label_of(reward, None)
    contract_fn = as_tunix(reward, encode=encode, params=params, pad_batch=pad_batch)

    class ContractRewardManager(manager.SequenceRewardManager):
        """The contract's total plus what other reward functions give."""

        def __init__(self, reward_fns: Any, algo_config: Any, **kwargs: Any) -> None:
            fns = list(reward_fns) if isinstance(reward_fns, Sequence) else [reward_fns]
            self.others = [fn for fn in fns if fn is not None and getattr(fn, "reward", None) is not reward]
            super().__init__([contract_fn, *self.others], algo_config, **kwargs)

        def __call__(self, prompts: Any, completions: Any, **kwargs: Any) -> dict[str, Any]:
            scores = finite_scores(score, prompts, completions, kwargs)

            def known(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
                return scores.total.tolist()

            # a manager of its own for each call: learners score batches from several threads
            added = manager.SequenceRewardManager([named(known, label), *self.others], self.algo_config)
            info = added(prompts, completions, **kwargs)
            parts = {f"{label}/{key}": (value, np.mean) for key, value in scores.named.items()}
            return info | {"log_metrics": info["log_metrics"] | parts}

    registry.register_reward_manager(name)(ContractRewardManager)
    return ContractRewardManager
