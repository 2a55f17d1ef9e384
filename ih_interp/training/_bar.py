"""A progress bar over the updates of runs, whichever calls train them."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from tqdm import tqdm

from ih_interp.config import RunConfig
from ih_interp.runs import Run
from ih_interp.training.state import saved_step

OnProgress: TypeAlias = Callable[[int, float], None]
"""A function of the updates done since the last call, over all runs, and of their mean loss."""

_shared: list["tqdm[Any]"] = []  # the bar of a `one_bar` block, if there is one


def _bar(total: int, done: int, *, shown: bool) -> "tqdm[Any]":
    shown = shown and sys.stderr is not None  # it is None in a process without a console
    return tqdm(total=total, initial=done, unit="update", disable=not shown)


@contextmanager
def bar_over(runs: Sequence[Run], *, shown: bool, done: int | None = None) -> Generator[OnProgress]:
    """Show the progress of these runs, in the bar of `one_bar` inside its block.

    `done` of their updates were made before, by default as many as their saved states say. The
    bar's clock runs while runs are trained, not while their update is compiled.
    """
    total = sum(run.config.n_steps for run in runs)
    done = sum(saved_step(run.folder) for run in runs) if done is None else done
    bar = _shared[-1] if _shared else _bar(total, done, shown=shown and bool(runs))
    if runs:
        bar.set_description_str("+".join(sorted({run.engine for run in runs})))
    ticks = False

    def tell(updates: int, loss: float) -> None:
        nonlocal ticks
        if not ticks:
            bar.unpause()
        ticks = True
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        bar.update(updates)

    try:
        yield tell
    finally:
        if not _shared:
            bar.close()


@contextmanager
def one_bar(configs: Sequence[RunConfig], done: int) -> Generator[None]:
    """Show one bar over these runs in the block; `done` of their updates were made before."""
    total = sum(config.n_steps for config in configs)
    bar = _bar(total, done, shown=done < total)
    _shared.append(bar)
    try:
        yield
    finally:
        _shared.remove(bar)
        bar.close()
