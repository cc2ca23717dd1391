"""Turns command-line overrides into a RunConfig: Hydra composes the groups of conf/, the schema types every value.

Hydra and OmegaConf stop at the first mistake. So overrides are parsed one by one with Hydra's grammar and merged here
into the composed groups, and every unknown key, wrong type, missing value and contradiction is reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.build import build, leaf_types, one_of, unknown_key
from launcher.config.checks import config_problems
from launcher.config.schema import ArchitectureConfig, RunConfig
from launcher.config.shipped_files import share_dir
from launcher.config.unused_settings import ineffective_overrides
from launcher.errors import ConfigErrors, Problem

GROUPS = ("model", "data", "method", "optim", "strategy", "batch", "checkpoint", "track", "cluster", "experiment")
_KEY = re.compile(r"^([+~]*)([^=]*)(?:=(.*))?$", re.DOTALL)


@dataclass(slots=True)
class _Request:
    """The parsed overrides: group choices, values by dotted key, and the problems of the rest."""

    groups: dict[str, str | None] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def compose_config(overrides: list[str], *, extra_dir: Path | None = None) -> RunConfig:
    """The configuration of one run, typed and checked.

    Args:
        overrides: `group=option` and `section.key=value`, as on the command line.
        extra_dir: a folder laid out like conf/ with additional options.
    Raises:
        ConfigErrors: with every problem found.
    """
    config, problems = compose_with_problems(overrides, extra_dir=extra_dir)
    if problems:
        raise ConfigErrors(problems)
    return config


def compose_with_problems(overrides: list[str], *, extra_dir: Path | None = None) -> tuple[RunConfig, list[Problem]]:
    """As compose_config, but returns the problems, along with the configuration without the offending values."""
    folders = [share_dir("conf")]
    missing: list[Problem] = []
    if extra_dir is not None and extra_dir.is_dir():
        folders.append(extra_dir.resolve())
    elif extra_dir is not None:
        missing.append(Problem("--conf-dir", str(extra_dir), "there is no such folder"))
    request = _sort_overrides(overrides, folders)
    problems = missing + request.problems
    values = _compose_groups(request.groups, folders, problems)
    typed = {group: choice for group, choice in request.groups.items() if group != "experiment"}
    if typed and request.groups.get("experiment"):
        # In Hydra the values of an experiment override every group file; here the command line wins.
        alone = _compose_groups(typed, folders, [])
        for group in typed:
            _merge(values, group, alone.get(group) or {})
    for key, value in request.values.items():
        _merge(values, key, value)
    config = build(RunConfig, values, problems)
    if config.cluster.hosts and "nodes" not in (values.get("cluster") or {}):
        config.cluster.nodes = len(config.cluster.hosts)
    has_dimensions = any(key.startswith("model.architecture") for key in request.values)
    if "model.name_or_path" in request.values and not has_dimensions:
        config.model.architecture = ArchitectureConfig()  # the shipped dimensions are those of another model
    for found in (ineffective_overrides(config, request.values), config_problems(config)):
        seen = {problem.key for problem in problems}
        problems += [problem for problem in found if problem.key not in seen]
    return config, problems


def group_options(group: str, folders: list[Path]) -> list[str]:
    """Options of a group: the names of its YAML files."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _sort_overrides(overrides: list[str], folders: list[Path]) -> _Request:
    request = _Request()
    known = dict(leaf_types(RunConfig))
    parser = OverridesParser.create()
    for text in overrides:
        match = _KEY.match(text)
        prefix, key, raw = match.groups() if match else ("", text, None)
        problem = _refuse_form(text, prefix, key.strip(), raw)
        if problem is None and (key in request.groups or key in request.values):
            problem = Problem(key, raw, "is given twice")
        if problem is not None:
            request.problems.append(problem)
        elif key in GROUPS:
            _choose_group(request, key, str(raw), folders)
        elif key not in known and not _is_section(key):
            request.problems.append(unknown_key(key, raw, [*known, *GROUPS]))
        else:
            value = _parse_value(parser, key, str(raw), known.get(key))
            request.problems.append(value) if isinstance(value, Problem) else request.values.update({key: value})
    return request


