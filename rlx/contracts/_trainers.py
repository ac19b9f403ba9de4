"""A compiled contract as the reward function that each trainer calls."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from rlx._checks import check_choice

from ._compile import Reward
from ._encode import Columns, Encode, texts_of
from ._texts import (
    POLICY,
    ParamsOf,
    Scores,
    check_alone,
    compares_rows,
    finite_scores,
    imported,
    label_of,
    named,
    scorer,
)


def as_trl(
    reward: Reward,
    *,
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    name: str | None = None,
    asynchronous: bool = False,
    nan: Literal["raise", "none"] = "raise",
    pad_batch: bool = False,
) -> Callable[..., Any]:
    """A reward function for `trl.GRPOTrainer(reward_funcs=...)` and the trainers that call theirs alike (RLOO).

    Texts and conversations are both read (of a conversation, what the assistant wrote). A completion that is None has
    the reward None, which TRL reads as "not scored by this function". The mean of every term, utility and cost, the
    rate of violations and of rows without a reward are logged as `<name>/term/<term>`, `<name>/utility/<stakeholder>`,
    `<name>/cost/<term>`, `<name>/violated/<term>` and `<name>/missing`; the completions table gets `<name>/total` and
    `<name>/violated/<term>`.

    Args:
      reward: what `compile` returned.
      encode: `encode(prompts, completions, columns) -> batch`, arrays with B rows; default `encode_bytes`.
      params: in the place of `reward.params`; a function of no argument is called for each batch, so multipliers that
        are learned during training take effect.
      name: `__name__` of the function, by which TRL logs it; default the contract's name.
      asynchronous: return an `async def`; the contract is then evaluated in a thread beside other rewards.
      nan: what a total that is NaN or infinite becomes: "raise" a ValueError, or "none": that row is None, TRL gives
        it advantage 0 where no other function scores it, and `<name>/missing` counts it.
      pad_batch: also pad B to a power of two. Only for contracts in which no term, aggregate or constraint compares
        rows.

    Returns:
      A function of keywords that returns B Python floats (or None).

    Raises:
      ValueError: when called: a column has the wrong length, a declared signal is missing, a total is not finite.
      TypeError: when called: a completion is neither a text nor a conversation.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.contracts import Contract, Stakeholder, Term, compile
      >>> short = Term("short", lambda batch: 1.0 / jnp.sum(batch["mask"], axis=-1, dtype=jnp.float32))
      >>> contract = Contract("brief", terms=(short,), stakeholders=(Stakeholder("reader", {"short": 1.0}),))
      >>> brief = as_trl(compile(contract))
      >>> brief(prompts=["Q", "Q"], completions=["yes!", [{"role": "assistant", "content": "no"}]])
      [0.25, 0.5]
    """
    check_choice("nan", nan, ("raise", "none"))
    score = scorer(reward, encode=encode, params=params, pad_batch=pad_batch)
    label = label_of(reward, name)

    def evaluate(prompts: Any, completions: Any, columns: Columns) -> tuple[Scores, np.ndarray]:
        texts = texts_of("completions", completions, roles=POLICY, none="")
        known = np.asarray([completion is not None for completion in completions], np.bool_)
        if not known.all() and compares_rows(reward.contract):
            raise ValueError(
                f"completions[{known.argmin()}]: None has no place in a group; the aggregate compares rows"
            )
        scores = score(texts_of("prompts", prompts), texts, columns)
        if nan == "raise":
            scores.check_finite(known)
        return scores, known & np.isfinite(scores.total)

    def report(result: tuple[Scores, np.ndarray], log_extra: Any, log_metric: Any) -> list[float | None]:
        scores, kept = result
        if log_metric is not None and kept.size:
            log_metric(f"{label}/missing", float(1.0 - np.mean(kept)))
            for key, value in scores.named.items() if kept.any() else ():
                log_metric(f"{label}/{key}", float(np.mean(value[kept], dtype=np.float64)))
        rewards = [float(total) if keep else None for total, keep in zip(scores.total, kept, strict=True)]
        if log_extra is not None:
            log_extra(f"{label}/total", rewards)
            for key, value in scores.named.items():
                if key.startswith("violated/"):
                    log_extra(f"{label}/{key}", [bool(x) for x in value])
        return rewards

    def reward_func(
        prompts: Any,
        completions: Any,
        completion_ids: Any = None,
        *,
        trainer_state: Any = None,
        log_extra: Any = None,
        log_metric: Any = None,
        environments: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        result = evaluate(prompts, completions, columns | {"completion_ids": completion_ids})
        return report(result, log_extra, log_metric)

    async def async_reward_func(
        prompts: Any,
        completions: Any,
        completion_ids: Any = None,
        *,
        trainer_state: Any = None,
        log_extra: Any = None,
        log_metric: Any = None,
        environments: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        columns["completion_ids"] = completion_ids
        return report(await asyncio.to_thread(evaluate, prompts, completions, columns), log_extra, log_metric)

    return named(async_reward_func if asynchronous else reward_func, label)


def as_verl(
    reward: Reward,
    *,
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    name: str | None = None,
    batched: bool = False,
) -> Callable[..., Any]:
    """A `compute_score` for verl's `custom_reward_function`: bind it to a name in the file that the config points at.

    Args:
      reward, encode, params, name: as in `as_trl`. Columns are `extra_info`'s entries, "ground_truth" and
        "data_source".
      batched: for verl's reward manager "batch", which calls with `data_sources`, `solution_strs`, `ground_truths`
        and `extra_infos`, and for contracts that compare the rows of a group.

    Returns:
      `compute_score(data_source, solution_str, ground_truth, extra_info=None)`, which gives a dict of "score" (verl
      trains on it) and floats such as "term/x" (verl logs them); a list of dicts if `batched`.

    Raises:
      ValueError: the contract compares rows and `batched` is False. When called: as in `as_tunix`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.contracts import Contract, Stakeholder, Term, compile
      >>> short = Term("short", lambda batch: 1.0 / jnp.sum(batch["mask"], axis=-1, dtype=jnp.float32))
      >>> contract = Contract("brief", terms=(short,), stakeholders=(Stakeholder("reader", {"short": 2.0}),))
      >>> compute_score = as_verl(compile(contract))
      >>> compute_score(data_source="web", solution_str="yes!", ground_truth="no", extra_info={"index": 7})
      {'score': 0.5, 'term/short': 0.25, 'utility/reader': 0.5}
    """
    score = scorer(reward, encode=encode, params=params)
    label = label_of(reward, name)

    def compute_scores(
        data_sources: Any, solution_strs: Any, ground_truths: Any, extra_infos: Any = None, **kwargs: Any
    ) -> list[dict[str, float]]:
        infos = [dict(info or {}) for info in (extra_infos if extra_infos is not None else [{}] * len(solution_strs))]
        columns = _common(infos) | {"ground_truth": list(ground_truths), "data_source": list(data_sources)}
        scores = finite_scores(score, [""] * len(solution_strs), solution_strs, columns)
        return [
            {"score": float(total)} | {key: float(value[i]) for key, value in scores.named.items()}
            for i, total in enumerate(scores.total)
        ]

    if batched:
        return named(compute_scores, label)
    check_alone(reward, "as_verl", "verl scores one sample at a time; pass batched=True")

    def compute_score(
        data_source: Any, solution_str: str, ground_truth: Any, extra_info: Any = None, **kwargs: Any
    ) -> dict[str, float]:
        return compute_scores([data_source], [solution_str], [ground_truth], [extra_info])[0]

    return named(compute_score, label)


def as_openrlhf(
    reward: Reward,
    *,
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    name: str | None = None,
    end: str = "",
) -> Callable[..., dict[str, Any]]:
    """A `reward_func` for OpenRLHF's `--remote_rm_url file.py`, where it has to be bound to the name `reward_func`.

    A query is the prompt and the completion as one text, decoded with special tokens; the prompt is taken off.

    Args:
      reward, encode, params, name: as in `as_trl`. The labels are the column "labels".
      end: a special token, such as `"<|im_end|>"`, that is taken off the end of a query as well.

    Returns:
      `reward_func(queries, prompts, labels)`, which gives a dict of "rewards" and "scores" `[B]` and of "extra_logs", a
      dict by names such as "term/x" `[B]`: float32 torch tensors.

    Raises:
      ImportError: torch is not installed.
      ValueError: the contract compares the rows of a group (OpenRLHF calls with one query). When called: a query does
        not start with its prompt; otherwise as in `as_tunix`. OpenRLHF logs an error in a reward function at level
        info and goes on without the reward: read its log.
    """
    score = scorer(reward, encode=encode, params=params)
    check_alone(reward, "as_openrlhf", "OpenRLHF scores one query at a time")
    torch = imported("torch", "as_openrlhf", "torch")

    def reward_func(queries: Any, prompts: Any, labels: Any = None, **kwargs: Any) -> dict[str, Any]:
        queries, prompts = texts_of("queries", queries), texts_of("prompts", prompts)
        if len(queries) != len(prompts):
            raise ValueError(f"prompts: {len(prompts)} rows disagree with {len(queries)} queries")
        for i, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
            if not query.startswith(prompt):
                raise ValueError(
                    f"queries[{i}]: does not start with prompts[{i}], so where the completion starts is not known; "
                    "was the prompt truncated, or does the tokenizer not decode what it encodes?"
                )
        completions = [query[len(prompt) :].removesuffix(end) for query, prompt in zip(queries, prompts, strict=True)]
        columns = kwargs if labels is None else kwargs | {"labels": list(labels)}
        scores = finite_scores(score, prompts, completions, columns)
        total = torch.tensor(scores.total, dtype=torch.float32)
        logs = {key: torch.tensor(value, dtype=torch.float32) for key, value in scores.named.items()}
        return {"rewards": total, "scores": total.clone(), "extra_logs": logs}

    return named(reward_func, label_of(reward, name))


def as_verifiers(
    reward: Reward,
    *,
    kind: Literal["rollout", "group", "task"] = "rollout",
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    name: str | None = None,
) -> Callable[..., Any]:
    """A reward function for verifiers: a `Rubric`'s (to 0.3), or the method of a `Task` (from 0.2).

    Args:
      reward, encode, params, name: as in `as_trl`. Columns are the entries of `info`, the row's own and "answer"; for
        "task" the fields of the task's data.
      kind: "rollout": `f(prompt, completion, answer, state, info, ...) -> float`, `Rubric(funcs=[f])`. "group":
        `f(prompts, completions, answers, states, infos, ...) -> list[float]`, which Rubric knows by its plural names;
        one batch for the group, and for contracts that compare its rows. "task": `async f(self, trace) -> float`, used
        as `class MyTask(vf.Task): brief = vf.reward(f)`, which also records each term as a metric of the trace.

    Returns:
      The function.

    Raises:
      ValueError: the contract compares rows and `kind` is not "group". When called: as in `as_tunix`; Rubric logs an
        error in a reward function and counts 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.contracts import Contract, Stakeholder, Term, compile
      >>> short = Term("short", lambda batch: 1.0 / jnp.sum(batch["mask"], axis=-1, dtype=jnp.float32))
      >>> contract = Contract("brief", terms=(short,), stakeholders=(Stakeholder("reader", {"short": 1.0}),))
      >>> as_verifiers(compile(contract))(prompt="Q", completion=[{"role": "assistant", "content": "no"}])
      0.5
    """
    check_choice("kind", kind, ("rollout", "group", "task"))
    score = scorer(reward, encode=encode, params=params)
    label = label_of(reward, name)

    def group_func(
        prompts: Any, completions: Any, answers: Any = None, states: Any = None, infos: Any = None, **kwargs: Any
    ) -> list[float]:
        columns = _common([_mapping(info) for info in infos]) if infos else {}
        columns |= {} if answers is None else {"answer": list(answers)}
        return finite_scores(score, prompts, completions, columns).total.tolist()

    def rollout_func(
        prompt: Any, completion: Any, answer: Any = "", state: Any = None, info: Any = None, **kwargs: Any
    ) -> float:
        columns = {key: [value] for key, value in (_mapping(info) | kwargs | {"answer": answer}).items()}
        return float(finite_scores(score, [prompt], [completion], columns).total[0])

    async def task_func(self: Any, trace: Any) -> float:
        columns = {key: [value] for key, value in dict(self.data).items()}
        prompt = self.data.prompt if self.data.prompt is not None else ""
        scores = await asyncio.to_thread(finite_scores, score, [prompt], [trace.assistant_messages], columns)
        trace.record_metrics({f"{label}/{key}": float(value[0]) for key, value in scores.named.items()})
        return float(scores.total[0])

    if kind == "group":
        return named(group_func, label)
    check_alone(reward, "as_verifiers", f'kind "{kind}" scores one rollout at a time; pass kind="group"')
    return named(rollout_func if kind == "rollout" else task_func, label)


def _common(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns that every row has."""
    return {key: [row[key] for row in rows] for key in (rows[0] if rows else ()) if all(key in row for row in rows)}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
