"""Commands of the launcher as srun starts them: directly, or inside the site's container. Starts nothing itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.config.model_files import ModelSource, model_source
from launcher.config.schema import DataConfig, Derived, RunConfig
from launcher.errors import Problem, RunError
from launcher.paths import cache_dir
from launcher.slurm.client.option_validation import exists, text_problem, why_unfit

_MOUNT = re.compile(r"(/[^:]*):(/[^:]*)(?::([A-Za-z0-9_.=+-]+))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+")
# Characters of a path that the container program interprets. pyxis writes mounts into a shell file.
_SEPARATORS = {ContainerRuntime.apptainer: ",:", ContainerRuntime.pyxis: ",:\"'\\$` \t"}
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SrunTask:
    """A command of the launcher as srun starts it."""

    options: list[str]
    """Of srun itself."""
    command: list[str]


def contained(cluster: ClusterConfig, module: Sequence[str], *, shown: Sequence[Path], gpus: bool) -> SrunTask:
    """`python -m MODULE ...`, inside the site's container if it has one. Ranks, stages and the doctor start this way.

    Args:
        shown: folders and files the command needs, in addition to cluster.container_mounts.
        gpus: whether it needs the node's GPUs.
    Raises:
        RunError: no image, or a path that cannot be mounted.
    """
    runtime, image = cluster.container, cluster.container_image
    if runtime is ContainerRuntime.none:
        return SrunTask(options=[], command=[sys.executable, "-m", *module])
    if not image:
        raise RunError(f"cluster.container = {runtime.value!r} needs cluster.container_image")
    mounted, folder, inside = mounts(cluster, shown), str(Path.cwd()), ["python", "-m", *module]
    if runtime is ContainerRuntime.pyxis:
        settings = {"image": image, "mounts": ",".join(mounted), "workdir": folder}
        return SrunTask(options=[f"--container-{name}={value}" for name, value in settings.items()], command=inside)
    binds = [argument for mount in mounted for argument in ("--bind", mount)]
    nvidia = ["--nv"] if gpus else []
    return SrunTask(options=[], command=["apptainer", "exec", *nvidia, *binds, "--pwd", folder, image, *inside])


def site_options(cluster: ClusterConfig) -> list[str]:
    """The options in cluster.srun_args about the container; they apply to everything that runs in it."""
    return [option for option in cluster.srun_args if option.startswith(("--container-", "--no-container-"))]


def run_folders(run_dir: Path, derived: Derived) -> list[Path]:
    """The folders the ranks of a run need: run, data, model, cache and working folder."""
    model = Path(derived.model_dir).absolute()
    # A snapshot in the Hub's cache holds only links into ../../blobs.
    model = model.parent.parent if model.parent.name == "snapshots" else model
    return [run_dir, Path(derived.data_dir).absolute(), model, cache_dir().absolute(), Path.cwd()]


def example_files(data: DataConfig) -> list[Path]:
    """Local files and folders of examples, which an evaluation reads again."""
    named = [data.path, data.validation_path, *(part.path for part in data.mixture)]
    paths = [Path(text).expanduser().absolute() for text in named if text is not None]
    return [path for path in paths if exists(path)]


def mounts(cluster: ClusterConfig, shown: Sequence[Path]) -> list[str]:
    """SOURCE:TARGET of everything a container mounts: what the command needs, and what the site adds.

    Raises:
        RunError: a path with a character that the container program interprets.
    """
    for path in shown:
        if odd := _odd_letters(cluster, str(path)):
            raise RunError(f"{path} cannot be mounted in a container: its name holds {odd}; rename it")
    return list(dict.fromkeys([*(f"{path}:{path}" for path in shown), *cluster.container_mounts]))


def container_problems(config: RunConfig) -> list[Problem]:
    """Problems of the container's settings and of the folders it must mount, which would only show in the job."""
    cluster = config.cluster
    if cluster.container is ContainerRuntime.none:
        return []
    return [*_image_problems(cluster), *_mount_problems(cluster), *_folder_problems(config)]


def _image_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    key, image = "cluster.container_image", cluster.container_image
    if not image:
        why = f"cluster.container = {cluster.container.value!r} needs an image"
        yield Problem(key, image, why, "Give its file or name, or cluster.container=none")
    elif reason := why_unfit(image, max_bytes=_MAX_BYTES):
        yield text_problem(key, image, reason)
    elif image.startswith("-"):
        yield Problem(key, image, "would be read as an option: it begins with '-'", f"Write ./{image} for such a file")
    elif image != image.strip():
        yield Problem(key, image, "begins or ends with a blank", "Remove the blank")
    # apptainer must find the image; an absolute path may exist on the nodes only.
    elif cluster.container is ContainerRuntime.apptainer and not (
        image.startswith("/") or _SCHEME.fullmatch(image) or exists(Path(image))
    ):
        hint = "Give the path of an image file, or a location such as docker://NAME"
        yield Problem(key, image, f"does not exist; paths are relative to {Path.cwd()}", hint)


def _mount_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    key, runtime = "cluster.container_mounts", cluster.container
    hint = "Write /SOURCE:/TARGET, each mount as one item of the list"
    for mount in cluster.container_mounts:
        if reason := why_unfit(mount, max_bytes=_MAX_BYTES):
            yield text_problem(key, mount, reason)
        elif (match := _MOUNT.fullmatch(mount)) is None:
            yield Problem(key, mount, "is not an absolute path outside and one inside the container", hint)
        elif odd := _odd_letters(cluster, match[1] + match[2]):
            yield Problem(key, mount, f"holds {odd}, which {runtime.value} interprets", hint)
        elif runtime is ContainerRuntime.apptainer and match[3] not in (None, "ro", "rw"):
            yield Problem(key, mount, f"{match[3]!r} is not a mount option of apptainer", "Write :ro, :rw or nothing")


def _folder_problems(config: RunConfig) -> Iterator[Problem]:
    """Folders of the user's choice that every run mounts."""
    paths = {
        "runs_dir": Path(config.runs_dir),
        "LAUNCHER_CACHE": cache_dir(),
        "the working folder": Path.cwd(),
        # Evaluation reads the validation examples again.
        **{f"data ({path.name})": path for path in example_files(config.data)},
    }
    if model_source(config.model.name_or_path) is ModelSource.folder:
        paths["model.name_or_path"] = Path(config.model.name_or_path)
    for key, path in paths.items():
        text = str(path.expanduser().absolute())
        if odd := _odd_letters(config.cluster, text):
            why = f"cannot be mounted in a container ({config.cluster.container.value}): its name holds {odd}"
            yield Problem(key, text, why, "Rename the folder, or use another one")


def _odd_letters(cluster: ClusterConfig, text: str) -> str:
    """The characters of a path that the container program interprets, as text; empty without any."""
    names = {" ": "a blank", "\t": "a tab", ",": "a comma", ":": "a colon"}
    return " and ".join(
        names.get(letter, letter) for letter in _SEPARATORS.get(cluster.container, "") if letter in text
    )
