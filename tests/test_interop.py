"""Checkpoints and logs of the published code are read with the same numbers, or refused."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from published_files import OPTIMISER, OPTIONS, SHAPE, WORLDS, as_bytes, leaves, random_model
from torch.testing import assert_close

from ih_interp.interop.icl_dynamics import load_icl_dynamics, read_icl_dynamics_log
from ih_interp.model import ModelConfig, build_model
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask


@pytest.fixture
def checkpoint(tmp_path: Path, task: FewShotTask) -> Path:
    path = tmp_path / "checkpoint.eqx"
    path.write_bytes(as_bytes(*leaves(random_model(task, SHAPE)), *OPTIMISER))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(OPTIONS))
    return path


@pytest.mark.parametrize("world", WORLDS)
def test_weights_come_back_bit_for_bit(world, checkpoint, config, task, batch):
    shape, options = WORLDS[world]
    model = random_model(task, ModelConfig(**{**SHAPE.model_dump(), **shape}))
    checkpoint.write_bytes(as_bytes(*leaves(model), *OPTIMISER))
    config.write_text(json.dumps(OPTIONS | options))
    loaded = load_icl_dynamics(checkpoint, config, task)
    expected = dict(model.named_parameters())
    assert expected.keys() == dict(loaded.named_parameters()).keys()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert torch.equal(loaded(batch.tokens), model(batch.tokens))


def test_a_loaded_model_trains_what_a_built_one_does(checkpoint, config, task):
    loaded, built = load_icl_dynamics(checkpoint, config, task), build_model(task, SHAPE)
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in built.named_parameters()
    }


# Refusals


def refused(checkpoint: Path, config: Path, task: FewShotTask, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        load_icl_dynamics(checkpoint, config, task)
    assert "checkpoint.eqx" in str(refusal.value)


def test_a_cut_file_is_refused_wherever_it_is_cut(checkpoint, config, task):
    content = checkpoint.read_bytes()
    end = len(content) - len(as_bytes(*OPTIMISER))
    for length in [*range(0, end, 97), end - 1]:
        checkpoint.write_bytes(content[:length])
        refused(checkpoint, config, task, "cut short")
    checkpoint.write_bytes(content[:end])
    load_icl_dynamics(checkpoint, config, task)  # the model is whole


def test_bytes_that_are_no_arrays_are_refused(checkpoint, config, task):
    content = checkpoint.read_bytes()
    for place in range(136, 264):  # the header of the second array
        altered = bytearray(content)
        altered[place] ^= 0xFF
        checkpoint.write_bytes(altered)
        refused(checkpoint, config, task, r"is no \.eqx file|does not fit")
    checkpoint.write_bytes(b"\x93NUMPY" + bytes(200))
    refused(checkpoint, config, task, r"is no \.eqx file")
    checkpoint.write_bytes(b"PK\x03\x04 a zip archive")
    refused(checkpoint, config, task, r"is no \.eqx file")


class Explosive:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_nothing_is_unpickled(checkpoint, config, task):
    pickled = as_bytes(np.array([Explosive()], dtype=object))
    checkpoint.write_bytes(pickled + checkpoint.read_bytes())
    refused(checkpoint, config, task, "Python objects")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, r"\(5, 8\) where \(24, 8\) was expected"),
        ({"d_model": 16}, r"\(8, 16\) where \(16, 16\) was expected"),
        ({"no_norm": True}, r"\(8,\) where \(24, 8\) was expected"),
        ({"pos_embedding_type": "ape"}, r"\(5,\) where \(8, 5\) was expected"),
        ({"mlp_ratio": 2.0}, r"\(24, 8\) where \(16, 8\) was expected"),
    ],
    ids=str,
)
def test_another_models_checkpoint_is_refused(options, words, checkpoint, config, task):
    config.write_text(json.dumps(OPTIONS | options))
    where = r"does not fit .*config\.json and the task: an array has shape"
    refused(checkpoint, config, task, f"{where} {words}")


def test_another_tasks_checkpoint_is_refused(checkpoint, config):
    wider = FewShotTask(Exemplars.gaussian(n_classes=60, n_exemplars=1, n_features=32))
    words = r"an array has shape \(8, 16\) where \(8, 32\) was expected"
    refused(checkpoint, config, wider, words)


@pytest.mark.parametrize("strange", [np.array(["text"]), np.arange(128).reshape(8, 16)], ids=str)
def test_arrays_that_are_no_weights_are_refused(strange, checkpoint, config, task):
    checkpoint.write_bytes(as_bytes(strange) + checkpoint.read_bytes())
    refused(checkpoint, config, task, "an array of .* lies where weights were expected")


def test_missing_files_are_named(checkpoint, config, task, tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*gone"):
        load_icl_dynamics(gone, config, task)
    with pytest.raises(FileNotFoundError, match=r"There is no configuration at .*gone"):
        load_icl_dynamics(checkpoint, gone, task)
    with pytest.raises(FileNotFoundError, match=r"There is no log at .*gone"):
        read_icl_dynamics_log(gone)


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"pos_embedding_type": "sinusoidal"}, "sinusoidal"),
        ({"not_causal": True}, "not_causal"),
        ({"data_type": "onehot"}, "onehot"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"sin_time": 99.5}, "sin_time=99.5"),
        ({"depth": True}, "depth"),
        ({"d_model": 0}, "d_model"),
        ({"mlp_ratio": "2"}, "mlp_ratio"),
        ({"sin_time": 10**400}, "sin_time"),
    ],
    ids=str,
)
def test_options_that_are_not_read_are_refused(options, token, checkpoint, config, task):
    config.write_text(json.dumps(OPTIONS | options))
    with pytest.raises(ValueError, match=rf"config\.json .*{token}"):
        load_icl_dynamics(checkpoint, config, task)


def test_activations_are_the_published_codes(checkpoint, config, task):
    """`jax.nn.gelu` approximates by tanh unless told not to: gelu(1) = 0.841192, not 0.841345."""
    shape = SHAPE.model_copy(update={"attn_only": False, "d_mlp": 16})
    checkpoint.write_bytes(as_bytes(*leaves(random_model(task, shape)), *OPTIMISER))
    config.write_text(json.dumps(OPTIONS | {"mlp_ratio": 2.0}))
    mlp = load_icl_dynamics(checkpoint, config, task).blocks[0].mlp
    assert float(mlp.act_fn(torch.tensor(1.0))) == pytest.approx(0.841192, abs=1e-6)


def test_another_programs_configuration_is_refused(checkpoint, config, task):
    config.write_text('{"depth": 2, "d_model": 8}')
    with pytest.raises(ValueError, match="num_heads"):
        load_icl_dynamics(checkpoint, config, task)


# Logs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three evaluations of two evaluators on four sequences, and what training logged between."""
    path = tmp_path / "log.h5"
    with h5py.File(path, "w") as file:
        file["eval_iter"] = np.array([0, 64, 128])
        file["train_iter"] = np.arange(32.0, 129.0, 32.0)
        file["train_loss"] = np.array([1.6, 1.5, 1.4, 1.3])
        for name, level in (("fsl_train", 1.0), ("fsl_val_rl", 2.0)):
            file[f"{name}/loss"] = level * np.array([[1, 2, 3, 4], [0, 0, 1, 1], [0, 0, 0, 0.4]])
            file[f"{name}/acc"] = np.array([[0, 0, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=bool)
    return path


def test_a_log_becomes_one_row_an_evaluation_and_split(log):
    assert_frame = pd.testing.assert_frame_equal
    expected = pd.DataFrame(
        {
            "sequences": [0, 64, 128] * 2,
            "split": ["fsl_train"] * 3 + ["fsl_val_rl"] * 3,
            "acc": [0.25, 0.5, 1.0] * 2,
            "loss": [2.5, 0.5, 0.1, 5.0, 1.0, 0.2],
        }
    )
    assert_frame(read_icl_dynamics_log(log), expected)


def test_damaged_logs_are_refused(log):
    with h5py.File(log, "a") as file:
        del file["fsl_train/loss"]
        file["fsl_train/loss"] = np.zeros((2, 4))  # stopped between two writes
    words = r"log\.h5 has fsl_train/loss of shape .2, 4. for 3 evaluations; it may be cut short"
    with pytest.raises(ValueError, match=words):
        read_icl_dynamics_log(log)
    log.write_bytes(log.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"log\.h5 cannot be read as HDF5"):
        read_icl_dynamics_log(log)


def test_other_h5_files_are_refused(log):
    with h5py.File(log, "a") as file:
        del file["fsl_train"], file["fsl_val_rl"]
    with pytest.raises(ValueError, match=r"log\.h5 holds no evaluator's group"):
        read_icl_dynamics_log(log)
    with h5py.File(log, "a") as file:
        del file["eval_iter"]
    with pytest.raises(ValueError, match=r"log\.h5 has no 'eval_iter'; it holds \['train_iter'"):
        read_icl_dynamics_log(log)


def test_values_do_not_depend_on_scalars_between_the_arrays(checkpoint, config, task):
    """Equinox versions differ in what they write beside the weights."""
    arrays = [leaf for leaf in leaves(random_model(task, SHAPE)) if np.ndim(leaf) > 0]
    first = load_icl_dynamics(checkpoint, config, task)
    checkpoint.write_bytes(as_bytes(*arrays))
    bare = load_icl_dynamics(checkpoint, config, task)
    assert_close(dict(bare.named_parameters()), dict(first.named_parameters()), rtol=0, atol=0)
