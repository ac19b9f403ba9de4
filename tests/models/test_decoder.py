"""The decoder against an oracle, its cache against whole sequences, its samples against its probabilities."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import weights
from rlx.models import _layers, decoder

CONFIG = decoder.Config(vocab_size=17, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """Random parameters, the embedding large enough that the logits are far from uniform."""
    drawn = decoder.init(jax.random.key(0), CONFIG)
    drawn["model"]["embed_tokens"]["weight"] *= 40
    return drawn


def numpy_decoder(params: dict[str, Any], ids: np.ndarray) -> np.ndarray:
    """The equations in float64 numpy, one sequence at a time, positions with complex numbers."""
    model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["model"]

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.rms_norm_eps) * weight

    def turn(x: np.ndarray) -> np.ndarray:
        half = CONFIG.head_dim // 2
        angle = np.arange(len(ids))[:, None] * CONFIG.rope_theta ** (-np.arange(half) / half)
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def attention(p: Any, layer: int, x: np.ndarray) -> np.ndarray:
        x = norm(x, p["input_layernorm"]["weight"][layer])
        q, k, v = (x @ p["self_attn"][name]["weight"][layer].T for name in ("q_proj", "k_proj", "v_proj"))
        heads = []
        for h in range(CONFIG.num_attention_heads):
            part = slice(h * CONFIG.head_dim, (h + 1) * CONFIG.head_dim)
            scores = turn(q[:, part]) @ turn(k[:, part]).T / np.sqrt(CONFIG.head_dim)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(shares / shares.sum(-1, keepdims=True) @ v[:, part])
        return np.concatenate(heads, -1) @ p["self_attn"]["o_proj"]["weight"][layer].T

    def mlp(p: Any, layer: int, x: np.ndarray) -> np.ndarray:
        x = norm(x, p["post_attention_layernorm"]["weight"][layer])
        gate, up = (x @ p["mlp"][name]["weight"][layer].T for name in ("gate_proj", "up_proj"))
        return (gate / (1 + np.exp(-gate)) * up) @ p["mlp"]["down_proj"]["weight"][layer].T

    y1 = y2 = model["embed_tokens"]["weight"][ids]
    for layer in range(CONFIG.num_hidden_layers):
        y1 = y1 + attention(model["layers"], layer, y2)
        y2 = y2 + mlp(model["layers"], layer, y1)
    return norm(y1 + y2, model["norm"]["weight"]) @ model["embed_tokens"]["weight"].T


def tokens(seed: int, batch: int = 4, length: int = 9) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, CONFIG.vocab_size)


def test_logits_are_the_equations(params: Any) -> None:
    ids = tokens(1)
    expected = np.stack([numpy_decoder(params, row) for row in np.asarray(ids)])
    np.testing.assert_allclose(decoder.apply(params, CONFIG, ids), expected, atol=1e-5 * np.abs(expected).max())


def test_unrolled_is_scanned(params: Any) -> None:
    ids = tokens(1)
    actual = decoder.apply(params, CONFIG, ids, unroll=True)
    np.testing.assert_allclose(actual, decoder.apply(params, CONFIG, ids), atol=2e-4)


def test_gradient_is_that_of_the_unrolled_layers(params: Any) -> None:
    ids = tokens(2)

    def loss(p: Any, unroll: bool) -> jax.Array:
        logits = decoder.apply(p, CONFIG, ids[:, :-1], unroll=unroll)
        return -jnp.mean(decoder.log_probs(logits, ids[:, 1:]))

    actual = jax.grad(lambda p: loss(p, False))(params)
    expected = jax.grad(lambda p: loss(p, True))(params)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 + 1e-4 * float(jnp.abs(e).max()))


def test_a_later_token_does_not_change_earlier_logits(params: Any) -> None:
    ids = tokens(3)
    changed = ids.at[:, 5].set((ids[:, 5] + 1) % CONFIG.vocab_size)
    before, after = decoder.apply(params, CONFIG, ids), decoder.apply(params, CONFIG, changed)
    assert jnp.array_equal(before[:, :5], after[:, :5])
    assert not jnp.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("chunks", [[9], [4, 5], [3, 1, 1, 4], [1] * 9])
def test_the_cache_gives_the_logits_of_the_whole_sequence(params: Any, chunks: list[int]) -> None:
    ids = tokens(4)
    cache, parts, start = decoder.empty_cache(CONFIG, batch=4, slots=11), [], 0
    for size in chunks:
        logits, cache = decoder.extend(params, CONFIG, ids[:, start : start + size], cache)
        parts.append(logits)
        start += size
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), decoder.apply(params, CONFIG, ids), atol=2e-4)
    assert int(cache.length) == 9


@pytest.mark.parametrize("residual", ["reversible", "plain"])
def test_unrolled_layers_fill_the_same_cache(residual: Any) -> None:
    sliding = {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": 3, "num_hidden_layers": 2}
    config = dataclasses.replace(CONFIG, residual=residual, **(sliding if residual == "plain" else {}))
    params = decoder.init(jax.random.key(0), config)
    ids = tokens(4)

    @partial(jax.jit, static_argnames="unroll")
    def run(ids: jax.Array, unroll: bool) -> Any:
        first, cache = decoder.prefill(params, config, ids[:, :5], slots=9, unroll=unroll)
        second, cache = decoder.extend(params, config, ids[:, 5:], cache, unroll=unroll)
        return first, second, cache

    for whole, apart in zip(jax.tree.leaves(run(ids, False)), jax.tree.leaves(run(ids, True)), strict=True):
        np.testing.assert_allclose(apart, whole, atol=2e-4)


def test_left_padded_prompts_continue_like_unpadded_ones(params: Any) -> None:
    ids = tokens(5)
    padded = jnp.pad(ids, ((0, 0), (3, 0)), constant_values=2)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), (3, 0)))
    plain, cache = decoder.prefill(params, CONFIG, ids, slots=10)
    shifted, shifted_cache = decoder.prefill(params, CONFIG, padded, slots=13, attention_mask=mask)
    np.testing.assert_allclose(shifted[:, 3:], plain, atol=2e-4)
    following = tokens(6, length=1)
    expected, _ = decoder.extend(params, CONFIG, following, cache)
    actual, _ = decoder.extend(params, CONFIG, following, shifted_cache)
    np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize("side", [(2, 0), (0, 2), (1, 1)])
def test_padded_prompts_generate_what_unpadded_ones_do(params: Any, side: tuple[int, int]) -> None:
    ids = tokens(5)
    padded = jnp.pad(ids, ((0, 0), side), constant_values=2)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), side))
    plain = decoder.generate(params, CONFIG, ids, key=jax.random.key(0), max_new_tokens=4)
    out = decoder.generate(params, CONFIG, padded, key=jax.random.key(0), max_new_tokens=4, attention_mask=mask)
    assert jnp.array_equal(out.tokens, plain.tokens)
    np.testing.assert_allclose(out.logp, plain.logp, atol=2e-4)


def test_a_full_cache_gives_nan_not_a_wrong_answer(params: Any) -> None:
    ids = tokens(7, length=3)
    _, cache = decoder.prefill(params, CONFIG, ids, slots=4)
    logits, cache = decoder.extend(params, CONFIG, ids[:, :1], cache)
    assert bool(jnp.all(jnp.isfinite(logits)))
    logits, _ = decoder.extend(params, CONFIG, ids[:, :1], cache)
    assert bool(jnp.all(jnp.isnan(logits)))


def test_greedy_generation_takes_the_most_likely_token(params: Any) -> None:
    prompts = tokens(8, length=4)
    out = decoder.generate(params, CONFIG, prompts, key=jax.random.key(0), max_new_tokens=5, temperature=0.0)
    ids = prompts
    for t in range(5):
        following = jnp.argmax(decoder.apply(params, CONFIG, ids)[:, -1], axis=-1)
        assert jnp.array_equal(out.tokens[:, t], following)
        ids = jnp.concatenate([ids, following[:, None]], axis=1)


def test_samples_follow_the_model(params: Any) -> None:
    """The first token of 4,000 samples of one prompt against its softmax, by a chi-squared test."""
    prompts = jnp.tile(tokens(9, batch=1, length=4), (4000, 1))
    out = decoder.generate(params, CONFIG, prompts, key=jax.random.key(3), max_new_tokens=1)
    share = jax.nn.softmax(decoder.apply(params, CONFIG, prompts[:1])[0, -1])
    counts = np.bincount(np.asarray(out.tokens[:, 0]), minlength=CONFIG.vocab_size)
    expected = 4000 * np.asarray(share, np.float64)
    likely = expected > 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert statistic < 45  # the 0.9995 quantile for 17 cells is below 42
    assert counts.max() < 4000


def test_log_probabilities_and_mask_of_samples(params: Any) -> None:
    prompts = tokens(10, batch=64, length=4)
    stop = 3
    out = decoder.generate(
        params, CONFIG, prompts, key=jax.random.key(1), max_new_tokens=12, stop_token=stop, temperature=1.5
    )
    logits = decoder.apply(params, CONFIG, jnp.concatenate([prompts, out.tokens], axis=1))[:, 3:-1]
    expected = jnp.where(out.mask, decoder.log_probs(logits, out.tokens), 0.0)
    np.testing.assert_allclose(out.logp, expected, atol=1e-3)
    stopped = 0
    for row, mask in zip(np.asarray(out.tokens), np.asarray(out.mask), strict=True):
        hits = np.flatnonzero(row == stop)
        length = hits[0] + 1 if len(hits) else len(row)
        stopped += len(hits) > 0
        assert mask.tolist() == [True] * length + [False] * (len(row) - length)
        assert (row[length:] == stop).all()
    assert 0 < stopped < 64


def test_byte_prompts_and_targets_outside() -> None:
    config = decoder.Config(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    drawn = decoder.init(jax.random.key(0), config)
    ids = jnp.array([[1, 2, 3]] * 64)

    def run(prompts: jax.Array) -> decoder.Generation:
        return decoder.generate(drawn, config, prompts, key=jax.random.key(0), max_new_tokens=3)

    out = run(ids.astype(jnp.uint8))
    assert jnp.array_equal(out.tokens, run(ids).tokens)
    assert int(out.tokens.max()) > 255
    assert jnp.isnan(decoder.log_probs(jnp.zeros((2, 3)), jnp.array([-1, 3]))).tolist() == [True, True]


def test_a_batch_does_not_change_its_first_rows(params: Any) -> None:
    prompts = tokens(11, batch=6, length=4)

    def run(rows: jax.Array) -> jax.Array:
        return decoder.generate(params, CONFIG, rows, key=jax.random.key(0), max_new_tokens=6).tokens

    assert jnp.array_equal(run(prompts)[:2], run(prompts[:2]))


def test_an_adapted_weight_stands_in_every_path(params: Any) -> None:
    base = params["model"]["layers"]["mlp"]["up_proj"]["weight"]
    k = jax.random.split(jax.random.key(2))
    lora = weights.LoRA(
        base=base,
        a=jax.random.normal(k[0], (3, 2, 16)),
        b=jax.random.normal(k[1], (3, 24, 2)),
        scale=jnp.full(3, 0.5),
    )

    def with_weight(w: Any) -> Any:
        layers = params["model"]["layers"]
        return {"model": {**params["model"], "layers": {**layers, "mlp": {**layers["mlp"], "up_proj": {"weight": w}}}}}

    ids = tokens(12)
    merged = with_weight(weights.dense(lora))
    expected = decoder.apply(merged, CONFIG, ids)
    assert not jnp.allclose(expected, decoder.apply(params, CONFIG, ids), atol=1e-2)
    for unroll in (False, True):
        np.testing.assert_allclose(decoder.apply(with_weight(lora), CONFIG, ids, unroll=unroll), expected, atol=1e-3)
    logits, _ = decoder.prefill(with_weight(lora), CONFIG, ids, slots=9)
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_rotation_depends_on_the_distance_alone() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(i: int, j: int) -> float:
        places = [_layers.turns(jnp.array([[p]]), decoder.Rope().frequencies(8)) for p in (i, j)]
        turned = [_layers.rotate(v, *place) for v, place in zip((q, k), places, strict=True)]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 18, "num_attention_heads": 6}, "num_attention_heads: hidden_size=18 must divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: must be positive, got 0"),
        ({"rope_theta": float("nan")}, "rope_theta: must be positive, got nan"),
    ],
)
def test_a_bad_configuration_names_the_field(change: dict[str, Any], message: str) -> None:
    sizes = {
        "vocab_size": 4,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    with pytest.raises(ValueError, match=message):
        decoder.Config(**{**sizes, **change})


def test_mistakes_name_the_argument(params: Any) -> None:
    ids = tokens(1)
    with pytest.raises(TypeError, match="input_ids: expected an integer dtype, got float32"):
        decoder.apply(params, CONFIG, ids.astype(jnp.float32))
    with pytest.raises(ValueError, match="attention_mask: dim T=8 disagrees with T=9 of input_ids"):
        decoder.apply(params, CONFIG, ids, attention_mask=jnp.ones((4, 8), bool))
    with pytest.raises(ValueError, match="input_ids: 9 tokens do not fit a cache of 5 slots"):
        decoder.prefill(params, CONFIG, ids, slots=5)
    with pytest.raises(ValueError, match="prompt_ids: a prompt needs at least one token"):
        decoder.generate(params, CONFIG, ids[:, :0], key=jax.random.key(0), max_new_tokens=1)
    with pytest.raises(ValueError, match="temperature: -1 is outside"):
        decoder.generate(params, CONFIG, ids, key=jax.random.key(0), max_new_tokens=1, temperature=-1)
    out = decoder.apply(params, CONFIG, ids.at[0, 0].set(99))
    assert bool(jnp.all(jnp.isnan(out[0])))
    assert bool(jnp.all(jnp.isfinite(out[1:])))
