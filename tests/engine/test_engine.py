"""What is compiled, what is done eagerly instead, and where compiled graphs are kept."""

import os
import signal

import pytest
import torch
from small_runs import SMALL, folder_bytes, stop_after_an_update

import ih_interp as ih
from ih_interp.engine.compiled_forward import compile_graph, compiler_found, traced
from ih_interp.training import evaluating, fleet as fleet_module, state, train as training_module
from ih_interp.training.state import TrainingFailedError


def test_a_run_that_began_compiled_needs_its_compiler(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    state.record_engine(ih.Run(tmp_path / "small"), "compiled")
    monkeypatch.setattr(training_module, "compiler_found", lambda: False)
    with pytest.raises(ValueError, match="small began compiled"):
        ih.train(SMALL, tmp_path, progress=False)


def test_a_compiler_that_is_interrupted_is_not_one_that_fails(tmp_path, monkeypatch):
    def interrupted_while_compiling(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("the compiler was interrupted")

    monkeypatch.setattr(fleet_module, "traced_step", interrupted_while_compiling)
    with pytest.raises(KeyboardInterrupt):
        ih.train(SMALL, tmp_path, engine="compiled", progress=False)
    assert ih.Run(tmp_path / "small").engine == "compiled"


def fail_to_compile(*_, **__):
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("module", "name"), [(fleet_module, "traced_step"), (evaluating, "compile_graph")]
)
def test_what_cannot_be_compiled_is_eager_as_a_whole(
    module, name, tmp_path, monkeypatch, evaluating_by_graph
):
    """Evaluations too, in a run that is left and resumed as in one that is not."""
    monkeypatch.setattr(fleet_module, "traced_step", lambda *_: fail_to_compile)
    monkeypatch.setattr(module, name, fail_to_compile)
    (plain,) = ih.train(SMALL, tmp_path / "plain", engine="eager", progress=False)
    with pytest.warns(UserWarning, match="no compiler"):
        (run,) = ih.train(SMALL, tmp_path / "fallen", engine="compiled", progress=False)
    assert run.engine == ih.Run(run.folder).engine == "eager"
    assert folder_bytes(run.folder) == folder_bytes(plain.folder)
    with pytest.warns(UserWarning, match="no compiler"):
        stop_after_an_update(tmp_path / "resumed", monkeypatch, engine="compiled")
    (resumed,) = ih.train(SMALL, tmp_path / "resumed", engine="compiled", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(plain.folder)


def test_a_run_that_began_compiled_does_not_go_on_with_eager_evaluations(
    tmp_path, monkeypatch, evaluating_by_graph
):
    stop_after_an_update(tmp_path, monkeypatch)
    state.record_engine(ih.Run(tmp_path / "small"), "compiled")
    monkeypatch.setattr(fleet_module, "traced_step", lambda *_: fail_to_compile)
    monkeypatch.setattr(evaluating, "compile_graph", fail_to_compile)
    with pytest.raises(TrainingFailedError, match="small began compiled"):
        ih.train(SMALL, tmp_path, progress=False)
    assert ih.Run(tmp_path / "small").engine == "compiled"


def test_one_thread_leaves_nothing_behind(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = dict(os.environ)
    torch.set_num_threads(2)
    with training_module.one_thread():
        assert torch.get_num_threads() == 1
    after = torch.get_num_threads()
    torch.set_num_threads(1)
    assert (after, dict(os.environ)) == (2, before)


@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
@pytest.mark.parametrize("other", [torch.ones(3, 4), torch.ones(3, 2).T])
def test_a_compiled_graph_refuses_tensors_that_lie_otherwise(other):
    def doubled(x):
        return x * torch.arange(3.0)

    compiled = compile_graph(traced(doubled, torch.ones(2, 3)), torch.ones(2, 3))
    assert torch.equal(compiled(torch.ones(2, 3)), doubled(torch.ones(2, 3)))
    with pytest.raises(AssertionError, match="expected size"):
        compiled(other)
