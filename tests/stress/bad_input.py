"""Bad arguments to every public function: each call works, or is refused in words.

    python tests/stress/bad_input.py --examples 60 --seed 7

An argument is drawn from a pool by its name, the others stay good. Run apart from pytest, whose
checks of shapes would refuse before the package does. Prints calls, refusals and what leaked.
"""

import argparse
import contextlib
import inspect
import io
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

import ih_interp as ih
from ih_interp import toy
from ih_interp.analysis.dynamics.emergence import Crossing

REFUSALS = (ValueError, TypeError, FileNotFoundError)
NOISE = re.compile(
    r"unsupported operand|has no attribute|not subscriptable|not iterable|object is not callable"
    r"|indices must be|cannot unpack|not supported between|object has no len|argument '|"
    r"must be real number|could not be broadcast|ufunc|unexpected keyword|missing \d required"
    r"|must be str|argument must be|can't convert|cannot convert|expected str, bytes"
)
"""What Python, torch and numpy say: no words of ours, and no remedy."""

EXEMPLARS = ih.Exemplars.gaussian(n_classes=12, n_exemplars=2, n_features=8)
TASK = ih.FewShotTask(EXEMPLARS, ih.TaskConfig(n_train_classes=6))
MODEL = ih.build_model(TASK, ih.ModelConfig(d_model=8, n_heads=2, d_head=4))
BATCH = TASK.sample("train", 6, generator=torch.Generator().manual_seed(0))
ROOT = tempfile.TemporaryDirectory()
(RUN,) = ih.train(
    ih.RunConfig(
        task=TASK.config,
        model=ih.ModelConfig(d_model=8, n_heads=2, d_head=4),
        sequences=16,
        batch_size=8,
        evaluation_size=4,
    ),
    ROOT.name,
    progress=False,
)
SEQUENCES, LOSS = np.arange(1.0, 21), np.linspace(1.6, 0.1, 20)
CURVES = pd.DataFrame(
    [
        {"clamp": "none", "seed": s, "sequences": n, "loss": v}
        for s in (0, 1, 2)
        for n, v in zip(SEQUENCES, LOSS, strict=True)
    ]
)
CROSSINGS = [Crossing(3.0, True), Crossing(5.0, True), Crossing(9.0, False)]
HEADS = ["L0H0", "L1H1"]

BAD: tuple[Any, ...] = (
    *(None, "", "bad", "L9H9", "L0H0", b"\0", True, 0, 1, -1, 2, 2.5, 10**9, 10**30),
    *(float("nan"), float("inf"), -0.5, 1.5, (), [], {}, [None], ["L9H9"], ["L0H0", "L0H0"]),
    *({"a": 1}, object(), print, int, [1, "a"], (5, 5), [-1], np.zeros(3), np.zeros((2, 2, 2))),
    *(np.full(20, np.nan), np.array(["a"]), np.zeros(0), torch.zeros(2, 3), torch.zeros(0, 5)),
    *(torch.full((2, 5), 99), torch.full((2, 5), -1), torch.zeros(2, 5, dtype=torch.int64)),
    *(torch.tensor([1, 2]), torch.full((2, 2), float("nan")), pd.DataFrame(), CURVES.iloc[:1]),
    *(BATCH.tokens, BATCH[:0], BATCH, BATCH.replace(tokens=BATCH.tokens + 99)),
    *(ih.Batch(BATCH.tokens[:, :3], BATCH.target), BATCH.replace(targets=BATCH.target - 9)),
    *(MODEL, torch.nn.Linear(2, 2), TASK, EXEMPLARS, ih.ModelConfig(), torch.Generator()),
    *(RUN, ih.clamps.match("L1H0"), {"x": RUN}, ih.induction_score, lambda model, batch: "high"),
    *(ih.Head(0, 7), [ih.clamps.AblateHeads(heads=["L7H0"])], [ih.clamps.layer_one()] * 2),
)

