"""config.yaml of a run directory: written once, complete; what every worker and every later command reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from launcher.config.build import build
from launcher.config.schema import SCHEMA_VERSION, Derived, FrozenRun, RunConfig
from launcher.errors import Problem, RunError
from launcher.files import as_plain, write_atomically


def to_yaml(values: object) -> str:
    """YAML of a dataclass or of plain values, readable in any script, that loads as exactly the same values."""
    data = as_plain(values)
    for allow_unicode in (True, False):
        text = str(yaml.safe_dump(data, sort_keys=False, allow_unicode=allow_unicode, width=100))
        if yaml.safe_load(text) == data:  # a few control characters, such as NEL, only survive escaped
            break
    return text


def save_config(path: Path, frozen: FrozenRun) -> None:
    """Writes or replaces config.yaml, whole and durable."""
    write_atomically(path, to_yaml(frozen))


def load_config(path: Path) -> FrozenRun:
    """The run frozen at `path`. Needs neither Hydra nor conf/.

    Raises:
        RunError: no such file, not YAML, of a newer schema, or with a key missing, unknown or of the wrong type.
    """
    values = _read(path)
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RunError(f"{path}: schema_version = {version!r} is not a version number, so this is not a run's file")
    if version > SCHEMA_VERSION:
        hint = "Use the launcher that created the run, or a newer one"
        raise RunError(f"{path}: written with schema {version}, but this launcher reads up to {SCHEMA_VERSION}. {hint}")
    problems: list[Problem] = []
    # An older file lacks the settings that came later; their defaults are what the run was started under.
    frozen = build(FrozenRun, values, problems, complete=version == SCHEMA_VERSION)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise RunError(f"{path}: not written by this launcher; restore the file or start a new run:\n{listing}")
    return frozen


def load_prepared(path: Path) -> tuple[RunConfig, Derived]:
    """Settings and derived values of the run frozen at `path`.

    Raises:
        RunError: as load_config, and where its data was not prepared yet.
    """
    frozen = load_config(path)
    if frozen.derived is None:
        raise RunError(
            f"{path.parent} is not prepared yet: {path.name} has no derived values. The prepare stage of its "
            f"submission makes them; look at its output, or run: sbatch slurm/prepare.sbatch --run {path.parent}"
        )
    return frozen.config, frozen.derived


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: {path.parent} is not a run directory") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no configuration: a mapping was expected, not {type(values).__name__}")
    return values


def config_hash(config: RunConfig, data_key: str) -> str:
    """Hex sha256 over what makes two runs the same training: the same hash follows the same loss curve.

    Model, prepared data (`data_key` is Derived.data_key), method, optimization, seed, batch and precision count; names,
    paths, the strategy that distributes the work, tracking and saving do not.
    """
    parts = {
        "model": [config.model.name_or_path, config.model.revision],
        "data": data_key,
        "method": as_plain(config.method),
        "optim": as_plain(config.optim),
        "seed": config.seed,
        "batch": [config.batch.global_sequences, config.batch.global_tokens],
        "precision": config.strategy.precision.value,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
