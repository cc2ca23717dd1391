"""Checks text of the user's that goes into sbatch and srun commands. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig
from launcher.errors import Problem

# Slurm joins lists with commas, reads a node list with a slash as a file name, and hands mail addresses to a mail
# program. So each setting has its own characters, all of them visible, without quotes, blanks and backslashes.
_NAME = r"[\w.+@:-]+"
_NAMES = rf"{_NAME}(,{_NAME})*"
_NODES = r"[\w.,\[\]-]+"
_PATTERNS = {
    "partition": _NAMES,
    "account": _NAME,
    "qos": _NAME,
    "constraint": r"[\w.+@:\-&|*,()\[\]!]+",
    "reservation": _NAMES,
    "gpu_type": r"[\w.+-]+",
    "nodelist": _NODES,
    "exclude": _NODES,
    "licenses": r"[\w.+@:,|*=/-]+",
    "mail_user": r"[\w.+@=-]+(,[\w.+@=-]+)*",
    "mail_type": r"[A-Za-z_0-9]+(,[A-Za-z_0-9]+)*",
    "cpu_partition": _NAMES,
}
# Options that the launcher sets itself or relies on, that read files, or that never return. Sites have plug-ins with
# options of their own, so all others pass.
_OWN = {
    "array", "bbf", "chdir", "clusters", "container", "dependency", "error", "export", "export-file", "get-user-env",
    "gid", "help", "input", "kill-on-invalid-dep", "no-requeue", "nodefile", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "parsable", "requeue", "signal", "test-only", "uid", "usage", "version", "wait",
}  # fmt: skip
_OWN_OF_SBATCH = _OWN | {"comment", "job-name"}
# Also where the ranks run and how many, how they end, and what they may see of each other.
_OWN_OF_SRUN = _OWN | {
    "async", "batch", "container-id", "container-image", "container-mounts", "container-workdir", "cpus-per-gpu",
    "cpus-per-task", "debugger-test", "disable-status", "distribution", "exclude", "external", "het-group",
    "ignore-signals", "immediate", "interactive", "jobid", "kill-on-bad-exit", "label", "no-allocate", "no-shell",
    "nodelist", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket", "ntasks-per-tres", "overcommit",
    "pack-group", "preserve-env", "pty", "quit-on-interrupt", "relative", "tasks-per-node", "time", "unbuffered", "x11",
}  # fmt: skip
# Options that start, replace or copy programs.
_PROGRAMS = {
    "bcast", "bcast-exclude", "compress", "epilog", "external-launcher", "multi-prog", "prolog", "send-libs",
    "task-epilog", "task-prolog", "wrap",
}  # fmt: skip
# Options without a value; any other would take the next argument of the command as its value.
_FLAGS = {"contiguous", "exclusive", "no-kill", "oversubscribe", "spread-job", "use-min-nodes"}
_FLAGS_OF_SBATCH = _FLAGS | {"hold", "overcommit", "reboot"}
_FLAGS_OF_SRUN = _FLAGS | {
    "exact", "overlap", "propagate", "quiet", "resv-ports", "verbose", "whole",
    # Of pyxis.
    "container-entrypoint", "container-entrypoint-log", "container-mount-home", "container-readonly",
    "container-remap-root", "container-writable", "no-container-entrypoint", "no-container-mount-home",
    "no-container-remap-root",
}  # fmt: skip
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=.*)?", re.DOTALL)


def why_unfit(text: str, *, max_bytes: int = 1024) -> str:
    """Why a text cannot be an argument of a Slurm command; empty when it can."""
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
            return f"holds a character Slurm cannot pass on (U+{ord(letter):04X})"
    size = len(text.encode())
    return f"is too long for Slurm ({size:,} bytes, at most {max_bytes:,})" if size > max_bytes else ""


def text_problem(key: str, text: str, why: str, hint: str = "") -> Problem:
    """A problem with a text that may be very long."""
    shown = text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
    return Problem(key, shown, why, hint)


def option_problems(cluster: ClusterConfig) -> list[Problem]:
    """Every setting that sbatch or srun would not take exactly as it stands."""
    return [
        *_setting_problems(cluster),
        *_argument_problems("cluster.sbatch_args", cluster.sbatch_args, _OWN_OF_SBATCH, _FLAGS_OF_SBATCH),
        *srun_problems(cluster),
        *_environment_problems(cluster),
    ]


def srun_problems(cluster: ClusterConfig) -> list[Problem]:
    """Every option in cluster.srun_args that would undo what the launcher asks for, or start another program."""
    return list(_argument_problems("cluster.srun_args", cluster.srun_args, _OWN_OF_SRUN, _FLAGS_OF_SRUN))


def _setting_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    for name, pattern in _PATTERNS.items():
        key, value = f"cluster.{name}", getattr(cluster, name)
        if value is None:
            continue
        if reason := why_unfit(value):
            yield text_problem(key, value, reason)
        elif value.startswith("-"):
            yield text_problem(key, value, "would be read as an option: it begins with '-'")
        elif not re.fullmatch(pattern, value):
            odd = sorted({letter for letter in value if not re.fullmatch(pattern, f"a{letter}a")})
            why = "is not what Slurm takes here" + (f": not {' '.join(map(repr, odd))}" if odd else "")
            yield text_problem(key, value, why, "Leave it out to use the default")


def _argument_problems(key: str, arguments: Iterable[str], own: set[str], flags: set[str]) -> Iterator[Problem]:
    for argument in arguments:
        if reason := why_unfit(argument):
            yield text_problem(key, argument, reason)
        elif (match := _OPTION.fullmatch(argument)) is None:
            yield text_problem(key, argument, "is not an option", "Write each option as one item: --option=value")
        # Both tools accept abbreviated options: --wra is --wrap. But bb is an option of its own, not short for bbf.
        elif match[1] != "bb" and (taken := [name for name in sorted(own | _PROGRAMS) if name.startswith(match[1])]):
            if taken[0] in _PROGRAMS:
                why = f"--{taken[0]} would run something else than the ranks, or with other files"
                yield text_problem(key, argument, why, "Leave it out; cluster.setup_file prepares the environment")
            else:
                yield text_problem(key, argument, f"--{taken[0]} is set by the launcher", "Leave it out")
        elif match[2] is None and match[1] not in flags:
            why = "would take the next argument of the command as its value"
            yield text_problem(key, argument, why, f"Write --{match[1]}=VALUE")


def _environment_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    """Problems of text that reaches the job through its environment."""
    for module in cluster.modules:
        if why_unfit(module) or not re.fullmatch(r"[\w.+@/][\w.+@/-]*", module):
            yield text_problem("cluster.modules", module, "is not the name of a module", "Write it like cuda/12.4")
    if (setup := cluster.setup_file) is not None:
        if reason := why_unfit(setup, max_bytes=4096):
            yield text_problem("cluster.setup_file", setup, reason)
        elif setup.startswith("-") or not setup:
            yield text_problem("cluster.setup_file", setup, "is not a file name")
        elif not (file := Path(setup)).is_absolute() and not (exists(file) and file.is_file()):
            yield text_problem("cluster.setup_file", setup, f"does not exist; paths are relative to {Path.cwd()}")
    for name, value in cluster.environment.items():
        key = f"cluster.environment.{name}"
        if not is_variable_name(name):
            yield text_problem("cluster.environment", name, "is not a valid name of a variable")
        elif name.startswith("SLURM_"):
            yield text_problem(key, value, "is set by Slurm itself", "Leave it out")
        elif reason := why_unfit(value, max_bytes=65_536):
            yield text_problem(key, value, reason)


def is_variable_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any file
        return False


def path_problem(key: str, path: Path) -> Problem | None:
    """A folder that is part of --output, where Slurm replaces patterns such as %j."""
    text = str(path)
    if reason := why_unfit(text):
        return text_problem(key, text, reason)
    if odd := [letter for letter in "%\\" if letter in text]:
        return text_problem(key, text, f"Slurm would replace what follows {' and '.join(odd)}", "Rename the folder")
    return None
