"""Many adapters in one batch, and several made into one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import adapters, weights
from rlx._tree import named_leaves
from rlx.models import decoder

CONFIG = decoder.Config(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    residual="plain",
    tie_word_embeddings=False,
)
IDS = jax.random.randint(jax.random.key(5), (4, 7), 0, 11)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return decoder.init(jax.random.key(0), CONFIG)


def pair(params: Any, seed: int, **settings: Any) -> tuple[adapters.Adapter, Any]:
    adapter = adapters.lora(**{"rank": 2, "where": r"\.(q|down)_proj\.", **settings})
    delta = adapter.init(jax.random.key(seed), params)
    stir = lambda x: x + 0.3 * jax.random.normal(jax.random.key(seed + x.size), x.shape)  # noqa: E731
    return adapter, jax.tree.map(stir, delta)


@pytest.fixture(scope="module")
def pairs(params: Any) -> list[tuple[adapters.Adapter, Any]]:
    return [
        pair(params, 0),
        pair(params, 1, rank=4, alpha=3.0, where=r"\.(q|v)_proj\."),
        pair(params, 2, rank=1, scaling="alpha/sqrt(rank)", where=r"embed_tokens|lm_head"),
        pair(params, 3, rank=3, layers=[1]),
    ]


@jax.jit
def logits(params: Any, ids: jax.Array) -> jax.Array:
    return decoder.apply(params, CONFIG, ids)


def alone(params: Any, one: Any, ids: jax.Array) -> jax.Array:
    return logits(one[0].attach(params, one[1]), ids)


def test_each_example_is_adapted_by_its_own(params: Any, pairs: Any) -> None:
    bank = adapters.bank(pairs)
    which = jnp.array([3, 0, 2, 1])
    out = logits(adapters.attach_bank(params, bank, which), IDS)
    for row, i in enumerate(which):
        np.testing.assert_allclose(out[row], alone(params, pairs[int(i)], IDS[row : row + 1])[0], atol=2e-5)


def test_one_for_all_is_chosen_at_run_time(params: Any, pairs: Any) -> None:
    bank = adapters.bank(pairs, size=6, rank=5)
    run = jax.jit(lambda b, i: decoder.apply(adapters.attach_bank(params, b, i), CONFIG, IDS))
    for i, one in enumerate(pairs):
        np.testing.assert_allclose(run(bank, jnp.array(i)), alone(params, one, IDS), atol=2e-5)
    np.testing.assert_allclose(run(bank, jnp.array(5)), logits(params, IDS), atol=1e-6)  # an empty place
    assert bool(jnp.all(jnp.isnan(run(bank, jnp.array(6)))))
    assert run._cache_size() == 1


def test_swapping_ranks_and_alphas_never_compiles_again(params: Any, pairs: Any) -> None:
    bank = adapters.bank(pairs, rank=8)
    run = jax.jit(lambda b, i: decoder.apply(adapters.attach_bank(params, b, i), CONFIG, IDS))
    which = jnp.array([0, 1, 2, 3])
    run(bank, which)
    for i in range(5):
        new = pair(params, 10 + i, rank=1 + 2 * i % 8, alpha=1.0 + i)
        bank = adapters.put(bank, i % 4, *new)
        out = run(bank, which)
        np.testing.assert_allclose(out[i % 4], alone(params, new, IDS)[i % 4], atol=2e-5)
    assert run._cache_size() == 1


def test_a_bank_is_differentiable_and_vmapped(params: Any, pairs: Any) -> None:
    bank = adapters.bank(pairs)

    def loss(bank: Any, ids: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(decoder.apply(adapters.attach_bank(params, bank, jnp.array([0, 1, 1, 0])), CONFIG, ids)))

    slopes = jax.grad(loss)(bank, IDS)
    path = "model.layers.self_attn.q_proj.weight"
    assert float(jnp.max(jnp.abs(slopes.b[path][:, 0]))) > 0
    np.testing.assert_array_equal(slopes.b[path][:, 3], 0)  # nobody used it
    both = jax.vmap(loss, (None, 0))(bank, jnp.stack([IDS, IDS[::-1]]))
    np.testing.assert_allclose(both[0], loss(bank, IDS), rtol=1e-5)


def test_what_a_bank_cannot_hold_is_refused(params: Any, pairs: Any) -> None:
    with pytest.raises(ValueError, match="give at least one pair"):
        adapters.bank([])
    with pytest.raises(ValueError, match="rank: 2 is below the largest of the adapters, 4"):
        adapters.bank(pairs, rank=2)
    with pytest.raises(ValueError, match="size: 1 is below"):
        adapters.bank(pairs, size=1)
    bank = adapters.bank(pairs[:1])
    with pytest.raises(ValueError, match="index: 1 is outside the bank of 1"):
        adapters.put(bank, 1, *pairs[0])
    with pytest.raises(ValueError, match="the bank has no place for"):
        adapters.put(bank, 0, *pairs[1])
    with pytest.raises(ValueError, match="has rank 3, the bank has room for 2"):
        adapters.put(bank, 0, *pairs[3])
    dora = adapters.dora(rank=2, where="q_proj")
    with pytest.raises(TypeError, match="expected a LoRA, got dora"):
        adapters.bank([(dora, dora.init(jax.random.key(0), params))])
    with pytest.raises(TypeError, match="has a bias of its own"):
        adapters.bank([pair(params, 0, bias=True)])
    first = adapters.pissa(params, rank=2, where="q_proj")
    with pytest.raises(TypeError, match="subtracts what it started from"):
        adapters.bank([(first, first.init(jax.random.key(0), params))])
    with pytest.raises(TypeError, match="ids: expected an integer dtype"):
        adapters.attach_bank(params, bank, jnp.ones(4))
    with pytest.raises(ValueError, match=r"ids: expected dims \[batch\]"):
        adapters.attach_bank(params, bank, jnp.ones((2, 2), int))
    with pytest.raises(ValueError, match="its first dim must be the batch of 3 adapter ids"):
        decoder.apply(adapters.attach_bank(params, bank, jnp.zeros(3, int)), CONFIG, IDS)


# Combining


def updates(params: Any, one: Any) -> dict[str, np.ndarray]:
    """The change of every weight, in float64."""
    attached = named_leaves(one[0].attach(params, one[1]), lambda leaf: isinstance(leaf, weights.LoRA))
    found = {}
    for path, leaf in attached.items():
        if isinstance(leaf, weights.LoRA):
            scale = np.asarray(leaf.scale, np.float64)[..., None, None]
            found[path] = scale * np.asarray(leaf.b, np.float64) @ np.asarray(leaf.a, np.float64)
    return found


def weighted(params: Any, pairs: Any, ws: list[float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for one, w in zip(pairs, ws, strict=True):
        for path, change in updates(params, one).items():
            total[path] = total.get(path, 0) + w * change
    return total


def test_side_by_side_is_the_weighted_sum_exactly(params: Any, pairs: Any) -> None:
    ws = [0.7, -0.3, 1.5, 0.2]
    expected, got = weighted(params, pairs, ws), updates(params, adapters.combine(pairs, ws))
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(got[path], expected[path], atol=2e-6, err_msg=path)


def test_svd_is_the_best_of_its_rank(params: Any, pairs: Any) -> None:
    ws = [0.7, -0.3, 1.5, 0.2]
    adapter, delta = adapters.combine(pairs, ws, method="svd", rank=3)
    got, expected = updates(params, (adapter, delta)), weighted(params, pairs, ws)
    for path, change in expected.items():
        u, s, vt = np.linalg.svd(change)
        best = (u[..., :, :3] * s[..., None, :3]) @ vt[..., :3, :]
        np.testing.assert_allclose(got[path], best, atol=1e-4, err_msg=path)
    whole = updates(params, adapters.combine(pairs, ws, method="svd", rank=10))
    for path in expected:
        np.testing.assert_allclose(whole[path], expected[path], atol=1e-5, err_msg=path)
    cut = adapters.combine(pairs, ws, rank=3)[1]
    assert max(arrays["a"].shape[-2] for arrays in cut.values()) == 3


@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("compat", ["rlx", "peft"])
def test_pruning_keeps_all_at_density_one(method: str, compat: Any, params: Any) -> None:
    """With nothing pruned and one adapter, every method is that adapter."""
    one = pair(params, 0)
    got = updates(
        params, adapters.combine([one], [1.0], method=method, density=1.0, key=jax.random.key(0), compat=compat)
    )
    for path, change in updates(params, one).items():
        if method in ("ties", "dare_ties") and compat == "peft":
            continue  # signs of the factors are elected apart: with one adapter, those are its own, but for zeros
        np.testing.assert_allclose(got[path], change, atol=1e-5, err_msg=path)


def test_dare_keeps_the_mean(params: Any) -> None:
    one = pair(params, 0, where=r"\.q_proj\.")
    total = 0.0
    for seed in range(200):
        adapter = adapters.combine([one], [1.0], method="dare_linear", density=0.5, key=jax.random.key(seed), rank=8)
        total = total + updates(params, adapter)["model.layers.self_attn.q_proj.weight"]
    expected = updates(params, one)["model.layers.self_attn.q_proj.weight"]
    assert np.abs(total / 200 - expected).max() < 0.35 * np.abs(expected).max()
    assert np.corrcoef((total / 200).reshape(-1), expected.reshape(-1))[0, 1] > 0.98


def test_what_cannot_be_combined_is_refused(params: Any, pairs: Any) -> None:
    with pytest.raises(ValueError, match="weights: expected one for each of 4"):
        adapters.combine(pairs, [1.0])
    with pytest.raises(ValueError, match=r"weights\[0\]: nan is outside"):
        adapters.combine(pairs[:1], [float("nan")])
    with pytest.raises(ValueError, match="method: 'linear' is not one of"):
        adapters.combine(pairs, [1.0] * 4, method="linear")
    with pytest.raises(ValueError, match="density: 'ties' needs"):
        adapters.combine(pairs, [1.0] * 4, method="ties")
    with pytest.raises(ValueError, match="density: 0 is outside"):
        adapters.combine(pairs, [1.0] * 4, method="ties", density=0)
    with pytest.raises(ValueError, match="key: 'dare_ties' drops entries at random"):
        adapters.combine(pairs, [1.0] * 4, method="dare_ties", density=0.5)
    with pytest.raises(ValueError, match="needs equal ranks"):
        adapters.combine(pairs[:2], [1.0] * 2, method="linear", compat="peft")
    ia3 = adapters.ia3(where="q_proj")
    with pytest.raises(TypeError, match=r"adapters\[0\]: expected a LoRA, got ia3"):
        adapters.combine([(ia3, ia3.init(jax.random.key(0), params))], [1.0])
