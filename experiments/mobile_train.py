"""The training of the phone's network: all tasks in every step, then on with 2-bit weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from experiments import mobile_scenes as scenes
from experiments.mobile_data import ANSWER, PAD, tokens
from rlx import quantize
from rlx.models import multimodal

Tree = Any
StepFn = Callable[[Tree, Tree, Any], tuple[Tree, dict[str, Any]]]

# The bits of each weight in the end: 8 where pixels come in (the stem is small) and answers go out, 2 between.
RULE: dict[str, Literal[2, 4, 8]] = {
    "patch_embed|stem.*_proj|embed|reader|lm_head|_projection": 8,
    "merge": 4,
    "_proj": 2,
}


_TAKEN = -1e9
# How many things, colours and sizes a token of a scene may be told to hold, nothing included.
_TOLD = (len(scenes.THINGS) + 1, len(scenes.COLOURS) + 1, len(scenes.SIZES) + 1)


def _never() -> np.ndarray:
    """`[V, V]` float32, added to logits: it takes away a thing after a colour that training never shows it with."""
    ids = tokens().ids
    found = np.zeros((len(ids), len(ids)), np.float32)
    for colour, thing in scenes.pairs(held_out=True):
        found[ids[colour], ids[thing]] = found[ids[thing], ids[colour]] = _TAKEN
    return found


def _never_told() -> np.ndarray:
    """The same of what tokens are told: `[colours, things]`, nothing included in both."""
    found = np.zeros((_TOLD[1], _TOLD[0]), np.float32)
    colours = list(scenes.COLOURS)
    for colour, thing in scenes.pairs(held_out=True):
        found[1 + colours.index(colour), 1 + scenes.THINGS.index(thing)] = _TAKEN
    return found


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Attributes:
      steps: in all.
      rate: the highest learning rate.
      letters_until: the share of the steps in which the reader is told where each letter is.
      match: the weight of telling scenes and captions apart.
      decay: of the moving average of the parameters that is judged.
    """

    steps: int
    rate: float = 8e-3
    letters_until: float = 0.5
    match: float = 0.5
    decay: float = 0.995


def optimiser(plan: Plan) -> optax.GradientTransformation:
    """Muon for the matrices inside, Adam for all else; the rate warms up and falls as a cosine, a tenth for scales."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, plan.rate, min(100, plan.steps // 10 + 1), plan.steps, plan.rate / 50
    )

    def kind(tree: Tree) -> Tree:
        return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in tree.items()}

    def matrices(tree: Tree) -> Tree:
        def axes(path: Any, leaf: Any) -> Any:
            inside = re.search(r"_proj\.weight|merge", ".".join(str(key.key) for key in path))
            return optax.contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2) if inside else None

        return jax.tree_util.tree_map_with_path(axes, tree)

    def slower(count: Any) -> Any:
        return 0.1 * rate(count)

    muon = optax.contrib.muon(
        rate, weight_decay=0.02, adam_b2=0.98, consistent_rms=0.2, muon_weight_dimension_numbers=matrices
    )
    adam = optax.adam(rate, b2=0.98)
    parts = optax.partition({"params": muon, "told": adam, "scales": optax.adam(slower, b2=0.98)}, kind)
    return optax.chain(optax.clip_by_global_norm(1.0), parts)


def begin(key: jax.Array, config: multimodal.Config, plan: Plan) -> Tree:
    """What a run carries: what is trained, its moving average, and the optimiser's state."""
    params = multimodal.init(key, config)
    told = jnp.zeros((sum(_TOLD), config.hidden_size), jnp.float32)
    trained = {"params": params, "scales": quantize.qat(RULE).init(params), "told": told}
    return {"trained": trained, "average": jax.tree.map(jnp.copy, trained), "optimiser": optimiser(plan).init(trained)}


def lower(state: Tree) -> Tree:
    """On to low-bit weights: scales for the weights as they are now."""
    parts = {name: state[name] for name in ("trained", "average")}
    return {**state, **{n: {**part, "scales": quantize.qat(RULE).init(part["params"])} for n, part in parts.items()}}


def step_fn(config: multimodal.Config, plan: Plan, *, start: int, low_bit: bool) -> StepFn:
    """One update of `{"trained", "average", "optimiser"}` by a batch of `mobile_data.batches`.

    Args:
      config: the network.
      plan: the whole run.
      start: how many updates came before step 0.
      low_bit: whether weights are rounded as `RULE` says.
    """
    update, training = optimiser(plan).update, quantize.qat(RULE)

    def objective(
        trained: Tree, batch: Tree, key: jax.Array, told: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = training.attach(trained["params"], trained["scales"]) if low_bit else trained["params"]
        return losses(params, trained["told"], config, batch, key, told, plan.match)

    def step(state: Tree, batch: Tree, index: Any) -> tuple[Tree, dict[str, Any]]:
        index = index + start
        key = jax.random.fold_in(jax.random.key(7), index)
        told = jnp.clip(1 - index / (plan.letters_until * plan.steps), 0.0, 1.0).astype(jnp.float32)
        with jax.numpy_dtype_promotion("standard"):
            (_, metrics), slope = jax.value_and_grad(objective, has_aux=True)(state["trained"], batch, key, told)
            change, optimiser_state = update(slope, state["optimiser"], state["trained"])
            trained = optax.apply_updates(state["trained"], change)
            decay = jnp.minimum(plan.decay, (1.0 + index) / (10.0 + index)).astype(jnp.float32)
            average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state["average"], trained)
        return {"trained": trained, "average": average, "optimiser": optimiser_state}, metrics

    return step


