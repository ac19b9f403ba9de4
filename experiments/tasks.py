"""Tasks of memory over long sequences, drawn from a key: tokens `[T]`, and targets `[T]`, -1 where nothing is asked.

    tokens, targets = jax.vmap(lambda key: tasks.associative_recall(key, pairs=32))(keys)

Every function is pure and its shapes depend on its keyword arguments alone. Questions come after what they ask for, in
an order of their own, so nothing can be known of them before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Example(NamedTuple):
    """One sequence.

    Attributes:
      tokens: `[T]` int32.
      targets: `[T]` int32, what is to be said after each token, -1 where nothing is asked.
    """

    tokens: jax.Array
    targets: jax.Array


def associative_recall(key: jax.Array, *, pairs: int, keys: int = 64, values: int = 64, filler: int = 0) -> Example:
    """Multi-query associative recall: `pairs` times key and value, filler, then every key again with its value asked.

    Tokens: 0 filler, then keys, then values. T is `4 * pairs + filler`.

    References:
      Arora et al. 2023, "Zoology" (arXiv 2312.04927), section 3.1. Deviation: questions in a random order without gaps.
    """
    if pairs > keys:
        raise ValueError(f"pairs: {pairs} need as many different keys, there are {keys}")
    a, b, c = jax.random.split(key, 3)
    names = 1 + jax.random.permutation(a, keys)[:pairs].astype(jnp.int32)
    told = 1 + keys + jax.random.randint(b, (pairs,), 0, values, jnp.int32)
    order = jax.random.permutation(c, pairs)
    blank, nothing = jnp.zeros(filler, jnp.int32), jnp.full(2 * pairs + filler, -1, jnp.int32)
    asked = jnp.stack([told[order], jnp.full(pairs, -1, jnp.int32)], axis=1).reshape(-1)
    first, second = (jnp.stack([names[i], told[i]], axis=1).reshape(-1) for i in (jnp.arange(pairs), order))
    return Example(jnp.concatenate([first, blank, second]), jnp.concatenate([nothing, asked]))


def needle(
    key: jax.Array, *, length: int, needles: int = 1, keys: int = 16, values: int = 32, hay: int = 64
) -> Example:
    """Needles in a haystack: `needles` times key and value somewhere among random hay; at the end the keys are asked.

    Tokens: hay, then keys, then values. The last `2 * needles` tokens are the questions with their answers.
    """
    body = length - 2 * needles
    room = body // needles
    if needles > keys or room < 2:
        raise ValueError(f"needles: {needles} do not fit in {length} tokens with {keys} keys")
    a, b, c, d, e = jax.random.split(key, 5)
    tokens = jax.random.randint(a, (body,), 0, hay, jnp.int32)
    names = hay + jax.random.permutation(b, keys)[:needles].astype(jnp.int32)
    told = hay + keys + jax.random.randint(c, (needles,), 0, values, jnp.int32)
    places = jnp.arange(needles) * room + jax.random.randint(d, (needles,), 0, room - 1)
    tokens = tokens.at[places].set(names).at[places + 1].set(told)
    order = jax.random.permutation(e, needles)
    asked = jnp.stack([told[order], jnp.full(needles, -1, jnp.int32)], axis=1).reshape(-1)
    questions = jnp.stack([names[order], told[order]], axis=1).reshape(-1)
    return Example(jnp.concatenate([tokens, questions]), jnp.concatenate([jnp.full(body, -1, jnp.int32), asked]))


def variable_tracking(
    key: jax.Array, *, length: int, chains: int = 4, hops: int = 3, values: int = 32, hay: int = 64
) -> Example:
    """Variables that are given a value, or another variable: at the end the last variable of every chain is asked.

    An assignment is two tokens, the new variable and what it is given. Assignments of all chains come in a random
    order that keeps each chain's own, with hay between. Tokens: hay, values, then the `chains * hops` variables.

    References:
      Hsieh et al. 2024, "RULER" (arXiv 2404.06654), section 3.2.
    """
    count = chains * hops
    body = length - 2 * chains
    room = body // count
    if room < 2:
        raise ValueError(f"length: {length} has no room for {count} assignments and {chains} questions")
    a, b, c, d, e, f = jax.random.split(key, 6)
    tokens = jax.random.randint(a, (body,), 0, hay, jnp.int32)
    names = (hay + values + jax.random.permutation(b, count)).astype(jnp.int32).reshape(chains, hops)
    told = hay + jax.random.randint(c, (chains,), 0, values, jnp.int32)
    given = jnp.concatenate([told[:, None], names[:, :-1]], axis=1)
    turn = jax.random.permutation(d, jnp.repeat(jnp.arange(chains), hops))  # whose next assignment comes
    nth = jnp.sum((turn[:, None] == turn[None, :]) & (jnp.arange(count)[:, None] > jnp.arange(count)[None, :]), axis=1)
    places = jnp.arange(count) * room + jax.random.randint(e, (count,), 0, room - 1)
    tokens = tokens.at[places].set(names[turn, nth]).at[places + 1].set(given[turn, nth])
    order = jax.random.permutation(f, chains)
    asked = jnp.stack([told[order], jnp.full(chains, -1, jnp.int32)], axis=1).reshape(-1)
    questions = jnp.stack([names[order, -1], told[order]], axis=1).reshape(-1)
    return Example(jnp.concatenate([tokens, questions]), jnp.concatenate([jnp.full(body, -1, jnp.int32), asked]))


def copy(key: jax.Array, *, length: int, values: int = 32) -> Example:
    """A random string, a separator, and the string again, asked token by token. T is `2 * length + 1`; 0 separates."""
    string = 1 + jax.random.randint(key, (length,), 0, values, jnp.int32)
    tokens = jnp.concatenate([string, jnp.zeros(1, jnp.int32), string])
    targets = jnp.concatenate([jnp.full(length, -1, jnp.int32), string, jnp.full(1, -1, jnp.int32)])
    return Example(tokens, targets)


def facts(
    key: jax.Array,
    *,
    length: int,
    facts: int = 12,
    questions: int = 8,
    bursts: int = 0,
    block: int = 64,
    keys: int = 64,
    values: int = 32,
    filler: int = 16,
    noise: float = 0.02,
) -> Example:
    """A stream of facts, each a new key and its value, in filler that is easily foretold; afterwards some are asked.

    Filler counts up, modulo `filler`, from 0 after a fact, and jumps with probability `noise`. A value is uniform, so
    who has not kept its fact loses log(values) nats, and who has loses nothing. Facts come one in every
    `length / facts` tokens, or all in so many `bursts`, one after another without filler between, each burst inside a
    block of its own. T is `length + 2 * questions`: the last `2 * questions` tokens are the questions with their
    answers. Tokens: filler, then keys, then values.
    """
    if not questions <= facts <= keys:
        raise ValueError(f"facts: {facts} must be at least the {questions} questions and at most the {keys} keys")
    a, b, c, d, e, f, g = jax.random.split(key, 7)
    names = filler + jax.random.permutation(a, keys)[:facts].astype(jnp.int32)
    told = filler + keys + jax.random.randint(b, (facts,), 0, values, jnp.int32)
    index = jnp.arange(facts, dtype=jnp.int32)
    if bursts:
        each, room = facts // bursts, length // block
        if facts % bursts or 2 * each > block or bursts > room:
            raise ValueError(f"bursts: {bursts} of {each} facts do not fit in {room} blocks of {block} tokens")
        home = jnp.sort(jax.random.permutation(c, room)[:bursts].astype(jnp.int32)) * block
        home = home + jax.random.randint(d, (bursts,), 0, block - 2 * each + 1, jnp.int32)
        places = home[index // each] + 2 * (index % each)
    else:
        room = length // facts
        if room < 2:
            raise ValueError(f"length: {length} has no room for {facts} facts")
        places = index * room + jax.random.randint(d, (facts,), 0, room - 1, jnp.int32)
    where = jnp.arange(length, dtype=jnp.int32)
    jumps = jax.random.bernoulli(e, noise, (length,)).at[0].set(True)
    base = jnp.where(jumps, jax.random.randint(f, (length,), 0, filler, jnp.int32), 0)
    fresh = jumps.at[places + 2].set(True, mode="drop")
    base = base.at[places + 2].set(0, mode="drop")
    begin = jax.lax.cummax(jnp.where(fresh, where, 0))
    tokens = (base[begin] + where - begin) % filler
    tokens = tokens.at[places].set(names).at[places + 1].set(told)
    order = jax.random.permutation(g, facts)[:questions]
    asked = jnp.stack([told[order], jnp.full(questions, -1, jnp.int32)], axis=1).reshape(-1)
    after = jnp.stack([names[order], told[order]], axis=1).reshape(-1)
    return Example(jnp.concatenate([tokens, after]), jnp.concatenate([jnp.full(length, -1, jnp.int32), asked]))
