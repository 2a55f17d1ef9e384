"""Fixtures that every test may use: a task so small that the whole suite stays quick."""

import signal
from pathlib import Path

import pytest
import torch
from small_runs import FOUR_UPDATES

from ih_interp.batch import Batch
from ih_interp.clamps import InductionAttention
from ih_interp.hooked_model import HookedModel
from ih_interp.model import build_model
from ih_interp.runs import Run
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig
from ih_interp.training import evaluating
from ih_interp.training.train import train

# A shell that starts tests in the background has them ignore interrupts, as training then does.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # faster for models this small; bytes depend on the number


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the checker of types and shapes, or needs it off, as users have it."""
    skipped = "untyped" if config.getoption("jaxtyping_packages") else "typed"
    for item in items:
        if item.get_closest_marker(skipped):
            item.add_marker(pytest.mark.skip(reason=f"{skipped}: see markers in pyproject.toml"))


@pytest.fixture(scope="session")
def exemplars() -> Exemplars:
    return Exemplars.gaussian(n_classes=30, n_exemplars=3, n_features=16)


@pytest.fixture(scope="session")
def task(exemplars: Exemplars) -> FewShotTask:
    """12 classes to train on, 18 unseen; 5 labels, 2 pairs."""
    return FewShotTask(exemplars, TaskConfig(n_train_classes=12))


@pytest.fixture
def model(task: FewShotTask) -> HookedModel:
    """A fresh one for every test, which may then change it."""
    return build_model(task, seed=5)


@pytest.fixture
def batch(task: FewShotTask) -> Batch:
    return task.sample("train", 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four updates of the paper's model on eight small classes, a checkpoint every second one."""
    return train(FOUR_UPDATES, tmp_path_factory.mktemp("runs"), progress=False)[0]


@pytest.fixture(scope="session")
def clamped_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with L1H3's attention clamped: 0.7 on the correct label, 0.3 on the other."""
    clamp = InductionAttention(heads=("L1H3",), strength=0.7)
    config = FOUR_UPDATES.replace(name="clamped", clamps=[clamp])
    return train(config, tmp_path_factory.mktemp("runs"), progress=False)[0]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Measured outputs of the published code; tests that need them skip without."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("../shared is not here")
    return path


@pytest.fixture
def evaluating_by_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """However seldom, as a trace that is not compiled."""
    monkeypatch.setattr(evaluating, "compile_graph", lambda graph, *example: graph)
    monkeypatch.setattr(evaluating, "WORTH_COMPILING", 0)
    monkeypatch.setattr(evaluating, "MIN_CHUNK", 1)
