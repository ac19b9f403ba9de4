"""The adapters, called exactly as each trainer calls a reward function; `test_trainers_real.py` has the trainers."""

import asyncio
import dataclasses
import functools
import inspect
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlx.contracts import Chance, Contract, Expect, Signal, Stakeholder, Term, compile
from rlx.contracts._encode import encode_bytes, encode_ids
from rlx.contracts._trainers import as_openrlhf, as_trl, as_verifiers, as_verl
from rlx.contracts._tunix import as_tunix, register_tunix

E = ord("e")
vowels = Term("vowels", lambda b: jnp.isin(b["tokens"], jnp.asarray(list(b"aeiou"), jnp.int32)), level="token")
short = Term("short", lambda b: jnp.exp(-jnp.sum(b["mask"], axis=-1, dtype=jnp.float32) / 8.0))
has_e = Term("has_e", lambda b: jnp.any((b["tokens"] == E) & b["mask"], axis=-1))
level = Term("level", lambda b: b["level"])

TEXTS = ["aeiou", "tree", "rhythm", "a much longer text than the others", "é", ""]
PROMPTS = [f"prompt {i}" for i in range(len(TEXTS))]


def make(*terms, **changes):
    contract = Contract(
        "lipogram",
        terms=terms or (vowels, short),
        stakeholders=(Stakeholder("reader", {t.name: 1.0 for t in terms or (vowels, short)}, weight=0.5),),
        constraints=(Chance(has_e > 0.5) <= 0.25, Expect(has_e) <= 0.5),
    )
    return compile(dataclasses.replace(contract, **changes))


def by_hand(text, multiplier=0.0):
    """The total of `make()`, in Python."""
    data = text.encode()
    share = sum(chr(byte) in "aeiou" for byte in data) / max(len(data), 1)
    return 0.5 * (share + np.exp(-len(data) / 8)) - multiplier * (("e" in text) - 0.25)


class Trl:
    """`GRPOTrainer._calculate_rewards` of TRL 1.16, for one reward function: what it passes and what it accepts."""

    def __init__(self):
        self.metrics, self.extra = {}, {}

    def rewards(self, function, prompts, completions, **columns):
        keywords = columns | {
            "trainer_state": object(),
            "log_extra": self.extra.__setitem__,
            "log_metric": self.metrics.__setitem__,
        }
        ids = [list(c.encode()) if isinstance(c, str) else [] for c in completions]
        if inspect.iscoroutinefunction(function):
            output = asyncio.run(function(prompts=prompts, completions=completions, completion_ids=ids, **keywords))
        else:
            output = function(prompts=prompts, completions=completions, completion_ids=ids, **keywords)
        output = [reward if reward is not None else float("nan") for reward in output]
        assert len(output) == len(prompts)
        assert all(type(reward) is float for reward in output)  # torch.tensor(list) wants Python numbers
        return output


CONFIG = {"beta": 0.04, "epsilon": 0.2, "num_generations": 2, "reward": "x", "encode": "x", "params": "x"}


class Tunix:
    """`SequenceRewardManager` of Tunix 0.1.7: it injects fields of the config, sums, and calls `fn.__name__`."""

    def __init__(self, reward_fns, algo_config=None, **kwargs):
        self.reward_fns = reward_fns if isinstance(reward_fns, list) else [reward_fns]
        self.algo_config = algo_config

    def __call__(self, prompts, completions, **kwargs):
        rewards = np.zeros((len(prompts), len(self.reward_fns)))
        for i, function in enumerate(self.reward_fns):
            skip = ["self", "prompts", "completions", "kwargs"]
            injected = {
                name: CONFIG[name]
                for name in inspect.signature(function).parameters
                if name not in skip and name in CONFIG and name not in kwargs
            }
            out = function(prompts=prompts, completions=completions, **(kwargs | injected))
            if len(out) != len(prompts):
                raise RuntimeError(function.__name__)
            rewards[:, i] = np.array(out)
        logs = {f"rewards/{f.__name__}": (rewards[:, i], np.mean) for i, f in enumerate(self.reward_fns)}
        return {"rewards": np.nansum(rewards, axis=1), "log_metrics": logs | {"prompts": (prompts, None)}}