def _refuse_form(text: str, prefix: str, key: str, raw: str | None) -> Problem | None:
    """The problem of an override whose form is not supported, whatever its key."""
    if key.split(".")[0].split("/")[0].split("@")[0] == "hydra":
        return Problem(key, raw, "Hydra itself cannot be configured here", "Leave it out; runs_dir sets where runs go")
    if "_target_" in text:
        return Problem(key, raw, "_target_ is not supported: a configuration never names code to run", "Leave it out")
    if prefix:
        hint = f"Write {key}={raw}" if raw is not None else f"To reset a setting, write {key}=VALUE"
        return Problem(prefix + key, raw, f"the prefix {prefix} is not supported: every key always exists", hint)
    if raw is None or not key:
        return Problem(text, raw, "is not a setting", "Write key=value")
    if "@" in key:
        return Problem(key, raw, "packages (@) are not supported", f"Write {key.split('@')[0]}={raw}")
    if "${" in raw:
        return Problem(key, raw, "${...} is not supported", "Write the value")
    if raw == MISSING:
        return Problem(key, raw, "??? marks a missing value", "Write the value")
    return None


def _choose_group(request: _Request, group: str, raw: str, folders: list[Path]) -> None:
    options = group_options(group, folders)
    choice = raw.strip().strip("'\"")
    if group == "experiment" and choice in ("null", ""):
        request.groups[group] = None
    elif choice in options:
        request.groups[group] = choice
    else:
        why = f"conf/{group}/ has no such option"
        hint = one_of(choice, options)
        if raw.lstrip().startswith(("{", "[")):
            why, hint = "is a group: choose an option, or set its keys", f"{hint}; or {group}.KEY=VALUE"
        request.problems.append(Problem(group, raw, why, hint))


def _is_section(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name, _ in leaf_types(RunConfig))


def _parse_value(parser: OverridesParser, key: str, raw: str, hint: Any) -> object:
    """The value by Hydra's grammar, or the problem. Text settings are taken literally, unless quoted or null."""
    is_text = hint in (str, str | None)
    try:
        override = parser.parse_override(f"{key}={raw}")
    except HydraException as error:
        if is_text:
            return raw.strip()
        reason = str(error).splitlines()[0]
        return Problem(key, raw, f"cannot be parsed ({reason})", f"Quote special characters: {key}=\"'...'\"")
    if override.is_range_sweep() or override.is_interval_sweep():
        return Problem(key, raw, "ranges are not supported", "Give one value")
    if override.type != OverrideType.CHANGE or override.is_sweep_override():
        hint = f"Give one value; quote text: {key}=\"'{raw}'\""
        return Problem(key, raw, "several values are a sweep, but this is one run", hint)
    value = override.value()
    if is_text and value is not None and not override.get_value_element_as_str().startswith(("'", '"')):
        return raw.strip()  # 0012 and 12e3456 are commit names, not numbers; only quoted text begins with a quote
    return value


def _compose_groups(groups: Mapping[str, str | None], folders: list[Path], problems: list[Problem]) -> dict[str, Any]:
    """Plain values of the chosen options; empty if they cannot be composed."""
    overrides = [f"{group}={choice or 'null'}" for group, choice in groups.items()]
    if len(folders) > 1:
        if "'" in str(folders[1]) or "\\" in str(folders[1]):
            why = "contains a quote or backslash"
            problems.append(Problem("--conf-dir", str(folders[1]), why, "Rename the folder"))
            return {}
        overrides.append(f"hydra.searchpath=['file://{folders[1]}']")
    try:
        with _own_hydra(), initialize_config_dir(str(folders[0]), job_name="launcher", version_base="1.3"):
            values: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        why = f"cannot be composed: {' '.join(str(error).split())}"
        problems.append(Problem("conf", " ".join(overrides), why, "Correct the YAML file it names"))
        return {}
    for key, text in _interpolations(values):
        problems.append(Problem(key, text, "${...} is not supported in configuration files", "Write the value"))
    return {str(key): value for key, value in values.items()}


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Sets aside the Hydra of a program that calls us: initialize_config_dir refuses to run with another one active.

    `GlobalHydra.hydra` is undocumented; test_compose.py checks that it works as it is used here.
    """
    holder = GlobalHydra.instance()
    callers, holder.hydra = holder.hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = callers  # initialize_config_dir put another holder in place


def _interpolations(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and "${" in value:
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _interpolations(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _interpolations(item, f"{key}[{index}]")


def _merge(values: dict[str, Any], key: str, value: object) -> None:
    """Sets a dotted key; a mapping given for a section is merged into it."""
    *sections, leaf = key.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    inner = values.get(leaf)
    merges = isinstance(value, Mapping) and isinstance(inner, dict) and _is_section(key)
    values[leaf] = {**inner, **value} if merges else value  # type: ignore[dict-item]
