"""A run in one process: stages, results, what is refused, what is written."""

import ast
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx.run
from rlx._tree import tree_sha256
from rlx.run import ConfigMismatch, DataError, NonFiniteAbort, Preempted, Run, RunLocked, read_metrics, status, verify


class Count:
    """The numbers from 0, as batches."""

    def __init__(self, end: int = 10**9, poison: tuple[int, ...] = (), as_bytes: bool = False) -> None:
        self.at, self.end, self.poison, self.as_bytes = 0, end, poison, as_bytes
        self.seen: list[int] = []

    def __next__(self) -> Any:
        if self.at >= self.end:
            raise StopIteration
        self.at += 1
        self.seen.append(self.at - 1)
        return np.float32(np.nan if self.at - 1 in self.poison else self.at - 1)

    def get_state(self) -> Any:
        return str(self.at).encode() if self.as_bytes else {"at": self.at}

    def set_state(self, state: Any) -> None:
        self.at = int(state) if isinstance(state, bytes) else state["at"]


def step_fn(state: Any, batch: Any, step: Any) -> Any:
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step))
    new = {"w": 0.9 * state["w"] + 0.01 * (batch if batch is not None else 1.0) + noise, "n": state["n"] + 1}
    return new, {"loss": jnp.sum(new["w"])}


def begin() -> Any:
    return {"w": jnp.zeros(4), "n": jnp.array(0)}


def open_run(directory: Path, config: Any = None, **options: Any) -> Run:
    return Run.open(directory, config or {"seed": 0, "optim": {"lr": 0.1}}, **{"tensorboard": False, **options})


def train(run: Run, name: str = "fit", **options: Any) -> Any:
    return run.train(
        name, step_fn, begin(), **{"steps": 12, "save_every": 4, "log_every": 1, "progress": False, **options}
    )


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    entries = rlx.run.verify_events(directory / "events.jsonl").entries
    return [entry["data"] for entry in entries if entry["kind"] == kind]