class Rubric:
    """`verifiers.Rubric` of 0.1.14: arguments by name, plural names make a group function, an error is a 0."""

    PLURAL = frozenset({"states", "prompts", "completions", "answers", "tasks", "infos"})

    def score(self, function, states):
        rows = [
            {"task": None, "parser": object(), **s["input"], "state": s}
            | {key: s[key] for key in ("prompt", "completion", "answer", "info")}
            for s in states
        ]
        if set(inspect.signature(function).parameters) & self.PLURAL:
            plural = {f"{key}s": [row[key] for row in rows] for key in ("prompt", "completion", "answer", "info")}
            return function(**plural, states=states, tasks=[None] * len(rows), parser=object())
        return [float(function(**row)) for row in rows]


def message(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_trl_gets_floats_and_logs_every_part(asynchronous):
    function, trl = as_trl(make(), asynchronous=asynchronous), Trl()
    assert inspect.iscoroutinefunction(function) is asynchronous
    assert function.__name__ == "lipogram"
    out = trl.rewards(function, PROMPTS, TEXTS, level=[0.5] * 6, source=["web"] * 6)
    np.testing.assert_allclose(out, [by_hand(text) for text in TEXTS], rtol=1e-6)
    assert set(trl.metrics) == {
        "lipogram/missing",
        "lipogram/term/vowels",
        "lipogram/term/short",
        "lipogram/term/has_e",
        "lipogram/utility/reader",
        *(f"lipogram/{kind}/has_e{m}" for kind in ("cost", "violated") for m in ("", ".2")),
    }
    assert all(type(value) is float for value in trl.metrics.values())
    assert trl.metrics["lipogram/violated/has_e"] == pytest.approx(3 / 6)
    assert trl.metrics["lipogram/missing"] == 0.0
    assert trl.extra["lipogram/total"] == out
    assert trl.extra["lipogram/violated/has_e"] == [True, True, False, True, False, False]


def test_trl_without_logs_and_with_a_name():
    function = as_trl(make(), name="mine")
    assert function.__name__ == "mine"
    assert function(prompts=["p"], completions=["aeiou"]) == pytest.approx([by_hand("aeiou")])
    assert function(prompts=[], completions=[]) == []


def test_a_conversation_is_what_the_assistant_wrote():
    talk = [
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "eeeee"},
        {"role": "assistant", "content": [{"type": "text", "text": "ao"}, {"type": "image"}]},
        types.SimpleNamespace(role="assistant", content="no"),
    ]
    out = as_trl(make())(prompts=[[{"role": "user", "content": "p"}]] * 2, completions=[message("aeiou"), talk])
    np.testing.assert_allclose(out, [by_hand("aeiou"), by_hand("ao\nno")], rtol=1e-6)


def test_a_completion_that_is_none_has_no_reward():
    trl = Trl()
    out = trl.rewards(as_trl(make()), PROMPTS[:3], ["aeiou", None, "tree"])
    np.testing.assert_allclose(out, [by_hand("aeiou"), np.nan, by_hand("tree")], rtol=1e-6)
    assert trl.metrics["lipogram/missing"] == pytest.approx(1 / 3)
    assert trl.metrics["lipogram/violated/has_e"] == 1.0  # of the two that were scored
    assert as_trl(make())(prompts=["p"], completions=[None]) == [None]
    with pytest.raises(TypeError, match=r"completions\[1\]: expected a text or a list of messages, got NoneType"):
        as_tunix(make())(prompts=["p", "p"], completions=["a", None])


