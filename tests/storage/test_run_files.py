"""What lies in a run folder: whole or not at all, and nothing altered in silence."""

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ih_interp.storage import run_files
from ih_interp.storage.atomic import write_atomic

TENSORS = {
    "float": torch.tensor([[1.5, -2.0, float("inf")], [0.0, -0.0, 1e-38]]),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "half": torch.tensor([1.0, 2.0], dtype=torch.float16),
    "scalar": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
}
FACTS = {"run": "0123456789ab", "step": 3, "more": [1, 2.5, None, {"a": "b"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints" / "00000003.safetensors"


def files_beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_tensors_and_facts_come_back_bit_for_bit(path):
    run_files.save_tensors(path, TENSORS, FACTS)
    tensors, facts = run_files.load_tensors(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)
    assert tensors["float"].signbit().tolist() == TENSORS["float"].signbit().tolist()


def test_views_and_tensors_with_gradient_are_saved(path):
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    run_files.save_tensors(path, {"weight": weight.T}, {})
    assert run_files.load_tensors(path)[0]["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_checkpoint_has_one_file_and_ordinary_permissions(path):
    run_files.save_tensors(path, TENSORS, FACTS)
    ordinary = path.with_name("ordinary")
    ordinary.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    assert files_beside(path) == ["00000003.safetensors", "ordinary"]


# The same content in another process, written in another order.
AGAIN = """
import sys, torch
from pathlib import Path
from ih_interp.storage.run_files import save_tensors
save_tensors(Path(sys.argv[1]), {"b": torch.ones(2), "a": torch.zeros(3)}, {"y": 2, "x": 1})
"""


def test_equal_content_is_equal_bytes_in_any_order_and_process(path):
    a, b = torch.zeros(3), torch.ones(2)
    run_files.save_tensors(path, {"a": a, "b": b}, {"x": 1, "y": 2})
    first = path.read_bytes()
    run_files.save_tensors(path, {"b": b, "a": a}, {"y": 2, "x": 1})
    assert path.read_bytes() == first
    path.unlink()
    subprocess.run([sys.executable, "-c", AGAIN, str(path)], check=True)
    assert path.read_bytes() == first


def test_every_flipped_bit_is_caught(path):
    run_files.save_tensors(path, {"weight": torch.tensor([1.0, -2.0])}, {"run": "abc", "step": 3})
    content = path.read_bytes()
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"00000003\.safetensors"):
            run_files.load_tensors(path)


def test_altered_weights_and_facts_are_told_from_damage(path):
    run_files.save_tensors(path, {"weight": torch.zeros(4)}, {"step": 3})
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(ValueError, match="digest differs"):
        run_files.load_tensors(path)
    path.write_bytes(content.replace(b"step", b"stop"))
    with pytest.raises(ValueError, match=r"digest differs.*repair=True"):
        run_files.load_tensors(path)


def test_every_cut_is_caught(path):
    run_files.save_tensors(path, {"weight": torch.zeros(2)}, {"step": 3})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut short"):
            run_files.load_tensors(path)


def test_foreign_files_are_refused(path):
    path.parent.mkdir(parents=True)
    for metadata in (None, {"format": "pt"}, {"ih_interp": "{}"}, {"ih_interp": "[1]"}):
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(ValueError, match="is not a checkpoint"):
            run_files.load_tensors(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(ValueError, match=r"00000003\.npy is not a checkpoint"):
        run_files.load_tensors(path.with_suffix(".npy"))


def test_a_missing_checkpoint_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*00000003\.safetensors"):
        run_files.load_tensors(path)


def test_checkpoint_steps_are_ascending_and_ignore_other_files(tmp_path):
    assert run_files.checkpoint_steps(tmp_path) == []
    for step in (100, 2, 12_345_678):
        write_atomic(run_files.checkpoint_path(tmp_path, step), b"")
    others = (".00000005.safetensors.99", "notes.txt", "best.safetensors")
    foreign = ("7.safetensors", "000000009.safetensors", "0000000².safetensors")
    for name in (*others, *foreign):
        (tmp_path / run_files.CHECKPOINTS / name).touch()
    assert run_files.checkpoint_steps(tmp_path) == [2, 100, 12_345_678]


def test_json_that_is_none_is_named(tmp_path):
    path = tmp_path / "config.json"
    for content, words in [
        (b'{"a": 1', "is not JSON"),
        (b"[1]", "holds list"),
        (b"\xff", "is not JSON"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json {words}"):
            run_files.read_json(path)
    path.write_text('{"a": 1}')
    assert run_files.read_json(path) == {"a": 1}


def test_metrics_come_back_and_cut_lines_are_refused(tmp_path):
    rows = [
        {"step": 0, "split": "train", "under": "clamped", "loss": 1.5},
        {"step": 10, "split": "train", "under": "clamped", "loss": 0.1 + 0.2},
    ]
    assert run_files.read_metrics(tmp_path) == []
    run_files.write_metrics(tmp_path, rows)
    assert run_files.read_metrics(tmp_path) == rows
    path = tmp_path / run_files.METRICS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"metrics\.jsonl was altered or cut short"):
        run_files.read_metrics(tmp_path)


@pytest.mark.parametrize("line", ["5", "[1, 2]", '{"step": 3}', '"loss"'])
def test_lines_that_are_no_metrics_are_refused(line, tmp_path):
    lines = "".join(f"{one}\n" for one in [*map(json.dumps, ROWS), line])
    seal = {"run": None, "rows": 3, "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    (tmp_path / run_files.METRICS).write_text(f"{json.dumps(seal)}\n{lines}")
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds .* not a row of metrics"):
        run_files.read_metrics(tmp_path)


def test_json_is_written_as_it_is_read(tmp_path):
    path = tmp_path / "config.json"
    run_files.write_json(path, {"b": [1, 2.5, None], "a": {"c": "d"}})
    assert run_files.read_json(path) == {"a": {"c": "d"}, "b": [1, 2.5, None]}
    assert path.read_text().startswith('{\n  "a"')


ROWS = [{"step": step, "split": "train", "under": "free", "loss": step / 3} for step in (0, 10)]


def test_every_flipped_bit_and_every_cut_of_metrics_is_caught(tmp_path):
    run_files.write_metrics(tmp_path, ROWS, "abc")
    path = tmp_path / run_files.METRICS
    content = path.read_bytes()
    assert run_files.read_metrics(tmp_path, "abc") == ROWS
    flipped = [bytearray(content) for _ in content]
    for place, each in enumerate(flipped):
        each[place] ^= 1 << place % 8
    for damaged in [*flipped, *(content[:length] for length in range(len(content)))]:
        path.write_bytes(damaged)
        with pytest.raises(run_files.DamagedFileError, match=r"metrics\.jsonl"):
            run_files.read_metrics(tmp_path, "abc")


def test_metrics_without_their_seal_or_of_another_run_are_refused(tmp_path):
    run_files.write_metrics(tmp_path, ROWS, "abc")
    with pytest.raises(ValueError, match=r"abc, not to xyz.*repair"):
        run_files.read_metrics(tmp_path, "xyz")
    path = tmp_path / run_files.METRICS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="seal"):
        run_files.read_metrics(tmp_path, "abc")


def test_a_seal_holds_for_any_order_of_fields_and_breaks_with_any_value():
    value = run_files.sealed({"b": [1, 2.5], "a": {"c": None}})
    assert run_files.sealed({**value}) == value
    assert run_files.sealed(dict(reversed(value.items()))) == value
    assert run_files.sealed({**value, "b": [1, 2.6]})["sha256"] != value["sha256"]


def of_type(name, shape):
    """A checkpoint's bytes with one empty tensor of this type and shape."""
    header = json.dumps(
        {
            "__metadata__": {"ih_interp": '{"facts": {}, "sha256": ""}'},
            "w": {"dtype": name, "shape": shape, "data_offsets": [0, 0]},
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, [0]) for name in ("F32", "BF16", "F8_E4M3", "F8_E5M2", "U64")),
        *(("F32", shape) for shape in ([0, 2**62], [2**62, 0], [0, 2**63], [0, -1])),
    ],
)
def test_types_and_shapes_that_nobody_has_are_no_checkpoint(name, shape, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(of_type(name, shape))
    with pytest.raises(run_files.DamagedFileError, match=r"00000003\.safetensors"):
        run_files.load_tensors(path)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(path, monkeypatch):
    """Repair would remove it."""
    run_files.save_tensors(path, {"w": torch.zeros(1)}, {})

    def forbid(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbid)
    with pytest.raises(PermissionError):
        run_files.load_tensors(path)


def test_folders_are_no_checkpoints(path):
    path.mkdir(parents=True)
    assert run_files.checkpoint_steps(path.parents[1]) == []


@pytest.mark.parametrize(
    "row",
    [
        {"step": True, "split": "train", "under": "free"},
        {"step": -1, "split": "train", "under": "free"},
        {"step": 0.5, "split": "train", "under": "free"},
        {"step": [0], "split": "train", "under": "free"},
        {"step": 0, "split": None, "under": "free"},
        {"step": 0, "split": "train"},
        {"step": 0, "split": "train", "under": "free", "loss": "0.5"},
        {"step": 0, "split": "train", "under": "free", "loss": None},
        {"step": 0, "split": "train", "under": "free", "loss": [0.5]},
        {"step": 0, "split": "train", "under": "free", "loss": True},
    ],
    ids=str,
)
def test_rows_of_other_kinds_are_refused_though_their_seal_is_right(row, tmp_path):
    run_files.write_metrics(
        tmp_path, [{"step": 0, "split": "train", "under": "free", "loss": 0.5}, row], "abc"
    )
    with pytest.raises(
        run_files.DamagedFileError, match=r"metrics\.jsonl holds .* not a row of metrics"
    ):
        run_files.read_metrics(tmp_path, "abc")