def test_the_lazy_names_are_the_static_ones() -> None:
    tree = ast.parse(Path(rlx.run.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    static = {alias.asname: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert static == rlx.run._HOME
    for name in dir(rlx.run):
        assert getattr(rlx.run, name) is not None
    with pytest.raises(AttributeError, match=r"'rlx\.run' has no attribute 'Runn'"):
        rlx.run.Runn  # noqa: B018


def test_what_a_run_leaves(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        state = train(run)
        assert run.environment["jax"] == jax.__version__
    assert int(state["n"]) == 12
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"seed": 0, "optim": {"lr": 0.1}}
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert {"python", "jax", "flax", "device", "cpu_count", "git"} <= environment.keys()
    assert [line["step"] for line in read_metrics(tmp_path / "run", "fit")] == list(range(1, 13))
    assert sorted(int(path.name) for path in (tmp_path / "run" / "ckpt" / "fit").iterdir()) == [4, 8, 12]
    assert verify(tmp_path / "run").ok
    assert status(tmp_path / "run").ok


def test_a_stage_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        first = train(run)
    with open_run(tmp_path / "run") as run:

        def never(state: Any, batch: Any, step: Any) -> Any:
            raise AssertionError("it was run again")

        again = run.train("fit", never, begin(), steps=12, progress=False)
        assert list(run.timings()) == ["fit"]
    assert tree_sha256(again) == tree_sha256(first)
    assert len(read_metrics(tmp_path / "run")) == 12
    assert events(tmp_path / "run", "environment") == []


def test_more_steps_go_on(tmp_path: Path) -> None:
    with open_run(tmp_path / "whole") as run:
        whole = train(run, steps=20)
    with open_run(tmp_path / "run") as run:
        train(run, steps=10)
    with open_run(tmp_path / "run") as run:
        assert tree_sha256(train(run, steps=20)) == tree_sha256(whole)


def test_the_caller_s_state_is_not_donated(tmp_path: Path) -> None:
    state = begin()
    with open_run(tmp_path / "run") as run:
        run.train("a", step_fn, state, steps=2, progress=False)
        run.train("b", step_fn, state, steps=2, progress=False)
    assert state["w"].tolist() == [0.0] * 4


def test_weak_types_do_not_change_what_a_resumed_run_computes(tmp_path: Path) -> None:
    def step(state: Any, batch: Any, index: Any) -> Any:
        return {"x": state["x"] * 0.5, "y": 1.0 * state["y"]}, {}

    state = {"x": jnp.asarray(1.0), "y": 2.0}
    assert state["x"].weak_type
    with open_run(tmp_path / "run") as run:
        out = run.train("a", step, state, steps=3, progress=False)
        assert not out["x"].weak_type
    with open_run(tmp_path / "run") as run:
        again = run.train("a", step, state, steps=3, progress=False)
        assert not again["x"].weak_type
    assert tree_sha256(again) == tree_sha256(out)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_data_iterator_goes_on_where_it_was(tmp_path: Path, as_bytes: bool) -> None:
    data = Count(as_bytes=as_bytes)
    with open_run(tmp_path / "run") as run:
        train(run, steps=6, data_iterator=data)
    data = Count(as_bytes=as_bytes)
    with open_run(tmp_path / "run") as run:
        train(run, steps=9, data_iterator=data)
    assert data.seen == [6, 7, 8]


def test_grain_s_iterator_goes_on_where_it_was(tmp_path: Path) -> None:
    grain = pytest.importorskip("grain")

    def data() -> Any:
        source = grain.MapDataset.source(np.arange(100, dtype=np.float32)).shuffle(seed=3).repeat()
        return iter(source.to_iter_dataset())

    with open_run(tmp_path / "whole") as run:
        whole = train(run, data_iterator=data())
    with open_run(tmp_path / "run") as run:
        train(run, steps=6, data_iterator=data())
    with open_run(tmp_path / "run") as run:
        assert tree_sha256(train(run, data_iterator=data())) == tree_sha256(whole)


def test_an_iterator_without_a_position_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "run") as run,
        pytest.raises(TypeError, match="data_iterator: list_iterator has no get_st"),
    ):
        train(run, data_iterator=iter([1, 2]))


def test_data_that_ends_early(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fit: the data ended after 5 of 12 steps"), open_run(tmp_path / "run") as run:
        train(run, data_iterator=Count(end=5))
    assert events(tmp_path / "run", "end")[-1]["code"] == 65


def test_another_config_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path / "run").close()
    with pytest.raises(ConfigMismatch, match=r"^optim.lr: the run has 0.1, now 0.2. Give the old value"):
        open_run(tmp_path / "run", {"seed": 0, "optim": {"lr": 0.2}})
    with pytest.raises(ConfigMismatch, match=r"extra: the run has '\(absent\)', now 1"):
        open_run(tmp_path / "run", {"seed": 0, "optim": {"lr": 0.1}, "extra": 1})
    open_run(tmp_path / "run", {"seed": 1, "optim": {"lr": 0.1}}, may_differ=("seed",)).close()
    open_run(tmp_path / "run").close()


def test_a_directory_in_use_is_refused_and_free_after(tmp_path: Path) -> None:
    with open_run(tmp_path / "run"):
        with pytest.raises(RunLocked, match=rf"in use by process {os.getpid()} on "):
            open_run(tmp_path / "run")
        assert "running" in str(status(tmp_path / "run"))
    open_run(tmp_path / "run").close()


def test_an_open_that_fails_leaves_the_directory_free(tmp_path: Path) -> None:
    open_run(tmp_path / "run").close()
    with pytest.raises(ConfigMismatch):
        open_run(tmp_path / "run", {"seed": 5})
    (tmp_path / "run" / "events.jsonl").write_text("{}\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"entry 1 .* move the file aside"):
            open_run(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").unlink()
    open_run(tmp_path / "run").close()


def test_a_loop_of_one_s_own(tmp_path: Path) -> None:
    def loop(run: Run, until: int) -> Any:
        with run.stage("own", steps=10, save_every=3, log_every=2, progress=False) as stage:
            x = stage.restore({"x": jnp.zeros(())})
            for step in stage:
                if step == until:
                    raise RuntimeError("a crash")
                x = {"x": x["x"] * 0.5 + step}
                stage.log(step + 1, x=x["x"])
                stage.save(step + 1, x, extra={"note": step})
            return x

    with open_run(tmp_path / "whole") as run:
        whole = loop(run, 99)
    with pytest.raises(RuntimeError, match="a crash"), open_run(tmp_path / "run") as run:
        loop(run, 8)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 4, 6, 8]
    assert events(tmp_path / "run", "end") == [{"code": 1, "reason": "RuntimeError: a crash"}]
    with open_run(tmp_path / "run") as run:
        assert float(loop(run, 99)["x"]) == float(whole["x"])
    for directory in ("run", "whole"):
        lines = read_metrics(tmp_path / directory)
        assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
        assert [line["x"] for line in lines] == [line["x"] for line in read_metrics(tmp_path / "whole")]
    assert [event["step"] for event in events(tmp_path / "run", "restore")] == [6]


def test_a_signal_in_process(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def step(state: Any, batch: Any, index: Any) -> Any:
        if index == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step_fn(state, batch, index)

    with open_run(tmp_path / "whole") as run:
        whole = train(run)
    with pytest.raises(Preempted, match="stopped by SIGINT at step 6 of 12 of fit"), open_run(tmp_path / "run") as run:
        run.train("fit", step, begin(), steps=12, save_every=4, log_every=1, jit=False, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert events(tmp_path / "run", "end")[-1]["code"] == 75
    assert not status(tmp_path / "run").ok
    with open_run(tmp_path / "run") as run:
        again = run.train("fit", step_fn, begin(), steps=12, save_every=4, log_every=1, jit=False, progress=False)
    np.testing.assert_allclose(again["w"], whole["w"], rtol=1e-6)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 13))


def test_rollback_skips_the_window(tmp_path: Path) -> None:
    data = Count(poison=(6, 7, 8))
    with open_run(tmp_path / "run") as run:
        state = train(run, data_iterator=data)
    assert data.seen == list(range(12))
    assert [(e["at"], e["to"], e["go_on_at"]) for e in events(tmp_path / "run", "rollback")] == [(9, 4, 9)]
    # Steps 0 to 3 and 9 to 11 were applied; 4 and 5 were lost with the way back, 6 to 8 were not finite.
    assert int(state["n"]) == 7
    assert [line["skipped"] for line in read_metrics(tmp_path / "run")] == [0] * 6 + [1, 2, 3, 3, 3, 3]
    expected = begin()
    for index in (0, 1, 2, 3, 9, 10, 11):
        expected, _ = jax.jit(step_fn)(expected, np.float32(index), index)
    np.testing.assert_allclose(state["w"], expected["w"], rtol=1e-5)


def test_rollback_without_skipping_sees_the_window_again(tmp_path: Path) -> None:
    data = Count(poison=(6, 7, 8))
    with pytest.raises(NonFiniteAbort, match="after 2 rollbacks"), open_run(tmp_path / "run") as run:
        train(run, data_iterator=data, skip_window=False)
    assert data.seen == [*range(9), *range(4, 9), *range(4, 9)]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 10))


