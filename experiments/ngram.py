"""Interpolated modified Kneser-Ney models of bytes: what the language model of the main job is measured against.

References:
  Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3.
"""

from dataclasses import dataclass

import numpy as np

BYTES = 256


@dataclass(frozen=True)
class _Order:
    """The model's tables for one order: grams and contexts are bytes in base 256, sorted."""

    grams: np.ndarray
    discounted: np.ndarray  # (count - discount) / total of its context
    contexts: np.ndarray
    backoff: np.ndarray  # the probability that a context leaves to the lower order


class KneserNey:
    """A byte model of order n: p(w | h) = (c(hw) - D) / c(h) + backoff(h) p(w | h without its first byte).

    The highest order has counts, the lower ones have numbers of distinct left neighbours; each
    order has three discounts, for counts of 1, 2, and 3 or more; below the unigram is the
    uniform distribution over 256 bytes.

    Args:
      text: `[N]` uint8; contexts run across the newlines that join its records.
      order: n, 1 to 7.

    Raises:
      ValueError: the order is out of range or the text is shorter than it.
    """

    def __init__(self, text: np.ndarray, order: int) -> None:
        if not 1 <= order <= 7:
            raise ValueError(f"order: {order} is outside [1, 7]")
        if len(text) < order:
            raise ValueError(f"text: {len(text)} bytes are too few for order {order}")
        self.order = order
        self._orders: list[_Order] = []
        grams, counts = np.unique(_grams(text, order), return_counts=True)
        for n in range(order, 0, -1):
            self._orders.insert(0, _tables(grams, counts))
            # How many distinct bytes stand before each shorter gram.
            grams, counts = np.unique(grams % BYTES ** np.uint64(n - 1), return_counts=True)

    def probabilities(self, text: np.ndarray) -> np.ndarray:
        """`p(text[i] | text[:i])` for each i, `[N]`; the first bytes have the context there is."""
        p = np.full(len(text), 1 / BYTES)
        for n, tables in enumerate(self._orders, start=1):
            grams = _grams(text, n)
            contexts = grams // np.uint64(BYTES)
            share = _look_up(tables.grams, tables.discounted, grams, 0.0)
            backoff = _look_up(tables.contexts, tables.backoff, contexts, 1.0)
            p[n - 1 :] = share + backoff * p[n - 1 :]
        return p

    def bits_per_byte(self, text: np.ndarray) -> float:
        """Mean of -log2 p over all bytes but the first, which is what a language model predicts too."""
        return float(-np.log2(self.probabilities(text)[1:]).mean())


def _grams(text: np.ndarray, n: int) -> np.ndarray:
    """Every run of n bytes as one number."""
    length = len(text) - n + 1
    out = np.zeros(max(length, 0), np.uint64)
    for i in range(n):
        out = out * np.uint64(BYTES) + text[i : i + length].astype(np.uint64)
    return out


def _tables(grams: np.ndarray, counts: np.ndarray) -> _Order:
    contexts, inverse = np.unique(grams // np.uint64(BYTES), return_inverse=True)
    discount = _discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(inverse, weights=counts)
    return _Order(
        grams,
        (counts - discount) / totals[inverse],
        contexts,
        np.bincount(inverse, weights=discount) / totals,
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts by count (0, 1, 2, 3 or more), equation 26; where a tiny text leaves one undefined, that of count 1."""
    n1, n2, n3, n4 = (float((counts == c).sum()) for c in (1, 2, 3, 4))
    if n1 == 0 or n2 == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    d1 = 1 - 2 * y * n2 / n1
    d2 = 2 - 3 * y * n3 / n2
    d3 = 3 - 4 * y * n4 / n3 if n3 else d1
    return np.array([0.0, d1, np.clip(d2, 0, 2), np.clip(d3, 0, 3)])


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], missing)