def test_nan_is_an_error_or_counted_never_dropped():
    reward = make(level)
    arguments = {"prompts": ["p"] * 3, "completions": ["a", "b", "c"], "level": [1.0, float("nan"), float("inf")]}
    with pytest.raises(ValueError, match=r"completions\[1\]: the contract's total is nan \(term/level is nan\)"):
        as_trl(reward)(**arguments)
    with pytest.raises(ValueError, match=r"completions\[1\]"):
        as_tunix(reward)(**arguments)
    metrics = {}
    out = as_trl(reward, nan="none")(**arguments, log_metric=metrics.__setitem__)
    assert out == [0.5, None, None]
    assert metrics["lipogram/missing"] == pytest.approx(2 / 3)
    assert metrics["lipogram/term/level"] == 1.0
    bad = reward.params | {"multipliers": jnp.array([jnp.nan, 0.0])}
    with pytest.raises(ValueError, match="look at params"):
        as_trl(reward, params=bad)(prompts=["p"], completions=["a"], level=[1.0])
    with pytest.raises(ValueError, match="nan: 'drop' is not one of"):
        as_trl(reward, nan="drop")


def test_params_that_are_learned_take_effect():
    reward = make()
    state = {"params": reward.params}
    function = as_trl(reward, params=lambda: state["params"])
    call = functools.partial(function, prompts=["p"] * 2, completions=["tree", "rhythm"])
    np.testing.assert_allclose(call(), [by_hand("tree"), by_hand("rhythm")], rtol=1e-6)
    state["params"] = reward.params | {"multipliers": jnp.array([2.0, 0.0])}
    np.testing.assert_allclose(call(), [by_hand("tree", 2.0), by_hand("rhythm", 2.0)], rtol=1e-6)
    fixed = as_trl(reward, params=state["params"])
    assert fixed(prompts=["p"], completions=["tree"]) == pytest.approx([by_hand("tree", 2.0)])


def test_few_traces_over_many_lengths():
    traces = []
    counted = Term("counted", lambda b: traces.append(b["tokens"].shape) or jnp.mean(b["mask"], axis=-1))
    function = as_trl(make(counted))
    for n in range(201):
        function(prompts=["p"] * 2, completions=["x" * n, ""])
    assert traces == [(2, 16), (2, 32), (2, 64), (2, 128), (2, 256)]

    traces.clear()
    function = as_trl(make(counted), encode=functools.partial(encode_bytes, length=200), pad_batch=True)
    for n in range(1, 34):
        out = function(prompts=["p"] * n, completions=["x" * n] * n)
        np.testing.assert_allclose(out, [0.5 * n / 200] * n, rtol=1e-6)
    assert traces == [(2**k, 200) for k in range(7)]


def test_the_padding_of_time_changes_nothing():
    function = as_trl(make())
    alone = [function(prompts=["p"], completions=[text])[0] for text in TEXTS]
    np.testing.assert_allclose(function(prompts=PROMPTS, completions=TEXTS), alone, rtol=1e-6)


def test_padded_rows_are_dropped():
    plain, padded = as_trl(make()), as_trl(make(), pad_batch=True)
    np.testing.assert_array_equal(plain(prompts=PROMPTS, completions=TEXTS), padded(prompts=PROMPTS, completions=TEXTS))


def test_a_rule_that_compares_rows_meets_no_padding_and_no_lone_row():
    @dataclasses.dataclass(frozen=True)
    class Centred(type(make().contract.aggregate)):
        group: int = 2

        def apply(self, utilities, weights, params):
            total = super().apply(utilities, weights, params).reshape(-1, self.group)
            return (total - jnp.mean(total, axis=-1, keepdims=True)).reshape(-1)

    reward = make(aggregate=Centred())
    a, b = by_hand("aeiou"), by_hand("tree")
    arguments = {"prompts": ["p", "p"], "completions": ["aeiou", "tree"]}
    expected = [(a - b) / 2, (b - a) / 2]
    np.testing.assert_allclose(as_trl(reward)(**arguments), expected, rtol=1e-5)
    np.testing.assert_allclose(as_verifiers(reward, kind="group")(**arguments), expected, rtol=1e-5)
    scores = as_verl(reward, batched=True)(["d"] * 2, ["aeiou", "tree"], [None] * 2, [None] * 2)
    np.testing.assert_allclose([s["score"] for s in scores], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="pad_batch: texts are compared"):
        as_trl(reward, pad_batch=True)
    with pytest.raises(ValueError, match=r"completions\[1\]: None has no place in a group"):
        as_trl(reward)(prompts=["p", "p"], completions=["aeiou", None])
    with pytest.raises(ValueError, match=r"as_verl: .* pass batched=True"):
        as_verl(reward)
    for kind in ("rollout", "task"):
        with pytest.raises(ValueError, match=r'as_verifiers: .* pass kind="group"'):
            as_verifiers(reward, kind=kind)


