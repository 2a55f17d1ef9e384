"""A progress bar over the updates of runs, whichever calls train them."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

from ih_interp.config import RunConfig
from ih_interp.runs import Run
from ih_interp.training.state import saved_step

OnProgress: TypeAlias = Callable[[int, float], None]
"""A function of the updates done since the last call, over all runs, and of their mean loss."""

_SHARED: list["Bar"] = []


class Bar:
    """A bar whose clock runs while runs are trained, and not while their update is compiled."""

    def __init__(self, total: int, done: int, *, shown: bool) -> None:
        shown = shown and sys.stderr is not None  # as it is in a process without a console
        self._tqdm = tqdm(total=total, initial=done, unit="update", disable=not shown)
        self._ticks = False

    def tell(self, updates: int, loss: float) -> None:
        """Count updates."""
        if not self._ticks:
            self._tqdm.unpause()
            self._ticks = True
        self._tqdm.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._tqdm.update(updates)

    def name(self, runs: Sequence[Run]) -> None:
        """Say which engines train."""
        self._ticks = False  # another call may compile first
        self._tqdm.set_description_str("+".join(sorted({run.engine for run in runs})))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._tqdm.close()


@contextmanager
def bar_over(runs: Sequence[Run], *, shown: bool) -> Generator[OnProgress]:
    """Show what is done of these runs, in the bar that is shown already if there is one."""
    total = sum(run.config.n_steps for run in runs)
    done = sum(saved_step(run.folder) for run in runs)
    bar = _SHARED[-1] if _SHARED else Bar(total, done, shown=shown and bool(runs))
    if runs:
        bar.name(runs)
    try:
        yield bar.tell
    finally:
        if not _SHARED:
            bar.close()


@contextmanager
def one_bar(configs: Sequence[RunConfig], done: int) -> Generator[None]:
    """Share a bar over these runs in the block; `done` of their updates were made before."""
    total = sum(config.n_steps for config in configs)
    bar = Bar(total, done, shown=done < total)
    _SHARED.append(bar)
    try:
        yield
    finally:
        _SHARED.remove(bar)
        bar.close()
