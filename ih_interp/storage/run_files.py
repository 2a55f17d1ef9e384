"""What lies in a run folder: its paths, JSON, and weights with a digest. No pickle.

config.json  metrics.jsonl  checkpoints/00031250.safetensors
state.safetensors  state-before.safetensors  while it trains: the last two that were saved
stopped.json  where a callback ended it (`ih.StopRun`)

Each carries a SHA-256 of what it holds. Runs of the first days of format 1 have none in their
configuration and metrics; they are read all the same.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from ih_interp._config_base import short
from ih_interp.storage.atomic import sweep, write_atomic

FORMAT = 1
"""Of the run folder; another number is refused."""

CONFIG = "config.json"
METRICS = "metrics.jsonl"
STATE = "state.safetensors"
STATE_BEFORE = "state-before.safetensors"
STOPPED = "stopped.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT = r"[0-9]{8,}\.safetensors"
"""Names of checkpoints: the step in eight digits or more."""

NO_TENSORS = (
    *(SafetensorError, OSError, LookupError, TypeError, ValueError),
    *(RuntimeError, OverflowError, MemoryError),
)
"""What reading raises for a file that is no checkpoint: of sizes or types that nobody has, too."""

REPAIR = "train again with repair=True, which removes it: the same numbers come back"


class DamagedFileError(ValueError):
    """A file of a run that is cut short, altered or another run's; `path` says which."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the weights after `step` updates lie."""
    return folder / CHECKPOINTS / f"{step:08d}.safetensors"


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, ascending; what has another name is left alone."""
    if not (folder / CHECKPOINTS).is_dir():
        return []
    with os.scandir(folder / CHECKPOINTS) as entries:
        files = [entry.name for entry in entries if entry.is_file()]
    found = {name: int(name.split(".")[0]) for name in files if re.fullmatch(CHECKPOINT, name)}
    return sorted(
        step for name, step in found.items() if name == checkpoint_path(folder, step).name
    )


def sweep_run(folder: Path) -> None:
    """Remove the temporary files that kills left of a run's; nobody may be writing to it."""
    sweep(folder, [re.escape(name) for name in (CONFIG, METRICS, STATE, STOPPED)])
    sweep(folder / CHECKPOINTS, [CHECKPOINT])


def saved_states(folder: Path) -> list[Path]:
    """Saved states that are there, the newest first; two at most."""
    return [path for name in (STATE, STATE_BEFORE) if (path := folder / name).is_file()]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with facts about them (JSON values) and a digest of both."""
    write_atomic(path, packed(tensors, facts))


def packed(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """What `save_tensors` writes."""
    digest = digest_of(tensors, facts)
    # One metadata key: safetensors writes several in random order, and equal files must be equal.
    metadata = {"ih_interp": json.dumps({"facts": dict(facts), "sha256": digest}, sort_keys=True)}
    # By way of numpy: safetensors.torch looks for shared storage first, which takes three times as
    # long as all the rest, and weights share none.
    return save({name: _array(tensor) for name, tensor in tensors.items()}, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts back.

    Raises FileNotFoundError for a missing file, DamagedFileError (a ValueError) for one that is cut
    short, altered or was not written by `save_tensors`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    path.open("rb").close()  # one that we may not read is not damaged
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["ih_interp"])
        facts, expected = dict(header["facts"]), header["sha256"]
        found = digest_of(tensors, facts)  # which numpy has no types for raises TypeError
    except NO_TENSORS as error:
        raise DamagedFileError(
            path, f"is no checkpoint of ih_interp, or it is cut short ({error!r}); {REPAIR}."
        ) from error
    if found != expected:
        raise DamagedFileError(
            path, f"was altered after it was written: its digest differs; {REPAIR}."
        )
    return tensors, facts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; DamagedFileError (a ValueError) says which file is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"is not JSON, it may be cut short: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(path, f"holds {type(value).__name__}; a JSON object was expected.")
    return value  # pyright: ignore[reportUnknownVariableType]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON object whole, its keys in order."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the SHA-256 of its other fields as `sha256`."""
    content = {name: field for name, field in value.items() if name != "sha256"}
    return {**content, "sha256": _sha256(json.dumps(content, sort_keys=True).encode())}


def read_metrics(
    folder: Path, fingerprint: str | None = None, *, seal_due: bool = False
) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; none where the file is missing.

    The first line, the seal, says of which run they are, how many, and their SHA-256. Raises
    DamagedFileError (a ValueError) where they are others, belong to another run than the one of
    this fingerprint, or have no seal where one is due.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    first, _, rest = path.read_bytes().partition(b"\n")
    content, seal = rest, _seal(first)
    if seal is None:
        content = path.read_bytes()
        if seal_due:
            raise DamagedFileError(path, f"lacks its first line, the seal of the others; {REPAIR}.")
    elif (seal["sha256"], seal["rows"]) != (_sha256(content), content.count(b"\n")):
        raise DamagedFileError(
            path, f"was altered or cut short after it was written: its digest differs; {REPAIR}."
        )
    elif fingerprint is not None and seal["run"] not in (None, fingerprint):
        raise DamagedFileError(
            path, f"belongs to run {seal['run']}, not to {fingerprint}; {REPAIR}."
        )
    try:
        rows = [json.loads(line) for line in content.decode().splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            path, f"is not JSON lines, it may be cut short: {error}; {REPAIR}."
        ) from error
    strange = [row for row in rows if not _is_row(row)]
    if strange:
        raise DamagedFileError(
            path,
            f"holds {short(strange[0])}, which is no row of metrics: it lacks step and split, or "
            f"they and numbers are not all that it has; {REPAIR}.",
        )
    return rows


def _is_row(row: object) -> bool:
    """Whether a line of metrics is a step, a split, and numbers."""
    if not isinstance(row, dict) or not isinstance(row.get("split"), str):
        return False
    step = row.get("step")
    numbers = [value for name, value in row.items() if name != "split"]
    is_step = type(step) is int and step >= 0
    return is_step and all(type(value) in (int, float) for value in numbers)


def write_metrics(folder: Path, rows: list[dict[str, Any]], fingerprint: str | None = None) -> None:
    """Replace `metrics.jsonl` whole: a seal, which names the run, and a line a row."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    seal = {"run": fingerprint, "rows": len(rows), "sha256": _sha256(lines)}
    write_atomic(folder / METRICS, json.dumps(seal).encode() + b"\n" + lines)


def _seal(line: bytes) -> dict[str, Any] | None:
    """The first line of metrics if it is a seal."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and set(value) == {"run", "rows", "sha256"} else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 of tensors, names and facts: what `save_tensors` writes beside them."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_array(tensor).data)
    return digest.hexdigest()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()
