"""The same call gives the same bytes in every state of the process, and leaves that as it was."""

import contextlib
import copy
import dataclasses
import subprocess
import sys
import warnings

import bad_input
import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import FOUR_UPDATES, folder_bytes

import ih_interp as ih
from ih_interp._torch_state import PRECISIONS, plain_torch

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def switched(switch, there, back):
    switch(there)
    try:
        yield
    finally:
        switch(back)


def by_place(value):
    torch.backends.mkldnn.matmul.fp32_precision = value


STATES = {
    "no gradient": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "precision": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "precision by place": lambda: switched(by_place, "bf16", "none"),
    "default device": lambda: switched(torch.set_default_device, "meta", None),
    "device block": lambda: torch.device("meta"),
    "flushed": lambda: switched(torch.set_flush_denormal, True, False),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "anomaly": torch.autograd.detect_anomaly,
    "numpy raises": lambda: np.errstate(all="raise"),
    "global seed": lambda: contextlib.nullcontext(torch.manual_seed(77)),
}
CALLS = {n: call for n, call in bad_input.callables().items() if not n.startswith("clamp")}
"""Everything public that computes; `clamped` leaves the state to its block."""


def state():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()),
            *(torch.get_default_dtype(), torch.get_default_device()),
            *(torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled()),
            *(torch._C._get_fp32_precision_getter(*place) for place in PRECISIONS),
            *(*np.geterr().items(), bool(np.float64(5e-324) * 1 == 0)),
            torch.get_rng_state().tolist(),
        )


def bytes_of(value):
    """Something that is equal for equal results, bit by bit."""
    if isinstance(value, torch.nn.Module):
        return bytes_of(dict(value.state_dict()))
    if isinstance(value, torch.Tensor):
        assert not value.is_inference()
        flat = value.detach().reshape(-1)
        content = flat.contiguous().view(torch.uint8).numpy().tobytes()
        return (value.dtype, value.shape, value.requires_grad, content)
    if isinstance(value, np.ndarray):
        return (value.dtype, value.shape, value.tobytes())
    if isinstance(value, pd.DataFrame):
        return (list(value.columns), value.to_csv(float_format="%r"))
    if isinstance(value, dict):
        return [(str(key), bytes_of(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [bytes_of(each) for each in value]
    if dataclasses.is_dataclass(value):
        return [bytes_of(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return "" if type(value).__repr__ is object.__repr__ else repr(value)


def outcomes():
    found = {}
    for name, call in CALLS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = state()
            result = call(**bad_input.good_arguments(name, call))
            assert state() == before, name
        found[name] = result
    return found


@pytest.fixture(scope="module")
def usual():
    return {name: bytes_of(result) for name, result in outcomes().items()}


@pytest.mark.parametrize("name", STATES)
def test_whatever_the_state_results_are_the_same(name, usual):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of anomaly mode, which is slow
        with STATES[name]():
            found = outcomes()
    differing = [call for call in CALLS if bytes_of(found[call]) != usual[call]]
    assert not differing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    (run,) = ih.train(FOUR_UPDATES, tmp_path_factory.mktemp("usual"), progress=False)
    return folder_bytes(run.folder)


@pytest.mark.parametrize("name", STATES)
def test_whatever_the_state_training_gives_the_same_bytes(name, trained, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of anomaly mode, which is slow
        with STATES[name]():
            before = state()
            (run,) = ih.train(FOUR_UPDATES, tmp_path, progress=False)
            assert state() == before
    assert folder_bytes(run.folder) == trained


def test_the_state_comes_back_after_an_error_and_between_the_steps_of_a_generator():
    @plain_torch()
    def steps():
        yield torch.get_default_dtype(), torch.is_grad_enabled()
        raise KeyError

    with STATES["float64"]():
        generator = steps()
        assert next(generator) == (torch.float32, False)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float64, True)
        with pytest.raises(KeyError):
            next(generator)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float64, True)


def test_a_model_made_in_inference_mode_is_analysed_as_any(usual):
    with torch.inference_mode():
        weights = {name: value.clone() for name, value in bad_input.MODEL.state_dict().items()}
        model = ih.build_model(bad_input.TASK, ih.ModelConfig(d_model=8, n_heads=2, d_head=4))
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        with torch.inference_mode():
            frozen = torch.nn.Parameter(weights[name], requires_grad=parameter.requires_grad)
        setattr(owner, name.rpartition(".")[2], frozen)
    assert next(model.parameters()).is_inference()
    for name, call in CALLS.items():
        arguments = bad_input.good_arguments(name, call)
        if name == "edge_attribution":  # by a gradient
            with pytest.raises(ValueError, match="inference_mode"):
                call(**arguments | {"model": model})
            model_of_copies = copy.deepcopy(model)
            assert bytes_of(call(**arguments | {"model": model_of_copies})) == usual[name]
        elif arguments.get("model") is bad_input.MODEL:
            assert bytes_of(call(**arguments | {"model": model})) == usual[name], name


def test_workers_do_not_run_what_lies_in_the_working_folder(tmp_path):
    for name in ("torch", "queue", "json"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'a').close()\n")
    script = tmp_path / "elsewhere" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "import ih_interp as ih\n"
        "config = ih.RunConfig(sequences=64,\n"
        "    task=ih.TaskConfig(\n"
        "    exemplars=ih.Exemplars.gaussian(12, 2, 16), n_train_classes=8),\n"
        "    batch_size=8, evaluation_size=8)\n"
        "runs = [config.replace(name=name) for name in 'ab']\n"
        "ih.train(runs, 'runs', workers=2, progress=False)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", str(script)], cwd=tmp_path, check=True)
    assert (tmp_path / "runs" / "b" / "checkpoints").is_dir()
    assert not (tmp_path / "was-run").exists()
