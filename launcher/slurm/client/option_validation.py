"""What of a user's text sbatch and srun take as it stands. The rest is refused, with the key and the value; pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig
from launcher.errors import Problem

_MAX_BYTES = 1024
# Slurm joins lists with commas, reads a value with a slash in a node list as a file, and hands mail addresses to a mail
# program: so each setting has its own letters, all of them visible, none of them a quote, a blank or a backslash.
_LETTERS: dict[str, str] = {
    "partition": r"[\w.+@:-]+(,[\w.+@:-]+)*",
    "account": r"[\w.+@:-]+",
    "qos": r"[\w.+@:-]+",
    "constraint": r"[\w.+@:\-&|*,()\[\]!]+",
    "reservation": r"[\w.+@:-]+(,[\w.+@:-]+)*",
    "gpu_type": r"[\w.+-]+",
    "nodelist": r"[\w.,\[\]-]+",
    "exclude": r"[\w.,\[\]-]+",
    "licenses": r"[\w.+@:,|*=/-]+",
    "mail_user": r"[\w.+@=-]+(,[\w.+@=-]+)*",
    "mail_type": r"[A-Za-z_0-9]+(,[A-Za-z_0-9]+)*",
    "cpu_partition": r"[\w.+@:-]+(,[\w.+@:-]+)*",
}
_MODULE = re.compile(r"[\w.+@/][\w.+@/-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Options of which the launcher's promises are made, those that run text as a program, read files, or never return.
_OWN_OF_SBATCH = (
    "array", "bbf", "chdir", "clusters", "comment", "container", "dependency", "error", "export", "export-file",
    "get-user-env", "gid", "help", "input", "job-name", "kill-on-invalid-dep", "no-requeue", "nodefile", "nodes",
    "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only", "uid", "usage",
    "version", "wait", "wrap",
)  # fmt: skip
# Options that stand alone; any other would take the next word of the command as its value.
_FLAGS_OF_SBATCH = frozenset(
    {
        "contiguous", "exclusive", "hold", "no-kill", "overcommit", "oversubscribe", "reboot", "spread-job",
        "use-min-nodes",
    }
)  # fmt: skip
# The same for srun: where the ranks run and how many, their logs, their end, and what they may see of each other.
_OWN_OF_SRUN = (
    "array", "async", "batch", "bbf", "chdir", "clusters", "container", "container-id", "container-image",
    "container-mounts", "container-workdir", "cpus-per-gpu", "cpus-per-task", "debugger-test", "dependency",
    "disable-status", "distribution", "error", "exclude", "export", "export-file", "external", "get-user-env", "gid",
    "help", "het-group", "ignore-signals", "immediate", "input", "interactive", "jobid", "kill-on-bad-exit",
    "kill-on-invalid-dep", "label", "no-allocate", "no-requeue", "no-shell", "nodefile", "nodelist", "nodes", "ntasks",
    "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "ntasks-per-tres", "open-mode",
    "output", "overcommit", "pack-group", "parsable", "preserve-env", "pty", "quit-on-interrupt", "relative",
    "requeue", "signal", "tasks-per-node", "test-only", "time", "uid", "unbuffered", "usage", "version", "wait", "x11",
)  # fmt: skip
# srun options that start, replace or copy programs.
_PROGRAMS_OF_SRUN = (
    "bcast", "bcast-exclude", "compress", "epilog", "external-launcher", "multi-prog", "prolog", "send-libs",
    "task-epilog", "task-prolog", "wrap",
)  # fmt: skip
_FLAGS_OF_SRUN = frozenset(
    {
        "contiguous", "exact", "exclusive", "no-kill", "overlap", "oversubscribe", "propagate", "quiet", "resv-ports",
        "spread-job", "use-min-nodes", "verbose", "whole",
        # Of pyxis.
        "container-entrypoint", "container-entrypoint-log", "container-mount-home", "container-readonly",
        "container-remap-root", "container-writable", "no-container-entrypoint", "no-container-mount-home",
        "no-container-remap-root",
    }
)  # fmt: skip
# A whole option that begins like another one.
_WHOLE = frozenset({"bb"})
_ARGUMENT = re.compile(r"--([a-z][a-z0-9-]*)(=.*)?", re.DOTALL)


def why_unfit(text: str, *, max_bytes: int = _MAX_BYTES) -> str:
    """Why a text cannot be one word of a Slurm command, whatever it is for; empty when it can."""
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
            return f"holds a character Slurm cannot pass on (U+{ord(letter):04X})"
    size = len(text.encode())
    return f"is too long for Slurm ({size:,} bytes, at most {max_bytes:,})" if size > max_bytes else ""


def word_problems(cluster: ClusterConfig) -> list[Problem]:
    """Every text setting that sbatch or srun would not take exactly as it stands."""
    problems = [problem for name in _LETTERS if (problem := _setting_problem(cluster, name)) is not None]
    key = "cluster.sbatch_args"
    for word in cluster.sbatch_args:
        if problem := _argument_problem(key, word, own=_OWN_OF_SBATCH, flags=_FLAGS_OF_SBATCH):
            problems.append(problem)
    problems += srun_word_problems(cluster)
    problems += _job_text_problems(cluster)
    return problems


def srun_word_problems(cluster: ClusterConfig) -> list[Problem]:
    """Every further option of srun that would undo what the launcher asks of it, or become another program."""
    key = "cluster.srun_args"
    own = (*_OWN_OF_SRUN, *_PROGRAMS_OF_SRUN)
    found = [
        _program_problem(key, word) or _argument_problem(key, word, own=own, flags=_FLAGS_OF_SRUN)
        for word in cluster.srun_args
    ]
    return [problem for problem in found if problem is not None]


def _setting_problem(cluster: ClusterConfig, name: str) -> Problem | None:
    value = getattr(cluster, name)
    if value is None:
        return None
    key = f"cluster.{name}"
    if reason := why_unfit(value):
        return Problem(key, _short(value), reason)
    if value.startswith("-"):
        return Problem(key, value, "would read as an option: it begins with '-'")
    if not re.fullmatch(_LETTERS[name], value):
        odd = sorted({letter for letter in value if not re.fullmatch(_LETTERS[name], f"a{letter}a")})
        letters = f": not {' '.join(map(repr, odd))}" if odd else ""
        return Problem(key, _short(value), f"is not what Slurm takes here{letters}", "Leave it out to use the default")
    return None


def _program_problem(key: str, word: str) -> Problem | None:
    match = _ARGUMENT.fullmatch(word)
    name = match.group(1) if match is not None else ""
    if why_unfit(word) or name not in _PROGRAMS_OF_SRUN:
        return None
    why = f"--{name} would run something else than the ranks, or other files than theirs"
    return Problem(key, _short(word), why, "Leave it out; cluster.setup_file runs what the site needs first")


def _argument_problem(key: str, word: str, *, own: Sequence[str], flags: Collection[str]) -> Problem | None:
    match = _ARGUMENT.fullmatch(word)
    if reason := why_unfit(word):
        return Problem(key, _short(word), reason)
    if match is None:
        return Problem(key, _short(word), "is not an option", "Write --option=value, each as one word")
    name, value = match.groups()
    # Both complete options that are cut short, so --wra is --wrap.
    taken = next((option for option in own if option.startswith(name) and name not in _WHOLE), None)
    if taken is not None:
        return Problem(key, _short(word), f"--{taken} is the launcher's own", "Leave it out")
    if value is None and name not in flags:
        return Problem(key, word, "would take the next word of the command as its value", f"Write --{name}=VALUE")
    return None


def _job_text_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    """Texts that reach the job by its environment."""
    for module in cluster.modules:
        if why_unfit(module) or not _MODULE.fullmatch(module):
            yield Problem("cluster.modules", _short(module), "is not the name of a module", "Such as cuda/12.4")
    if cluster.setup_file is not None:
        yield from _setup_problems(cluster.setup_file)
    for name, value in cluster.environment.items():
        key = f"cluster.environment.{name}"
        if not _VARIABLE.fullmatch(name):
            yield Problem("cluster.environment", _short(name), "is not the name of a variable")
        elif name.startswith("SLURM_"):
            yield Problem(key, _short(value), "Slurm sets this itself", "Leave it out")
        elif reason := why_unfit(value, max_bytes=65_536):
            yield Problem(key, _short(value), reason)


def _setup_problems(text: str) -> Iterator[Problem]:
    key = "cluster.setup_file"
    if reason := why_unfit(text, max_bytes=4096):
        yield Problem(key, _short(text), reason)
    elif text.startswith("-") or not text:
        yield Problem(key, text, "is not a file name")
    elif not Path(text).is_absolute() and not _is_file(text):
        yield Problem(key, text, f"does not exist; paths count from {Path.cwd()}")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a name too long for any file
        return False


def path_problem(key: str, path: Path) -> Problem | None:
    """A folder whose name stands in --output: Slurm fills in patterns there, such as %j."""
    text = str(path)
    if reason := why_unfit(text):
        return Problem(key, _short(text), reason)
    odd = [letter for letter in "%\\" if letter in text]
    if odd:
        return Problem(key, _short(text), f"Slurm would replace what follows {' and '.join(odd)}", "Rename the folder")
    return None


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
