"""Mutated files: every load refuses them in words, or gives what the whole file gives.

    python tests/stress/mutations.py --files 5000 --seed 7

prints how many were tried, refused, harmless and wrong; any wrong one is a bug, and is named with
the seed that makes it again. Run as a command it also bounds memory: a header must not be believed.
"""

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

import ih_interp as ih
from ih_interp.config import Grid
from ih_interp.interop.icl_dynamics import read_icl_dynamics_log
from ih_interp.storage import run_files
from ih_interp.tasks.exemplars import GaussianSource

REFUSALS = (ValueError, TypeError, OSError)
SECONDS = 5.0  # a load takes milliseconds
ROOM = 2**30  # bytes that all loads together may take beyond what importing took
NUMBERS = (0, 1, -1, 2**31, 10**30, 0.5, 1e308, float("nan"), float("inf"), "1", None, True, [], {})


@dataclass(frozen=True)
class Subject:
    """A file that is mutated, the load that reads it, and what a load may give."""

    path: Path
    load: Callable[[], Any]
    accepts: Callable[[Any], bool]
    """Whether a value that was loaded is right: equal to the whole file's or, of a format that
    has no digest, a value that passes every check."""
    content: bytes = field(default=b"", repr=False)

    def whole(self) -> "Subject":
        """The subject with its content; refused unless the whole file loads."""
        assert self.accepts(self.load()), self.path
        return Subject(self.path, self.load, self.accepts, self.path.read_bytes())


# Mutations of bytes


def flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 4, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(content)), rng.choice((1, 4, 8, 64))
    content[start : start + length] = rng.choice((rng.randbytes(length), b"\xff" * length))


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def insert(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    content[start:start] = rng.randbytes(rng.choice((1, 8, 512)))


def append(content: bytearray, rng: random.Random) -> None:
    content += rng.randbytes(rng.choice((1, 8, 512)))


def drop(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 8, 512))]