def test_columns_reach_the_contract_in_its_dtype():
    traces = []
    term = Term("level", lambda b: traces.append(b["level"].dtype) or b["level"] * 2.0, range=(0.0, 8.0))
    function = as_trl(make(term, signals={"level": Signal("B", "float32"), "tokens": Signal("BT", "int32")}))
    for column in ([1, 2], [1.0, 2.0], [True, 2], np.array([1, 2], np.int64), np.array([1.0, 2.0])):
        assert function(prompts=["p"] * 2, completions=["a", "b"], level=column) == [1.0, 2.0]
    assert traces == [jnp.float32]
    whole = as_trl(make(term, signals={"level": Signal("B", "int32")}))
    with pytest.raises(ValueError, match="signal 'level': dtype int32 is declared and values of float32 do not fit"):
        whole(prompts=["p"], completions=["a"], level=[0.5])


def test_what_is_missing_or_wrong_is_named():
    reward = make(level, signals={"level": Signal("B", "float32")})
    function = as_trl(reward)
    rows = {"prompts": ["p"] * 2, "completions": ["a", "b"]}
    with pytest.raises(ValueError, match="signal 'level': contract 'lipogram' declares it and the batch holds only t"):
        function(**rows)
    with pytest.raises(KeyError, match="level") as caught:
        as_trl(make(level))(**rows)
    assert any("the batch holds tokens, mask; dataset columns that" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="signal 'level': the column 'level' does not hold numbers"):
        function(**rows, level=["low", "high"])
    with pytest.raises(ValueError, match="signal 'level': the column 'level' does not hold numbers"):
        function(**rows, level=[2**40, 1])
    with pytest.raises(ValueError, match="column 'level': 3 rows disagree with 2 completions"):
        function(**rows, level=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="signal 'level': dims B are declared, got shape"):
        function(**rows, level=np.ones((2, 3)))
    with pytest.raises(ValueError, match="column 'mask': this name is taken"):
        function(**rows, level=[1.0, 2.0], mask=[1, 1])
    with pytest.raises(ValueError, match="prompts: 1 rows disagree with 2 completions"):
        function(prompts=["p"], completions=["a", "b"], level=[1.0, 1.0])
    with pytest.raises(TypeError, match="completions: expected a list of texts or of conversations, got str"):
        function(prompts=["p"], completions="a", level=[1.0])
    with pytest.raises(TypeError, match=r"completions\[0\]: expected a text or a list of messages, got int"):
        function(prompts=["p"], completions=[3], level=[1.0])
    with pytest.raises(TypeError, match=r'completions\[0\]: expected messages with "role"'):
        function(prompts=["p"], completions=[["a"]], level=[1.0])
    with pytest.raises(TypeError, match=r"reward: expected what rlx.contracts.compile returns, got Contract"):
        as_trl(reward.contract)
    with pytest.raises(ValueError, match="encode: 'level' has to be an array of 2 rows, got shape"):
        as_trl(reward, encode=lambda prompts, completions, columns: {"level": np.ones(3)})(**rows)
    with pytest.raises(ValueError, match="encode: 'level' has to be an array of 2 rows, got list"):
        as_trl(reward, encode=lambda prompts, completions, columns: {"level": [1.0, 1.0]})(**rows)


def test_an_encoder_of_ones_own():
    def encode(prompts, completions, columns):
        exact = [float(text == answer) for text, answer in zip(completions, columns["answer"], strict=True)]
        return encode_bytes(prompts, completions, {}) | {"level": np.asarray(exact, np.float32)}

    out = as_trl(make(level), encode=encode)(prompts=["p"] * 2, completions=["a", "b"], answer=["a", "a"])
    assert out == [0.5, 0.0]