GOOD: dict[str, Any] = {
    "run": RUN,
    "runs": RUN,
    "checkpoints": RUN,
    "free": RUN,
    "clamped": {"x": RUN},
    "measure": ih.induction_strength,
    "corrupt": ih.patching.swap_labels,
    "model": MODEL,
    "batch": BATCH,
    "tokens": None,
    "task": TASK,
    "clean": BATCH,
    "corrupted": ih.patching.swap_labels(BATCH),
    "heads": HEADS,
    "senders": ["L0H0"],
    "receivers": ["L1H1"],
    "kind": "K",
    "preserve": "patterns",
    "n_positions": 5,
    "period": 2,
    "sequences": SEQUENCES,
    "curve": LOSS,
    "loss": LOSS,
    "strength": LOSS[::-1].copy(),
    "level": 0.5,
    "curves": CURVES,
    "crossings": CROSSINGS,
    "first": dict(enumerate(CROSSINGS)),
    "second": dict(enumerate(CROSSINGS)),
    "scores": {"a": torch.zeros(2, 2)},
    "score": lambda pattern, rows: pattern[..., 0].mean(dim=-1),
    "previous": torch.rand(2, 2),
    "circuit": torch.rand(2, 2, 5, 5),
    "values": np.random.default_rng(0).random((6, 2, 2)),
    "use": np.random.default_rng(0).random((6, 2, 2)),
    "single": np.random.default_rng(0).random((6, 3)),
    "joint": np.random.default_rng(0).random(6),
    "clamps": [ih.clamps.AblateHeads(heads=["L0H0"])],
    "layer": 0,
    "n_pairs": 2,
    "head": "L1H0",
    "start": 1,
    "stop": 5,
    "order": None,
    "base": None,
    "offset": 1,
    "clamp": "x",
    "features": EXEMPLARS.features,
    "target": BATCH.target,
    "targets": BATCH.target,
    "learning_rate": 0.1,
}
PER_FUNCTION: dict[str, dict[str, Any]] = {
    "FewShotTask": {"exemplars": EXEMPLARS, "config": TASK.config},
    "FewShotTask.sample": {"split": "train", "n": 3},
    "toy.plateau_loss": {"config": toy.ToyConfig(iterations=5)},
    "clamps.parse": {"values": []},
    "emergence_summary": {"times": ih.dynamics.emergence_table(CURVES)},
    "survival_table": {"times": ih.dynamics.emergence_table(CURVES)},
    "crossings_by_seed": {"times": ih.dynamics.emergence_table(CURVES)},
    "logistic_midpoint": {"curve": LOSS[::-1].copy()},
    "in_context_score": {"batch": BATCH.tokens % 5, "early": 0, "late": 3},
    "induction_trace": {"tokens": torch.arange(5, 9)},
    "qk_matching": {"tokens": torch.arange(5, 9)},
    "minimal_sufficient": {"values": np.random.default_rng(0).random(4)},
    "backup_heads": {"values": np.random.default_rng(0).random(8)},
    "first_above": {"curve": LOSS[::-1].copy()},
    "Head": {"layer": 0, "head": 0},
    "Batch": {"tokens": BATCH.tokens, "task": TASK},
    "FixedLabelsTask": {"exemplars": EXEMPLARS, "config": ih.tasks.FixedLabels(n_train_classes=6)},
    "Crossing": {"time": 1.0, "observed": True},
    **{name: {"batch": BATCH} for name in ("trace", "progress", "progress_beside_training")},
    **{name: {"batch": BATCH} for name in ("wiring_over_training", "redundancy_over_training")},
}
LONG = {"progress", "n_draws", "n_resamples", "n_permutations", "n_sequences", "chunk"}
"""Numbers of draws: a huge one is what was asked for."""

NOT_CALLED = {"train", "StopRun", "AdditivityReport", "Coalitions", "MatchedSets"}
NOT_CALLED |= {"clamps.from_level", "Exemplars.load"}
NOT_CALLED |= {"AbstractTask", "NextTokenTask", "PairsTask", "PairsConfig"}  # abstract
NOT_CALLED |= {"Wiring", "Run", "load_icl_dynamics", "Crossing", "GaussianSource", "FileSource"}
NOT_CALLED |= {"Checkpoints", "ModelSeries", "Pretrained"}
"""Of files, which other tests read; and records of results."""


