"""`config.json` of a run folder: what the run is, and what its numbers depend on beside that."""

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ih_interp._config_base import short
from ih_interp.config import RunConfig
from ih_interp.storage import run_files

RECORDED: dict[str, type] = {
    "run": dict,
    "fingerprint": str,
    "features_sha256": str,
    "engine": str,
    "versions": dict,
}
"""What `config.json` has to have, and of which kind."""

RESTORE = (
    "restore it, or train again with repair=True, which removes the run's files and begins it anew"
)


def write_config(path: Path, config: RunConfig, *, features_sha256: str, engine: str) -> None:
    """Record a run at its beginning; `engine` is "compiled" or "eager"."""
    recorded: dict[str, Any] = {
        "format": run_files.FORMAT,
        "run": config.save(),
        "fingerprint": config.fingerprint,
        "features_sha256": features_sha256,
        "engine": engine,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    run_files.write_json(path, run_files.sealed(recorded))


def read_config(path: Path) -> tuple[dict[str, Any], RunConfig]:
    """Read what `write_config` wrote; FileNotFoundError or ValueError say what is wrong with it.

    A DamagedFileError, for which repair begins a run anew, is raised for damage beyond doubt alone:
    for what is no JSON, or has another digest than it says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no run at {path.parent}: {path.name} is missing.")
    try:
        recorded = run_files.read_json(path)
    except run_files.DamagedFileError as error:
        raise run_files.DamagedFileError(path, f"cannot be read: {error}; {RESTORE}.") from error
    if recorded.get("format") != run_files.FORMAT:
        raise ValueError(
            f"{path} has format {short(recorded.get('format'))}; this version reads "
            f"{run_files.FORMAT}. Read it with the version that wrote it, or restore it if it was "
            "changed."
        )
    if "sha256" in recorded and run_files.sealed(recorded) != recorded:
        raise run_files.DamagedFileError(
            path, f"was changed after it was written: its digest differs; {RESTORE}."
        )
    try:
        return recorded, _recorded_run(recorded)
    except ValueError as error:
        state = "is as it was written" if "sha256" in recorded else "has no digest"
        raise ValueError(
            f"{path} cannot be read here: {error}. The file {state}: leave the run as it is, and "
            "read it with the version of ih_interp, or beside the clamps, that it was trained with "
            f"({short(recorded.get('versions'))})."
        ) from error


def _recorded_run(recorded: dict[str, Any]) -> RunConfig:
    """The run in a `config.json` that nobody changed; ValueError for what is not read here."""
    missing = [name for name in RECORDED if name not in recorded]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    unknown = sorted(set(recorded) - {*RECORDED, "format", "threads", "sha256"})
    if unknown:
        raise ValueError(f"it has fields that are not known here, {short(unknown)}")
    strange = [name for name, kind in RECORDED.items() if not isinstance(recorded[name], kind)]
    if strange or recorded["engine"] not in ("compiled", "eager"):
        raise ValueError(f"{', '.join(strange) or 'engine'} has a value that is not read here")
    config = RunConfig.load(recorded["run"])
    if recorded["fingerprint"] != config.fingerprint:
        raise ValueError(
            f"the run in it is {config.fingerprint}, and {recorded['fingerprint']} was recorded"
        )
    return config


def rewrite_config(path: Path, changes: dict[str, Any]) -> None:
    """Change what `config.json` records, and its digest if it has one."""
    recorded = run_files.read_json(path)
    changed = {**recorded, **changes}
    run_files.write_json(path, run_files.sealed(changed) if "sha256" in recorded else changed)


@cache
def versions() -> dict[str, str]:
    """What the numbers may depend on beside the configuration."""
    packages = {name: version(name) for name in ("ih-interp", "torch", "transformer-lens")}
    return {**packages, "python": platform.python_version(), "machine": platform.machine()}