def test_ids_in_the_place_of_bytes():
    batch = encode_ids(["p"] * 2, ["a", "b"], {"completion_ids": [[5, 70000], []], "level": [1.5, 2.0]}, length=4)
    assert batch["tokens"].tolist() == [[5, 70000, 0, 0], [0, 0, 0, 0]]
    assert batch["mask"].tolist() == [[True, True, False, False], [False] * 4]
    assert batch["level"].dtype == np.float32
    out = Trl().rewards(as_trl(make(), encode=encode_ids), PROMPTS, TEXTS)
    np.testing.assert_allclose(out, [by_hand(text) for text in TEXTS], rtol=1e-6)  # the fake's ids are bytes
    with pytest.raises(ValueError, match="completion_ids: encode_ids reads this column, which only TRL passes"):
        as_tunix(make(), encode=encode_ids)(prompts=["p"], completions=["a"])
    with pytest.raises(ValueError, match="completion_ids: 1 rows disagree with 2"):
        encode_ids(["p"] * 2, ["a", "b"], {"completion_ids": [[1]]})
    with pytest.raises(ValueError, match=r"completion_ids\[0\]: expected a list of int32 ids"):
        encode_ids(["p"], ["a"], {"completion_ids": [[2**40]]})
    with pytest.raises(ValueError, match=r"length: 4 is shorter than completions\[1\], 5"):
        encode_bytes(["p"] * 2, ["a", "aaaaa"], {}, length=4)


def test_tunix_injects_nothing():
    function = as_tunix(make(level))
    assert set(inspect.signature(function).parameters) == {"prompts", "completions", "kwargs"}
    assert function.__name__ == "lipogram"
    columns = {"level": np.array([0.5, 1.0]), "mode": "train", "answer": np.array(["a", "b"])}
    info = Tunix(function)(np.array(["p", "p"]), ["aeiou", "tree"], **columns)
    assert info["rewards"].tolist() == [0.25, 0.5]
    assert type(function(prompts=["p"], completions=["a"], level=[1.0])[0]) is float


