"""What a rule is, and what rules share."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

Params = dict[str, Any]


class Aggregate(Protocol):
    """A rule: names of its own parameters, their first values, and the function.

    A rule may say more about itself in attributes, which `verify` and contract files use: see `Rule`.
    """

    def init(self, names: Sequence[str]) -> Params:
        """First values of the rule's own parameters for stakeholders of these names."""
        ...

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """Utilities `[B, K]` to `[B]`."""
        ...

    def problems(self, names: Sequence[str]) -> list[str]:
        """What is wrong with the rule for stakeholders of these names."""
        ...


class Rule:
    """What the rules here say about themselves.

    Attributes:
      kind: the name in contract files.
      monotone: more utility for one stakeholder of a text never lowers the text's value, for weights >= 0.
      comparable: it adds or compares utilities of different people, so their units must agree.
      across_texts: it compares texts with each other.
    """

    kind: ClassVar[str]
    monotone: ClassVar[bool] = True
    comparable: ClassVar[bool] = True
    across_texts: ClassVar[bool] = False

    def init(self, names: Sequence[str]) -> Params:
        """No parameters of its own."""
        return {}

    def problems(self, names: Sequence[str]) -> list[str]:
        """None."""
        return []


def spread(values: jax.Array, utilities: jax.Array) -> jax.Array:
    """`values` `[K]` or `[]` in the dtype and rank of `utilities` `[..., K]`."""
    values = values.astype(utilities.dtype)
    return values if values.ndim == 0 else values.reshape((1,) * (utilities.ndim - 1) + values.shape)


def number(value: float) -> np.ndarray:
    """A parameter as the float32 that it is computed with."""
    return np.asarray(value, np.float32)


def check_group(group: Any) -> None:
    """Check the number of texts that are compared.

    Raises:
      ValueError: it is neither None nor an integer of at least 2.
    """
    if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 2):
        raise ValueError(f"group: {group!r} is neither None (all texts of the batch) nor a number of at least 2")


def in_groups(utilities: jax.Array, group: int | None) -> jax.Array:
    """Utilities `[B, K]` as `[groups, A, K]`: consecutive texts are compared.

    Raises:
      ValueError: the batch does not hold whole groups.
    """
    size = utilities.shape[0]
    group = size if group is None else group
    if size % group:
        raise ValueError(f"group: a batch of {size} texts does not hold whole groups of {group}")
    return utilities.reshape((size // group, group, utilities.shape[1]))
