"""A decoder with a key-value cache as two signatures of one file: what JAX computes, token by token."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench_export
from rlx import export, quantize
from rlx.models import decoder

MODEL = decoder.Config(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
)
CONFIG = bench_export.Config(inputs=40, answers=5, prompt=8, new=6, repeats=2)
SLOW = pytest.mark.slow


def float_params(model: decoder.Config) -> Any:
    """Gains of norms that differ: with equal ones activations lie on the table's grid, and ties are everywhere."""
    params = decoder.init(jax.random.key(0), model)
    params["model"]["embed_tokens"]["weight"] *= 30

    def gain(path: Any, leaf: jax.Array) -> jax.Array:
        if "norm" not in jax.tree_util.keystr(path):
            return leaf
        return leaf * jnp.exp(0.3 * jax.random.normal(jax.random.key(1), leaf.shape))

    return jax.tree_util.tree_map_with_path(gain, params)


def prompts(config: bench_export.Config, vocabulary: int) -> Any:
    tokens, mask = bench_export.padded(np.arange(1000) % vocabulary, config)
    return tokens % vocabulary, mask


@pytest.mark.parametrize("residual", ["reversible", pytest.param("plain", marks=SLOW)])
@pytest.mark.parametrize("bits", [8, *(pytest.param(bits, marks=SLOW) for bits in (32, 4, 2))])
def test_both_signatures_compute_what_jax_computes(bits: Any, residual: Any, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, residual=residual)
    params = float_params(model)
    if bits != 32:
        params = quantize.quantize_tree(params, {"_proj": bits, "embed": 8})
    found = bench_export.compare(params, model, prompts(CONFIG, 64), CONFIG, tmp_path)
    for name in ("prefill", "decode"):
        assert np.median(found.errors[name]) <= 1e-6
        # The others are those where one activation went to the next of its 255 codes.
        assert np.mean(found.errors[name] <= (1e-5 if bits == 32 else 1e-4)) >= (1 if bits == 32 else 0.9)
        assert found.greedy[name].mean() >= 0.995
    assert found.answers >= 0.8


@SLOW
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_greedy_tokens_of_a_thousand_inputs(bits: Any, tmp_path: Path) -> None:
    config = bench_export.Config(inputs=1000, answers=1, prompt=8, new=4, repeats=1)
    params = quantize.quantize_tree(float_params(MODEL), {"_proj": bits, "embed": 8})
    found = bench_export.compare(params, MODEL, prompts(config, 64), config, tmp_path)
    for name in ("prefill", "decode"):
        assert found.greedy[name].mean() >= 0.995
        assert np.mean(found.errors[name] <= 1e-4) >= 0.95


def test_weights_stand_in_the_file_once_and_the_manifest_names_the_cache(tmp_path: Path) -> None:
    params = quantize.quantize_tree(float_params(MODEL), {"_proj": 4, "embed": 8})
    written = export.to_tflite(bench_export.signatures(params, MODEL, prompt=8, slots=14), tmp_path / "m.tflite")
    assert sorted(written.quantized.values()) == [4] * 14 + [8]
    content = written.path.read_bytes()
    up = np.asarray(params["model"]["layers"]["mlp"]["up_proj"]["weight"].codes)
    for layer in range(2):
        assert content.count(up[layer].tobytes()) == 1
    assert content.count(np.asarray(params["model"]["embed_tokens"]["weight"].codes).tobytes()) == 1
    said = export.load_tflite(written.path).manifest
    assert said is not None
    decode = said["signatures"]["decode"]
    assert [one["path"] for one in decode["inputs"]] == [
        "token", "cache.keys", "cache.values", "cache.valid", "cache.length",
    ]  # fmt: skip
    assert [one["path"] for one in decode["outputs"]] == ["0", "1.keys", "1.values", "1.valid", "1.length"]
    assert decode["inputs"][1]["shape"] == [2, 1, 14, 2, 8]


def test_a_full_cache_is_nan_in_the_file_too(tmp_path: Path) -> None:
    written = export.to_tflite(
        bench_export.signatures(float_params(MODEL), MODEL, prompt=4, slots=5), tmp_path / "m.tflite"
    )
    model = export.load_tflite(written.path)
    logits, *cache = model("prefill", np.ones((1, 4), np.int32), np.ones((1, 4), bool))
    token = np.array([[3]], np.int32)
    logits, *cache = model("decode", token, *cache)
    assert np.isfinite(logits).all()
    assert np.isnan(model("decode", token, *cache)[0]).all()