@pytest.fixture
def tunix(monkeypatch):
    """Modules with the interface of Tunix 0.1.7."""
    registered = {}
    managers = types.SimpleNamespace(SequenceRewardManager=Tunix)
    registry = types.SimpleNamespace(register_reward_manager=lambda name: lambda cls: registered.setdefault(name, cls))
    for module, fake in (("tunix.rl.reward_manager", managers), ("tunix.rl.function_registry", registry)):
        monkeypatch.setitem(sys.modules, module, fake)
    for package in ("tunix", "tunix.rl"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    return registered


def test_tunix_manager_counts_the_contract_once(tunix):
    reward = make()
    cls = register_tunix(reward, name="mine")
    assert tunix == {"mine": cls}

    def bonus(prompts, completions, beta, **kwargs):
        return [beta] * len(prompts)

    totals = np.array([by_hand("aeiou"), by_hand("tree")])
    for fns, extra in ((as_tunix(reward), 0.0), ([], 0.0), ([as_tunix(reward), bonus], 0.04), (as_tunix(make()), None)):
        info = cls(reward_fns=fns, algo_config=None)(["p"] * 2, ["aeiou", "tree"], mode="train")
        expected = 2 * totals if extra is None else totals + extra  # another contract's function does count
        np.testing.assert_allclose(info["rewards"], expected, rtol=1e-6)
        logs = info["log_metrics"]
        assert {"prompts", "rewards/lipogram", "lipogram/term/vowels", "lipogram/violated/has_e"} <= set(logs)
        values, aggregate = logs["lipogram/violated/has_e"]
        assert aggregate(values) == 1.0


def test_tunix_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tunix.rl.reward_manager", None)
    with pytest.raises(ImportError, match=r"register_tunix: .* pip install google-tunix"):
        register_tunix(make())


def test_verl_one_sample_and_a_batch():
    one, many = as_verl(make(level, short)), as_verl(make(level, short), batched=True)
    info = {"level": 0.5, "split": "train", "num_turns": None, "rollout_reward_scores": {}}
    out = one(data_source="d", solution_str="tree", ground_truth="x", extra_info=info)
    brief = float(np.exp(-4 / 8))
    assert out == pytest.approx(
        {"score": 0.5 * (0.5 + brief), "term/level": 0.5, "term/short": brief, "term/has_e": 1.0}
        | {"utility/reader": 0.5 + brief, "cost/has_e": 1.0, "cost/has_e.2": 1.0}
        | {"violated/has_e": 1.0, "violated/has_e.2": 1.0}
    )
    assert all(type(value) is float for value in out.values())
    infos = [info, {"level": 1.0}]
    batch = many(data_sources=["d"] * 2, solution_strs=["tree", ""], ground_truths=["x"] * 2, extra_infos=infos)
    assert batch[0] == pytest.approx(out)
    assert batch[1]["score"] == pytest.approx(1.0)
    assert as_verl(make())("d", "tree", 3)["score"] == pytest.approx(by_hand("tree"))


def test_openrlhf_takes_the_prompt_off(monkeypatch):
    class Tensor(np.ndarray):
        def clone(self):
            return self.copy()

    fake = types.SimpleNamespace(float32=np.float32, tensor=lambda x, dtype: np.array(x, dtype).view(Tensor))
    monkeypatch.setitem(sys.modules, "torch", fake)
    function = as_openrlhf(make(), end="</s>")
    out = function(["say: tree</s>", "rhythm"], ["say: ", ""], ["a", None])
    expected = [by_hand("tree"), by_hand("rhythm")]
    np.testing.assert_allclose(out["rewards"], expected, rtol=1e-6)
    np.testing.assert_array_equal(out["scores"], out["rewards"])
    np.testing.assert_array_equal(out["extra_logs"]["violated/has_e"], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"queries\[0\]: does not start with prompts\[0\]"):
        function(["tree"], ["say: "], [None])
    with pytest.raises(ValueError, match="prompts: 2 rows disagree with 1 queries"):
        function(["tree"], ["", ""], [None])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"as_openrlhf: torch cannot be imported .* pip install torch"):
        as_openrlhf(make())


def test_verifiers_rollouts_and_groups():
    reward = make(level, short)
    states = [
        {"prompt": "p", "completion": message(text), "answer": "a", "info": {"level": n}, "input": {"row": n}}
        for text, n in (("tree", 0.5), ("", 1.0))
    ]
    expected = [0.5 * (0.5 + np.exp(-4 / 8)), 1.0]
    for kind in ("rollout", "group"):
        function = as_verifiers(reward, kind=kind)
        assert function.__name__ == "lipogram"
        np.testing.assert_allclose(Rubric().score(function, states), expected, rtol=1e-6)
    graded = as_verifiers(make(Term("grade", lambda b: b["answer"])))
    assert graded(prompt="p", completion="tree", answer=0.5) == 0.25
    with pytest.raises(ValueError, match="kind: 'judge' is not one of"):
        as_verifiers(reward, kind="judge")


def test_verifiers_task():
    metrics = {}
    trace = types.SimpleNamespace(
        assistant_messages=[types.SimpleNamespace(role="assistant", content="tree")], record_metrics=metrics.update
    )

    class Data(dict):
        prompt = None

    class Task:
        data = Data(prompt=None, level=0.5)
        lipogram = as_verifiers(make(level, short), kind="task")

    assert inspect.iscoroutinefunction(Task.lipogram)
    assert set(inspect.signature(Task().lipogram).parameters) == {"trace"}
    assert asyncio.run(Task().lipogram(trace=trace)) == pytest.approx(0.5 * (0.5 + np.exp(-4 / 8)))
    assert metrics["lipogram/term/level"] == 0.5
    assert metrics["lipogram/violated/has_e"] == 1.0
