"""From what the user typed to one RunConfig: Hydra composes the groups of conf/, the schema types every value.

Hydra and OmegaConf stop at the first mistake, so overrides are parsed one by one with Hydra's grammar and laid over the
composed groups here; every unknown key, wrong type, missing value and contradiction is reported in one go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.build import build, field_types, leaf_types, one_of, unknown_key
from launcher.config.checks import config_problems
from launcher.config.schema import ArchitectureConfig, RunConfig
from launcher.config.shipped_files import share_dir
from launcher.config.unused_settings import typed_in_vain
from launcher.errors import ConfigErrors, Problem

GROUPS = ("model", "data", "method", "optim", "strategy", "batch", "checkpoint", "track", "cluster", "experiment")
_KEY = re.compile(r"^([+~]*)([^=]*)(?:=(.*))?$", re.DOTALL)


@dataclass(slots=True)
class _Request:
    """The overrides, sorted: group choices for Hydra, values by dotted key, and what was wrong with the rest."""

    groups: dict[str, str | None] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def compose_config(overrides: list[str], *, extra_dir: Path | None = None) -> RunConfig:
    """The configuration of one run, typed and free of contradictions.

    Args:
        overrides: `group=option` and `section.key=value`, as on the command line.
        extra_dir: a folder laid out like conf/ whose options are offered beside the shipped ones.
    Raises:
        ConfigErrors: with every problem found.
    """
    config, problems = compose_with_problems(overrides, extra_dir=extra_dir)
    if problems:
        raise ConfigErrors(problems)
    return config


def compose_with_problems(overrides: list[str], *, extra_dir: Path | None = None) -> tuple[RunConfig, list[Problem]]:
    """As compose_config, but the problems are returned, beside the configuration that results from leaving them out."""
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
        # Hydra lets an experiment's own values win over every group file; here what was typed wins.
        alone = _compose_groups(typed, folders, [])
        for group in typed:
            _lay_over(values, group, alone.get(group) or {})
    for key, value in request.values.items():
        _lay_over(values, key, value)
    config = build(RunConfig, values, problems)
    if config.cluster.hosts and "nodes" not in (values.get("cluster") or {}):
        config.cluster.nodes = len(config.cluster.hosts)
    if "model.name_or_path" in request.values and not any(
        key.startswith("model.architecture") for key in request.values
    ):
        config.model.architecture = ArchitectureConfig()  # the shipped figures are those of another model
    for found in (typed_in_vain(config, request.values), config_problems(config)):
        seen = {problem.key for problem in problems}
        problems += [problem for problem in found if problem.key not in seen]
    return config, problems


def group_options(group: str, folders: list[Path]) -> list[str]:
    """Names of the YAML files a group offers."""
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
            problem = Problem(key, raw, "is given twice", "Give it once")
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
    """What this program does not take, whatever the key means."""
    if key.split(".")[0].split("/")[0].split("@")[0] == "hydra":
        return Problem(key, raw, "Hydra itself cannot be configured here", "Leave it out; runs_dir says where runs go")
    if "_target_" in text:
        return Problem(key, raw, "_target_ is not supported: configuration never names code to run", "Leave it out")
    if prefix:
        plainly = f"Write {key}={raw}" if raw is not None else f"To undo a setting, write {key}=VALUE"
        return Problem(
            prefix + key, raw, f"the prefix {prefix} is not needed: every key exists and keeps existing", plainly
        )
    if raw is None or not key:
        return Problem(text, raw, "is not a setting", "Write key=value")
    if "@" in key:
        return Problem(key, raw, "packages (@) are not supported", f"Write {key.split('@')[0]}={raw}")
    if "${" in raw:
        return Problem(
            key, raw, "${...} is not resolved here, so that a run depends on nothing unseen", "Write the value"
        )
    if raw == MISSING:
        return Problem(key, raw, "??? only marks a value that is missing", "Write the value")
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
        todo = one_of(choice, options)
        if raw.lstrip().startswith(("{", "[")):
            why, todo = (
                "is a group: choose one option, or set its keys",
                f"{one_of(choice, options)}; or {group}.KEY=VALUE",
            )
        request.problems.append(Problem(group, raw, why, todo))


def _is_section(key: str) -> bool:
    hint: Any = RunConfig
    for name in key.split("."):
        if not is_dataclass(hint) or name not in field_types(hint):  # type: ignore[arg-type]
            return False
        hint = field_types(hint)[name]  # type: ignore[arg-type]
    return is_dataclass(hint)


def _parse_value(parser: OverridesParser, key: str, raw: str, hint: Any) -> object:
    """The value by Hydra's grammar, or the problem. Text settings take what was typed, unless it is quoted or null."""
    is_text = hint in (str, str | None)
    try:
        override = parser.parse_override(f"{key}={raw}")
    except HydraException as error:
        if is_text:
            return raw.strip()
        reason = str(error).splitlines()[0]
        return Problem(
            key, raw, f"cannot be read ({reason})", f"Quote text that holds special characters: {key}=\"'...'\""
        )
    if override.type != OverrideType.CHANGE or override.is_sweep_override():
        return _sweep_problem(key, raw, override)
    value = override.value()
    if is_text and value is not None and not isinstance(override._value, QuotedString):
        return raw.strip()  # 0012 and 12e3456 are commit names, not numbers
    return value


def _sweep_problem(key: str, raw: str, override: Override) -> Problem:
    if override.is_range_sweep() or override.is_interval_sweep():
        return Problem(key, raw, "ranges are not supported", "Give one value")
    return Problem(
        key, raw, "several values make a sweep, but this is one run", f"Give one value; quote text: {key}=\"'{raw}'\""
    )


def _compose_groups(groups: Mapping[str, str | None], folders: list[Path], problems: list[Problem]) -> dict[str, Any]:
    """Plain values of the chosen group files; empty if they cannot be composed."""
    overrides = [f"{group}={choice or 'null'}" for group, choice in groups.items()]
    if len(folders) > 1:
        if "'" in str(folders[1]) or "\\" in str(folders[1]):
            problems.append(Problem("--conf-dir", str(folders[1]), "holds a quote or backslash", "Rename the folder"))
            return {}
        overrides.append(f"hydra.searchpath=['file://{folders[1]}']")
    callers_hydra = GlobalHydra.instance().hydra  # this may run inside a program that uses Hydra itself
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folders[0]), job_name="launcher", version_base="1.3"):
            values: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        problems.append(
            Problem("conf", " ".join(overrides), f"cannot be composed: {reason}", "Correct the YAML file it names")
        )
        return {}
    finally:
        GlobalHydra.instance().hydra = callers_hydra  # leaving the context put another holder in place
    for key, text in _interpolations(values):
        problems.append(Problem(key, text, "${...} is not resolved in configuration files", "Write the value"))
    return {str(key): value for key, value in values.items()}


def _interpolations(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and "${" in value:
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _interpolations(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _interpolations(item, f"{key}[{place}]")


def _lay_over(values: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key; a mapping given for a section is merged into it, not put in its place."""
    *sections, leaf = key.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    inner = values.get(leaf)
    merges = isinstance(value, Mapping) and isinstance(inner, dict) and _is_section(key)
    values[leaf] = {**inner, **value} if merges else value  # type: ignore[dict-item]