def swap(content: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 8, 64))
    a, b = (rng.randrange(max(1, len(content) - size)) for _ in range(2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def zero(content: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(content)), rng.choice((1, 8, 64, 512))
    content[start : start + length] = bytes(len(content[start : start + length]))


BYTES = (flip, flip, overwrite, truncate, insert, append, drop, swap, zero)


def early(content: bytearray, rng: random.Random) -> None:
    """Mutate the first bytes, where formats have their headers."""
    head = content[:512]
    rng.choice(BYTES)(head, rng)
    content[:512] = head


# Mutations of JSON: one line of `content` is a value


def in_json(content: bytearray, rng: random.Random) -> None:
    lines = [content.decode()]
    try:
        values = [json.loads(lines[0])]
    except ValueError:  # several lines, a value each
        lines = lines[0].splitlines()
        values = [json.loads(line) for line in lines]
    number = rng.randrange(len(values))
    text = json.dumps(_changed(values[number], rng))
    if rng.random() < 0.1:  # a key that comes twice
        text = '{"step": 0, "format": 1, "run": {}, "depth": 1, ' + text[1:]
    lines[number] = text
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    content[:] = ("\n".join(lines) + "\n").encode()


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with one place of it replaced, dropped, renamed or doubled."""
    places = list(_places(value))
    if not places:  # a number, or what has been emptied
        return rng.choice(NUMBERS)
    container, key = rng.choice(places)
    how = rng.choice(("number", "number", "near", "drop", "rename", "exchange"))
    if how == "near" and isinstance(container[key], int | float):
        container[key] = container[key] + rng.choice((-1, 1, 1e-9, 1e6))
    elif how == "drop":
        del container[key]
    elif how == "rename" and isinstance(container, dict):
        container[rng.choice((key.upper(), key + " ", "", "__class__"))] = container.pop(key)
    elif how == "exchange":
        other, place = rng.choice(places)
        container[key], other[place] = other[place], container[key]
    else:
        container[key] = rng.choice(NUMBERS)
    return json.loads(json.dumps(value)) if how != "exchange" else _untied(value)


def _untied(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except ValueError:  # it was put into itself
        return {}


def _places(value: Any) -> Any:
    if not isinstance(value, dict | list):
        return
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        yield from _places(value[key])


# Subjects


def feature_files(folder: Path) -> list[Subject]:
    """Features of a user's own: without digest, so a valid `Exemplars` is all that can be asked."""
    array = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
    with h5py.File(folder / "plain.h5", "w") as file:
        file["features"] = array
    with h5py.File(folder / "packed.h5", "w", libver="latest") as file:
        options = {"compression": "gzip", "chunks": (2, 2, 6), "fletcher32": True}
        file.create_dataset("a/features", data=array.astype(np.float64), **options)
    np.savez(folder / "plain.npz", features=array)
    np.savez_compressed(folder / "packed.npz", features=array)
    np.save(folder / "plain.npy", array)
    names = {"plain.h5": "features", "packed.h5": "a/features"}
    names |= dict.fromkeys(("plain.npz", "packed.npz", "plain.npy"))
    return [
        Subject(path, lambda path=path, name=name: ih.Exemplars.load(path, name), _valid_exemplars)
        for path, name in [(folder / n, d) for n, d in names.items()]
    ]


def _valid_exemplars(value: Any) -> bool:
    features = value.features
    return (
        isinstance(value, ih.Exemplars)
        and features.ndim == 3
        and features.numel() > 0
        and features.dtype == torch.float32
        and bool(torch.isfinite(features).all())
    )


def files_of_a_run(folder: Path) -> list[Subject]:
    """A trained run: whatever loads is what was written."""
    config = ih.RunConfig(
        name="run",
        task=ih.TaskConfig(
            exemplars=GaussianSource(n_classes=8, n_exemplars=1, n_features=4),
            n_train_classes=4,
            n_labels=3,
        ),
        model=ih.ModelConfig(n_layers=1, d_model=4, n_heads=1, d_head=4),
        clamps=[ih.clamps.AblateHeads(heads=["L0H0"])],
        sequences=8,
        batch_size=4,
        evaluations=Grid(),
        evaluation_size=4,
        checkpoints=Grid(),
    )
    (run,) = ih.train(config, folder, engine="eager", workers=1, progress=False)
    state = run.folder / run_files.STATE
    weights, facts = run_files.load_tensors(run_files.checkpoint_path(run.folder, 2))
    run_files.save_tensors(state, {f"0:{name}": w for name, w in weights.items()}, facts)

    def everything() -> tuple[Any, ...]:
        there = ih.Run(run.folder)
        model = there.model(2)
        return (
            there.config,
            there.engine,
            there.versions,
            there.steps,
            there.metrics.to_dict("records"),
            there.task.exemplars.sha256,
            [(name, p.tolist()) for name, p in model.named_parameters()],
        )

    def loaded_state() -> tuple[Any, ...]:
        tensors, facts = run_files.load_tensors(state)
        return facts, [(name, t.tolist()) for name, t in tensors.items()]

    whole, whole_state = everything(), loaded_state()
    paths = [run.folder / run_files.CONFIG, run.folder / run_files.METRICS]
    paths.append(run_files.checkpoint_path(run.folder, 2))
    return [
        *(Subject(path, everything, lambda value: value == whole) for path in paths),
        Subject(state, loaded_state, lambda value: value == whole_state),
    ]


def published_files(folder: Path) -> list[Subject]:
    """A checkpoint of icl-dynamics: without digest, so a finite model of the task is asked."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own modules
    from published_files import OPTIMISER, OPTIONS, SHAPE, as_bytes, leaves, random_model

    exemplars = ih.Exemplars.gaussian(n_classes=8, n_exemplars=1, n_features=4)
    task = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=4))
    checkpoint, config = folder / "checkpoint.eqx", folder / "config.json"
    checkpoint.write_bytes(as_bytes(*leaves(random_model(task, SHAPE)), *OPTIMISER))
    config.write_text(json.dumps(OPTIONS))

    def fits(model: Any) -> bool:
        parameters = list(model.parameters())
        return model.cfg.d_vocab == task.d_vocab and all(
            bool(torch.isfinite(p).all()) for p in parameters
        )

    log = folder / "log.h5"
    with h5py.File(log, "w") as file:
        file["eval_iter"] = np.arange(3)
        file["fsl_train/loss"] = np.ones((3, 4))

    def is_table(value: Any) -> bool:
        return isinstance(value, pd.DataFrame) and {"sequences", "split"} <= set(value)

    return [
        *(
            Subject(path, lambda: ih.load_icl_dynamics(checkpoint, config, task), fits)
            for path in (checkpoint, config)
        ),
        Subject(log, lambda: read_icl_dynamics_log(log), is_table),
    ]


# The trial


def mutated(subject: Subject, rng: random.Random) -> bytes:
    """The file with one mutation, or several."""
    content = bytearray(subject.content)
    is_json = subject.path.suffix in (".json", ".jsonl")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        choices = [*BYTES, early, early]
        if is_json and rng.random() < 0.7:
            choices = [in_json]
        try:
            rng.choice(choices)(content, rng)
        except (ValueError, IndexError, OverflowError, RecursionError):
            break  # nothing is left to mutate, or it is JSON no longer
    return bytes(content)


def verdict(subject: Subject) -> tuple[str, str]:
    """`refused`, `harmless` or `wrong`, and why."""
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "HookedTransformer is deprecated")
            value = subject.load()
        found = ("harmless", "") if subject.accepts(value) else ("wrong", "another value came")
    except REFUSALS as error:
        named = subject.path.name in str(error)
        found = ("refused", "") if named else ("wrong", f"the file is not named: {error!r}")
    except BaseException as error:
        found = ("wrong", f"{type(error).__name__}: {error}")
    took = time.monotonic() - started
    return found if took < SECONDS else ("wrong", f"it took {took:.1f} s")


def trials(n_files: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Try so many files, the subjects in turn; how it went, and what was wrong."""
    subjects = [
        subject.whole()
        for made in (feature_files, files_of_a_run, published_files)
        for subject in made(folder)
    ]
    tally, wrong = Counter[str](), []
    for number in range(n_files):
        subject = subjects[number % len(subjects)]
        content = mutated(subject, random.Random(f"{seed}:{number}"))
        subject.path.write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)  # of a load that never ends
        kind, why = verdict(subject)
        signal.setitimer(signal.ITIMER_REAL, 0)
        subject.path.write_bytes(subject.content)
        tally["tried"] += 1
        tally[kind] += 1
        if kind == "wrong":
            wrong.append(f"seed {seed} file {number} {subject.path.name}: {why}")
    return tally, wrong


def _too_long(*_: object) -> None:
    raise TimeoutError("a load did not end")


def _bound_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    folder = Path(tempfile.mkdtemp())
    try:
        feature_files(folder)  # imports what loading imports
        _bound_memory()
        tally, wrong = trials(arguments.files, arguments.seed, folder)
    finally:
        shutil.rmtree(folder)
    counts = [f"{kind} {tally[kind]}" for kind in ("tried", "refused", "harmless", "wrong")]
    sys.stdout.write("\n".join([*wrong, ", ".join(counts)]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
