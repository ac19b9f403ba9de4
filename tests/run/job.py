"""A small training job in a process of its own: tests kill it, stop it, poison it, and start it again."""

import time
from dataclasses import dataclass, field
from typing import Any

import rlx.run


@dataclass(frozen=True)
class Model:
    width: int = 64
    """Width of the hidden layer."""


@dataclass(frozen=True)
class Config:
    """A job for tests."""

    directory: str = "run"
    """Where the run is."""
    steps: int = 30
    """Updates in each stage."""
    save_every: int = 5
    """Updates between checkpoints."""
    rate: float = 0.05
    """Learning rate."""
    nan_from: int = -1
    """First batch that is not finite."""
    nan_to: int = -1
    """Batch after the last that is not finite."""
    rollbacks: int = 2
    """Rollbacks allowed."""
    sleep: float = 0.0
    """Seconds that a batch takes."""
    tensorboard: bool = False
    """Mirror the metrics."""
    model: Model = field(default_factory=Model)


class Batches:
    """Batches that depend on their number alone."""

    def __init__(self, config: Config) -> None:
        self.config, self.next = config, 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        import numpy as np

        time.sleep(self.config.sleep)
        number, self.next = self.next, self.next + 1
        x = np.random.default_rng(number).normal(size=(8, 16)).astype(np.float32)
        return np.full_like(x, np.nan) if self.config.nan_from <= number < self.config.nan_to else x

    def get_state(self) -> dict[str, int]:
        return {"next": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def job(config: Config) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    from rlx._tree import tree_sha256

    optimizer = optax.adam(config.rate)
    key = jax.random.key(7)

    def loss_of(params: Any, x: Any, noise: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] + noise - x) ** 2)

    def step_fn(state: Any, x: Any, step: Any) -> Any:
        noise = 0.1 * jax.random.normal(jax.random.fold_in(state["key"], step), x.shape)
        loss, grads = jax.value_and_grad(loss_of)(state["params"], x, noise)
        updates, opt = optimizer.update(grads, state["opt"])
        return {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt}, {"loss": loss}

    width = config.model.width
    first, second = jax.random.split(jax.random.key(0))
    params = {"a": 0.1 * jax.random.normal(first, (16, width)), "b": 0.1 * jax.random.normal(second, (width, 16))}
    state = {"params": params, "opt": optimizer.init(params), "key": key}
    names = ("directory", "sleep", "rollbacks")
    with rlx.run.Run.open(config.directory, config, may_differ=names, tensorboard=config.tensorboard) as run:
        for name in ("first", "second"):
            state = run.train(
                name,
                step_fn,
                state,
                steps=config.steps,
                save_every=config.save_every,
                log_every=1,
                rollbacks=config.rollbacks,
                data_iterator=Batches(config),
            )
        final = run.result("final", lambda: {"sha256": tree_sha256(state), "next": 1})
        print(final["sha256"])


if __name__ == "__main__":
    rlx.run.main(lambda: job(rlx.run.parse(Config, prog="job")), prog="job")