def test_fewer_bad_updates_than_the_patience_are_only_skipped(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        state = train(run, data_iterator=Count(poison=(2, 3, 7, 8, 11)))
    assert int(state["n"]) == 7
    assert events(tmp_path / "run", "rollback") == []


def test_a_resumed_run_remembers_its_skips_and_rollbacks(tmp_path: Path) -> None:
    def run_to(directory: Path, stops: tuple[int, ...]) -> tuple[Any, list[dict[str, Any]]]:
        for end in (*stops, 10**9):
            with open_run(directory) as run:
                try:
                    data = Count(end=end, poison=(6, 7, 8, 10, 11))
                    state = train(run, steps=16, data_iterator=data, rollbacks=1)
                except DataError:
                    continue
        lines = read_metrics(directory)
        return state, [{name: value for name, value in line.items() if name != "time"} for line in lines]

    whole, lines = run_to(tmp_path / "whole", ())
    for stops in ((9,), (3, 8, 14)):
        state, again = run_to(tmp_path / f"run{stops}", stops)
        assert tree_sha256(state) == tree_sha256(whole)
        assert again == lines
    assert lines[-1]["skipped"] == 5


def test_a_damaged_checkpoint_is_walked_back_from_and_said(tmp_path: Path) -> None:
    with open_run(tmp_path / "whole") as run:
        whole = train(run, steps=16)
    with open_run(tmp_path / "run") as run:
        train(run, steps=12)
    (tmp_path / "run" / "ckpt" / "fit" / "12" / "manifest" / "metadata").write_text("{}")
    found = verify(tmp_path / "run")
    assert not found.ok
    assert "BAD  ckpt/fit/12: manifest: its content is not what its sha256 says" in str(found)
    with open_run(tmp_path / "run") as run:
        assert tree_sha256(train(run, steps=16)) == tree_sha256(whole)
    assert [event["step"] for event in events(tmp_path / "run", "checkpoint-damaged")] == [12]
    assert [event["step"] for event in events(tmp_path / "run", "restore")] == [8]
    assert verify(tmp_path / "run").ok
    assert len(read_metrics(tmp_path / "run")) == 16


def test_results_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> Any:
        calls.append(1)
        return {"a": np.float32(0.5), "b": (1, None), "n": len(calls)}

    with open_run(tmp_path / "run") as run:
        assert run.result("r", compute) == run.result("r", compute) == {"a": 0.5, "b": [1, None], "n": 1}
    with open_run(tmp_path / "run") as run:
        assert run.result("r", compute)["n"] == 1
    path = tmp_path / "run" / "results" / "r.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert "BAD  results/r.json: not what was written" in str(verify(tmp_path / "run"))
    with open_run(tmp_path / "run") as run:
        assert run.result("r", compute) == {"a": 0.5, "b": [1, None], "n": 2}
    assert rlx.run.read_result(tmp_path / "run", "r")["n"] == 2


def test_results_with_files(tmp_path: Path) -> None:
    calls = []

    def compute() -> int:
        calls.append(1)
        (tmp_path / "run" / "model.bin").write_bytes(b"model")
        return len(calls)

    for expected in (1, 1):
        with open_run(tmp_path / "run") as run:
            assert run.result("ship", compute, files=["model.bin"]) == expected
    (tmp_path / "run" / "model.bin").unlink()
    assert "BAD  model.bin: missing" in str(verify(tmp_path / "run"))
    with open_run(tmp_path / "run") as run:
        assert run.result("ship", compute, files=["model.bin"]) == 2


def test_a_result_that_json_lacks(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        with pytest.raises(DataError, match=r"result r\.a: nan is not a finite number"):
            run.result("r", lambda: {"a": float("nan")})
        with pytest.raises(ValueError, match="name: 'a/b' may have letters"):
            run.result("a/b", lambda: 1)


def test_metrics_are_checked(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run, run.stage("s", steps=2, log_every=1, progress=False) as stage:
        with pytest.raises(TypeError, match=r"v: expected a scalar metric, got shape \(2,\)"):
            stage.log(1, v=jnp.ones(2))
        with pytest.raises(ValueError, match="time: the name is taken"):
            stage.log(1, time=1.0)
        stage.log(1, {"a": jnp.array(1.5, jnp.bfloat16)}, b=True, c=float("inf"), d=np.int64(3))
        assert [{k: v for k, v in row.items() if k != "time"} for row in run.metrics.rows("s")] == [
            {"stage": "s", "step": 1, "a": 1.5, "b": True, "c": None, "d": 3}
        ]


@pytest.mark.parametrize("option", ["steps", "save_every", "log_every", "patience"])
def test_options_are_checked(tmp_path: Path, option: str) -> None:
    with open_run(tmp_path / "run") as run, pytest.raises(ValueError, match=f"{option}: 0 is not at least 1"):
        train(run, **{option: 0})


def test_tensorboard_has_a_copy(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", tensorboard=True) as run:
        train(run)
    (file,) = (tmp_path / "run" / "tb" / "fit").iterdir()
    assert b"loss" in file.read_bytes()


def test_verify_sees_a_checkpoint_that_was_replaced_and_a_cut_chain(tmp_path: Path) -> None:
    for name, config in (("one", {"seed": 1}), ("two", {"seed": 2})):
        with open_run(tmp_path / name, config) as run:
            run.train("fit", step_fn, {**begin(), "w": jnp.full(4, config["seed"] / 1)}, steps=4, progress=False)
    one, two = tmp_path / "one", tmp_path / "two"
    head = rlx.run.verify_events(one / "events.jsonl").head
    lines = (one / "events.jsonl").read_bytes().splitlines(keepends=True)
    (one / "events.jsonl").write_bytes(b"".join(lines[:3]))
    assert re.search(r"BAD  ckpt/fit/4: .*events.jsonl\s+was cut", str(verify(one)))
    (one / "events.jsonl").write_bytes(b"".join(lines))
    assert verify(one, head=head).ok
    assert not verify(one, head="f" * 64).ok
    (one / "ckpt" / "fit" / "4").rename(one / "old")
    (two / "ckpt" / "fit" / "4").rename(one / "ckpt" / "fit" / "4")
    assert "BAD  ckpt/fit/4" in str(verify(one))


@pytest.mark.parametrize("command", ["status", "verify"])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    from rlx.run.__main__ import main

    with open_run(tmp_path / "run") as run:
        train(run)
        run.result("r", lambda: 1)
    assert main([command, str(tmp_path / "run")]) == 0
    assert main([command, str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "not a run, it has no events.jsonl:" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    with pytest.raises(SystemExit, match="2"):
        main(["stats"])


def test_plain_progress_is_calm_and_narrow() -> None:
    out = io.StringIO()
    now = 0.0
    with rlx.run.Progress(1000, "pretrain", file=out, clock=lambda: now) as progress:
        for done in range(1, 1001):
            now += 0.1
            progress.update(done, **{f"a_long_name_{index}": 1 / 3 for index in range(9)})
    lines = out.getvalue().splitlines()
    assert len(lines) == 11
    assert max(map(len, lines)) == 80
    assert lines[5].startswith("pretrain   502/1000   50%  50 s left  a_long_name_0 0.3333")
    assert lines[-1].startswith("pretrain  1000/1000  100%  1 min 40 s")


def test_the_first_line_already_knows_the_pace() -> None:
    out = io.StringIO()
    with rlx.run.Progress(40, "fit", began=-10.0, file=out, clock=lambda: 0.0) as progress:
        progress.update(10)
    assert out.getvalue() == "fit  10/40   25%  30 s left\n"


def test_progress_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with rlx.run.Progress(10, "fit", file=out) as progress:
        progress.update(4, loss=0.25)
    assert "fit" in out.getvalue()
    assert "4/10" in out.getvalue()
    assert "loss 0.25" in out.getvalue()
