"""The `config.json` of a run folder: the run, and everything else its numbers depend on."""

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from ih_interp._config_base import Frozen, explain, short
from ih_interp.config import RunConfig
from ih_interp.registry import foreign_kinds, refuse_missing_kinds
from ih_interp.storage import run_files

RESTORE = "restore it, or train again with repair=True, which removes the run and begins it anew"


class Recorded(Frozen):
    """The fields of `config.json`."""

    format: int
    """The number of this format, `run_files.FORMAT`."""
    run: dict[str, Any]
    """The run's configuration, as `RunConfig.save` gives it."""
    fingerprint: str
    """The digest of the configuration."""
    features_sha256: str | None
    """The digest of the exemplars' features; None for tasks without exemplars."""
    engine: Literal["compiled", "eager"]
    """How updates were computed."""
    versions: dict[str, str]
    """The versions of Python and of the packages that compute."""
    kinds: dict[str, str] = Field(default_factory=dict[str, str])
    """The module of every task, clamp and so on that another package defines."""
    threads: int | None = None
    """The number of torch's threads."""
    sha256: str
    """The digest of the other fields."""


def write_config(
    path: Path, config: RunConfig, *, features_sha256: str | None, engine: str
) -> None:
    """Record a run at its beginning; `engine` is "compiled" or "eager"."""
    recorded: dict[str, Any] = {
        "format": run_files.FORMAT,
        "run": config.save(),
        "fingerprint": config.fingerprint,
        "features_sha256": features_sha256,
        "engine": engine,
        "kinds": foreign_kinds(config),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    run_files.write_json(path, run_files.sealed(recorded))


def read_config(path: Path) -> tuple[Recorded, RunConfig]:
    """Read what `write_config` wrote; FileNotFoundError or ValueError where that is impossible.

    DamagedFileError, for which repair begins a run anew, is raised only where damage is certain:
    for a file that is not JSON, or has another digest than the one in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no run at {path.parent}: {path.name} is missing.")
    fields = run_files.read_json(path, RESTORE)
    if fields.get("format") != run_files.FORMAT:
        raise ValueError(
            f"{path} has format {short(fields.get('format'))}; this version reads "
            f"{run_files.FORMAT}. Use the version that wrote it, or restore it if it was changed."
        )
    if run_files.sealed(fields) != fields:
        what = "was changed after it was written: its digest differs"
        raise run_files.DamagedFileError(path, what, RESTORE)
    try:
        recorded = Recorded.model_validate(fields)
        refuse_missing_kinds(recorded.kinds)
        config = RunConfig.load(recorded.run)
        if recorded.fingerprint != config.fingerprint:
            there, said = config.fingerprint, recorded.fingerprint
            raise ValueError(f"the run in it is {there}, and {said} was recorded")
    except ValueError as error:
        what = explain(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(
            f"{path} cannot be read here: {what}. The file is as it was written: leave it, and "
            "read it with the versions, and with classes of your own, that it was trained with "
            f"({short(fields.get('versions'))})."
        ) from error
    return recorded, config


def rewrite_config(path: Path, changes: dict[str, Any]) -> None:
    """Change fields of `config.json`, and its digest."""
    run_files.write_json(path, run_files.sealed({**run_files.read_json(path), **changes}))


@cache
def versions() -> dict[str, str]:
    """Return the versions that the numbers may depend on, besides the configuration."""
    packages = {name: version(name) for name in ("ih-interp", "torch", "transformer-lens")}
    return {**packages, "python": platform.python_version(), "machine": platform.machine()}
