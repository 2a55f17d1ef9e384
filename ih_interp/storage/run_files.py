"""The files of a run folder: their paths, JSON, and weights with a digest. No pickle.

    config.json  metrics.jsonl  checkpoints/00031250.safetensors
    state.safetensors  state-before.safetensors  where it goes on; the second while it trains
    stopped.json  where a callback ended it (`ih.StopRun`)

Each carries a SHA-256 of its content.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

from ih_interp._config_base import short
from ih_interp.storage.atomic import leftovers, sweep, write_atomic

FORMAT = 2  # of the run folder; another number is refused
CONFIG = "config.json"
METRICS = "metrics.jsonl"
STATE = "state.safetensors"
STATE_BEFORE = "state-before.safetensors"
STOPPED = "stopped.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT = r"(?:[0-9]{8}|[1-9][0-9]{8,})\.safetensors"  # the step in eight digits or more

REPAIR = "train again with repair=True, which removes it: the same numbers come back"


class DamagedFileError(ValueError):
    """An error for the file `path` of a run that is cut short, altered or another run's."""

    def __init__(self, path: Path, what: str, remedy: str = REPAIR) -> None:
        super().__init__(f"{path} {what}; {remedy}." if remedy else f"{path} {what}.")
        self.path = path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the place of the weights after `step` updates."""
    return folder / CHECKPOINTS / f"{step:08d}.safetensors"


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, ascending; files with other names are ignored."""
    if not (folder / CHECKPOINTS).is_dir():
        return []
    with os.scandir(folder / CHECKPOINTS) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return sorted(int(name.split(".")[0]) for name in names if re.fullmatch(CHECKPOINT, name))


def sweep_run(folder: Path) -> None:
    """Remove the temporary files that kills left in a run; no process may be writing to it."""
    for place, names in _written(folder):
        sweep(place, names)


def run_leftovers(folder: Path) -> list[Path]:
    """Return the files that `sweep_run` would remove."""
    return [path for place, names in _written(folder) for path in leftovers(place, names)]


def _written(folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the folders of a run and patterns for the names of the files written there."""
    names = [re.escape(name) for name in (CONFIG, METRICS, STATE, STOPPED)]
    return [(folder, names), (folder / CHECKPOINTS, [CHECKPOINT])]


def saved_states(folder: Path) -> list[Path]:
    """Return the saved states that exist, the newest first; two at most."""
    return [path for name in (STATE, STATE_BEFORE) if (path := folder / name).is_file()]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with facts about them (JSON values) and a digest of both."""
    write_atomic(path, packed(tensors, facts))


def packed(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Return the bytes that `save_tensors` writes."""
    digest = digest_of(tensors, facts)
    # One metadata key: safetensors writes several in random order, and equal files must be equal.
    metadata = {"ih_interp": json.dumps({"facts": dict(facts), "sha256": digest}, sort_keys=True)}
    # Through numpy: safetensors.torch looks for shared storage first, which takes three times as
    # long as everything else, and weights share none.
    return save({name: _array(tensor) for name, tensor in tensors.items()}, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts back.

    Raises FileNotFoundError for a missing file, DamagedFileError (a ValueError) for one that is cut
    short or altered, or that `save_tensors` did not write.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    path.open("rb").close()  # a file that we may not read is not damaged
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["ih_interp"])
        facts, expected = dict(header["facts"]), header["sha256"]
        found = digest_of(tensors, facts)
    except Exception as error:  # whatever safetensors, JSON or numpy raise for foreign bytes
        raise DamagedFileError(
            path, f"is not a checkpoint of ih_interp, or is cut short ({error!r})"
        ) from error
    if found != expected:
        raise DamagedFileError(path, "was altered after it was written: its digest differs")
    return tensors, facts


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """Read a JSON object; DamagedFileError (a ValueError) names a file that holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = f"is not JSON, it may be cut short: {error}"
        raise DamagedFileError(path, what, remedy) from error
    if not isinstance(value, dict):
        what = f"holds {type(value).__name__}; a JSON object was expected"
        raise DamagedFileError(path, what, remedy)
    return value  # pyright: ignore[reportUnknownVariableType]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON object whole, its keys in order."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the SHA-256 of its other fields as `sha256`."""
    content = {name: field for name, field in value.items() if name != "sha256"}
    return {**content, "sha256": _sha256(json.dumps(content, sort_keys=True).encode())}


def read_metrics(folder: Path, fingerprint: str | None = None) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl`; there are none where the file is missing.

    The first line, the seal, holds the run's fingerprint, the number of rows and their SHA-256.
    Raises DamagedFileError (a ValueError) where they differ, or the seal is missing.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    first, _, content = path.read_bytes().partition(b"\n")
    if (seal := _seal(first)) is None:
        raise DamagedFileError(path, "lacks its first line, the seal of the others")
    if (seal["sha256"], seal["rows"]) != (_sha256(content), content.count(b"\n")):
        what = "was altered or cut short after it was written: its digest differs"
        raise DamagedFileError(path, what)
    if fingerprint is not None and seal["run"] not in (None, fingerprint):
        raise DamagedFileError(path, f"belongs to run {seal['run']}, not to {fingerprint}")
    try:
        rows = [json.loads(line) for line in content.decode().splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"is not JSON lines, it may be cut short: {error}") from error
    if strange := [row for row in rows if not _is_row(row)]:
        what = f"holds {short(strange[0])}, not a row of metrics (step, split, under and numbers)"
        raise DamagedFileError(path, what)
    return rows


def _is_row(row: object) -> bool:
    """Return whether a line of metrics is a step, a split, what it is under, and numbers."""
    words = ("split", "under")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in words):
        return False
    step, numbers = row.get("step"), [value for name, value in row.items() if name not in words]
    is_step = type(step) is int and step >= 0
    return is_step and all(type(value) in (int, float) for value in numbers)


def write_metrics(folder: Path, rows: list[dict[str, Any]], fingerprint: str | None = None) -> None:
    """Replace `metrics.jsonl` whole: a seal, which names the run, and a line per row."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    seal = {"run": fingerprint, "rows": len(rows), "sha256": _sha256(lines)}
    write_atomic(folder / METRICS, json.dumps(seal).encode() + b"\n" + lines)


def _seal(line: bytes) -> dict[str, Any] | None:
    """Return the first line of metrics if it is a seal."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and set(value) == {"run", "rows", "sha256"} else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of tensors, names and facts that `save_tensors` writes beside them."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_array(tensor).data)
    return digest.hexdigest()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()