def losses(
    params: Tree,
    told_head: jax.Array,
    config: multimodal.Config,
    batch: Tree,
    key: jax.Array,
    told: jax.Array,
    match_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over the tasks, and each by name.

    Reading is CTC; at first, for a share `told`, each column is told which letter's middle it holds. Tokens of a scene
    are told which thing they hold, by a head of their own that is thrown away. A text is about its scene: of a caption
    every word counts, of a question the answer. Scenes and captions of a batch are told apart.
    """
    one, two = jax.random.split(key)
    logits = multimodal.read(params, config, changed(one, batch["crops"]))
    absent = jnp.zeros(logits.shape[:2], jnp.float32)
    ctc = optax.ctc_loss(logits, absent, batch["classes"], (batch["classes"] == 0).astype(jnp.float32))
    letters = optax.softmax_cross_entropy_with_integer_labels(logits, batch["columns"]).sum(axis=-1)
    read = jnp.mean(told * letters + (1 - told) * ctc)

    tokens = multimodal.encode(params, config, dimmed(two, batch["scenes"]), kind="scene")
    truth = batch["places"]
    where = jnp.einsum("bnd,cd->bnc", tokens, told_head)
    thing, colour, size = jnp.split(where, np.cumsum(_TOLD)[:-1], axis=-1)
    never = jnp.asarray(_never_told())
    place = optax.softmax_cross_entropy_with_integer_labels(thing + never[truth[:, 1]], truth[:, 0])
    for part, labels in ((colour + never.T[truth[:, 0]], truth[:, 1]), (size, truth[:, 2])):
        place += (labels > 0) * optax.softmax_cross_entropy_with_integer_labels(part, labels)
    place = jnp.mean(jnp.sum(place, axis=1))

    captions, asked = batch["captions"], batch["asked"]
    seen = multimodal.memory(params, config, tokens)
    twice = multimodal.Cache(*(jnp.concatenate([leaf, leaf], axis=1) for leaf in seen))
    caption = surprise(multimodal.apply(params, config, seen, captions[:, :-1]), captions)
    answered = jnp.cumsum((asked[:, :-1] == ANSWER).astype(jnp.int32), axis=1) > 0
    answer = surprise(multimodal.apply(params, config, twice, asked[:, :-1]), asked, counts=answered)

    image = multimodal.embed_image(params, tokens)
    text = multimodal.embed_text(params, config, captions, jnp.sum(captions != PAD, axis=1))
    similar = image @ text.T * jnp.exp(jnp.minimum(params["logit_scale"], 4.6))
    same = jnp.all(captions[:, None] == captions[None], axis=-1)
    same = same / jnp.sum(same, axis=1, keepdims=True)
    match = jnp.mean(optax.softmax_cross_entropy(similar, same) + optax.softmax_cross_entropy(similar.T, same.T)) / 2
    total = 0.2 * read + 0.3 * place + 0.3 * caption + answer + match_weight * match
    parts = {"read": read, "place": place, "caption": caption, "answer": answer, "match": match}
    return total, {"loss": total, **parts}


def surprise(logits: jax.Array, ids: jax.Array, *, counts: jax.Array | bool = True) -> jax.Array:
    """The mean over texts `ids` `[B, T]` of the sum of -log P of their tokens, where `counts`, padding excepted.

    A colour is not told from things that it is never shown with, nor a thing from such colours: else it would be
    learned that there are none. Which of the two is given is the token before, or before the answer.
    """
    given, target = ids[:, :-1], ids[:, 1:]
    before = jnp.pad(given, ((0, 0), (1, 0)))[:, :-1]
    logits = logits + jnp.asarray(_never())[jnp.where(given == ANSWER, before, given)]
    lost = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return jnp.sum(jnp.where(counts & (target != PAD), lost, 0.0)) / len(ids)


def changed(key: jax.Array, crops: jax.Array) -> jax.Array:
    """Word crops `[B, H, W, 3]` as floats, half of them as negatives, each channel dimmed by a share of its own."""
    one, two = jax.random.split(key)
    count = len(crops)
    x = crops.astype(jnp.float32)
    x = jnp.where(jax.random.bernoulli(one, 0.5, (count, 1, 1, 1)), 255 - x, x)
    return x * jax.random.uniform(two, (count, 1, 1, 3), minval=0.6, maxval=1.0)


def dimmed(key: jax.Array, scenes: jax.Array) -> jax.Array:
    """Scenes `[B, H, W, 3]` as floats, each a little darker or not."""
    return scenes.astype(jnp.float32) * jax.random.uniform(key, (len(scenes), 1, 1, 1), minval=0.8, maxval=1.0)


def judged(state: Tree, *, low_bit: bool) -> Tree:
    """The parameters to judge: the moving average, rounded to packed codes where they were trained so."""
    average = state["average"]
    return quantize.qat(RULE).freeze(average["params"], average["scales"]) if low_bit else average["params"]