def callables() -> dict[str, Callable[..., Any]]:
    """Every public function and class that is called here."""
    ours = {name: getattr(ih, name) for name in dir(ih)}
    for folder in (ih.heads, ih.ablation, ih.patching, ih.dynamics, ih.tasks):
        ours |= {name: getattr(folder, name) for name in dir(folder)}
    makers = ("copy", "layer_one", "b_alone", "keep_only", "during", "pulses")
    ours |= {f"clamps.{name}": getattr(ih.clamps, name) for name in (*makers, "ramp", "parse")}
    ours |= {"clamped": _clamped}
    ours |= {f"Exemplars.{n}": getattr(ih.Exemplars, n) for n in ("gaussian", "load")}
    ours |= {f"FewShotTask.{n}": getattr(TASK, n) for n in ("sample", "enumerate", "n_sequences")}
    ours |= {"Run.model": RUN.model}
    ours |= {f"clamps.{n}": _of_one_head(getattr(ih.clamps, n)) for n in ("match", "c_alone")}
    ours |= {f"toy.{n}": getattr(toy, n) for n in ("train_toy", "plateau_loss")}
    return {
        name: value for name, value in ours.items() if callable(value) and name not in NOT_CALLED
    }


def _of_one_head(maker: Callable[..., Any]) -> Callable[..., Any]:
    """Those that take any number of heads are called with one."""

    def made(head: Any, schedule: Any = ih.clamps.always()) -> Any:  # noqa: B008
        return maker(head, schedule=schedule)

    return made


def _clamped(model: Any, clamps: Any, batch: Any = None, step: Any = None, metrics: Any = None):
    with ih.clamped(model, clamps, batch, step=step, metrics=metrics):
        model(BATCH.tokens)


def good_arguments(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments with which the function works: those it must have."""
    given = PER_FUNCTION.get(name, {})
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in given:
            arguments[parameter.name] = given[parameter.name]
        elif parameter.name == "generator":
            arguments["generator"] = torch.Generator().manual_seed(0)
        elif parameter.default is inspect.Parameter.empty:
            arguments[parameter.name] = GOOD.get(parameter.name)
        if parameter.name in ("n_draws", "n_resamples", "n_permutations"):
            arguments[parameter.name] = 9
    return arguments


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """`works`, `refused`, or what leaked."""
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            function(**arguments)
    except REFUSALS as error:
        text = str(error)
        if NOISE.search(text) or len(text) < 15:
            return f"no words of ours: {type(error).__name__}: {text[:150]}"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        torch.set_rng_state(state)
    return "works"


def try_function(name: str, function: Callable[..., Any], examples: int, start: int) -> Counter:
    """So many calls with one argument drawn from the pool; outcomes, leaks with their arguments."""
    found: Counter[str] = Counter()
    parameters = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in LONG
    ]
    if not parameters:
        return found
    first = call(function, good_arguments(name, function))
    if first != "works":
        found[f"{name}: good arguments gave {first}"] += 1

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(start)
    @given(st.sampled_from(parameters), st.integers(0, len(BAD) - 1))
    def trial(parameter: str, number: int) -> None:
        outcome = call(function, good_arguments(name, function) | {parameter: BAD[number]})
        if outcome in ("works", "refused"):
            found[outcome] += 1
        else:
            shown = " ".join(repr(BAD[number]).split())[:50]
            found[f"{name}({parameter}={shown}): {outcome}"] += 1

    trial()
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=30, help="calls of each function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="functions whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    tried = {name: f for name, f in callables().items() if arguments.only in name}
    for name, function in tried.items():
        total += try_function(name, function, arguments.examples, arguments.seed)
    leaks = sorted(set(total) - {"works", "refused"})
    sys.stdout.write("".join(f"{leak}\n" for leak in leaks))
    n_calls = sum(total.values())
    sys.stdout.write(
        f"functions {len(tried)}, calls {n_calls}, works {total['works']}, "
        f"refused {total['refused']}, leaked {n_calls - total['works'] - total['refused']}\n"
    )
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
