"""Commands of ours as srun starts them: as they are, or inside the container of the site. Nothing is started here."""

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
from launcher.slurm.client.option_validation import why_unfit

_MOUNT = re.compile(r"(/[^:]*):(/[^:]*)(?::([A-Za-z0-9_.=+-]+))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+")
# What container programs take for something else in the name of a folder. pyxis writes mounts into a shell file.
_SEPARATORS = {ContainerRuntime.apptainer: ",:", ContainerRuntime.pyxis: ",:\"'\\$` \t"}
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SrunTask:
    """A command of ours as srun starts it."""

    options: list[str]
    """Of srun itself."""
    command: list[str]


def contained(
    cluster: ClusterConfig, words: Sequence[str], *, shown: Sequence[Path], gpus: bool, python: str = sys.executable
) -> SrunTask:
    """`python -m WORDS`, inside the container where the site has one; ranks, stages and doctor go through here.

    Args:
        shown: folders and files the command needs, besides cluster.container_mounts.
        gpus: it is to see the node's GPUs.
        python: of the launcher outside. The image brings its own; the one outside is not there.
    Raises:
        RunError: no image, or a path that cannot be shown to a container.
    """
    if cluster.container is ContainerRuntime.none:
        return SrunTask(options=[], command=[python, "-m", *words])
    image, mounted = _image(cluster), mounts(cluster, shown)
    inside = ["python", "-m", *words]
    if cluster.container is ContainerRuntime.pyxis:
        options = [
            f"--container-image={image}",
            f"--container-mounts={','.join(mounted)}",
            f"--container-workdir={Path.cwd()}",
        ]
        return SrunTask(options=options, command=inside)
    binds = [word for mount in mounted for word in ("--bind", mount)]
    nvidia = ["--nv"] if gpus else []
    return SrunTask(
        options=[], command=["apptainer", "exec", *nvidia, *binds, "--pwd", str(Path.cwd()), image, *inside]
    )


def site_options(cluster: ClusterConfig) -> list[str]:
    """Those of cluster.srun_args that say how the container is started; they hold for whatever runs in it."""
    return [word for word in cluster.srun_args if word.startswith(("--container-", "--no-container-"))]


def run_folders(run_dir: Path, derived: Derived) -> list[Path]:
    """What the ranks of a run need: run, data, model, cache and working folder."""
    model = _with_files(Path(derived.model_dir).absolute())
    return [run_dir, Path(derived.data_dir).absolute(), model, cache_dir().absolute(), Path.cwd()]


def example_files(data: DataConfig) -> list[Path]:
    """Files and folders of examples on this machine, which an evaluation reads again."""
    named = [data.path, data.validation_path, *(part.path for part in data.mixture)]
    places = [Path(text).expanduser().absolute() for text in named if text is not None]
    return [place for place in places if _exists(place)]


def _with_files(model: Path) -> Path:
    """A snapshot in the Hub's cache holds links only; the files lie beside it, in blobs/."""
    return model.parent.parent if model.parent.name == "snapshots" else model


def mounts(cluster: ClusterConfig, shown: Sequence[Path]) -> list[str]:
    """SOURCE:TARGET of everything a container shows: what the command needs, and what the site adds.

    Raises:
        RunError: a path with a letter that the container program takes for something else.
    """
    for path in shown:
        if odd := _odd_letters(cluster, str(path)):
            raise RunError(f"{path} cannot be shown to a container: its name holds {odd}; rename it")
    found = dict.fromkeys(f"{path}:{path}" for path in shown)
    return [*found, *(mount for mount in cluster.container_mounts if mount not in found)]


def container_problems(config: RunConfig) -> list[Problem]:
    """What of the container's settings, and of the folders it must show, would fail only once the job has started."""
    cluster = config.cluster
    if cluster.container is ContainerRuntime.none:
        return []
    return [*_image_problems(cluster), *_mount_problems(cluster), *_folder_problems(config)]


def _image(cluster: ClusterConfig) -> str:
    if not cluster.container_image:
        raise RunError(
            f"cluster.container = {cluster.container.value!r} without cluster.container_image; give the image, or "
            "cluster.container=none"
        )
    return cluster.container_image


def _image_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    key, image = "cluster.container_image", cluster.container_image
    if not image:
        why = f"cluster.container = {cluster.container.value!r} needs an image"
        yield Problem(key, image, why, "Give its file or name, or cluster.container=none")
    elif reason := why_unfit(image, max_bytes=_MAX_BYTES):
        yield Problem(key, image[:80], reason)
    elif image.startswith("-"):
        yield Problem(key, image, "would read as an option: it begins with '-'", f"Write ./{image} for such a file")
    elif image != image.strip():
        yield Problem(key, image, "begins or ends with a blank", "Leave the blank out")
    elif cluster.container is ContainerRuntime.apptainer and not _may_be_there(image):
        hint = "Give the path of an image file, or a place such as docker://NAME"
        yield Problem(key, image, f"does not exist; paths count from {Path.cwd()}", hint)


def _may_be_there(image: str) -> bool:
    """Whether apptainer can find it, as far as this machine can tell: an absolute path may be there on nodes only."""
    return image.startswith("/") or _SCHEME.fullmatch(image) is not None or _exists(Path(image))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than any file's
        return False


def _mount_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    key, hint = "cluster.container_mounts", "Write /SOURCE:/TARGET, each mount as one item of the list"
    for mount in cluster.container_mounts:
        if reason := why_unfit(mount, max_bytes=_MAX_BYTES):
            yield Problem(key, mount[:80], reason)
        elif (match := _MOUNT.fullmatch(mount)) is None:
            yield Problem(key, mount, "is not a folder outside and its place inside, both absolute", hint)
        elif odd := _odd_letters(cluster, match[1] + match[2]):
            yield Problem(key, mount, f"holds {odd}, which {cluster.container.value} takes for something else", hint)
        elif cluster.container is ContainerRuntime.apptainer and match[3] not in (None, "ro", "rw"):
            yield Problem(key, mount, f"{match[3]!r} is no option of a mount of apptainer", "Write :ro, :rw or nothing")


def _folder_problems(config: RunConfig) -> Iterator[Problem]:
    """Folders of the user's choice that the container must show, whatever else the run turns out to need."""
    places = {
        "runs_dir": Path(config.runs_dir).expanduser().absolute(),
        "LAUNCHER_CACHE": cache_dir().absolute(),
        "the working folder": Path.cwd(),
        **({"model.name_or_path": model} if (model := _model_folder(config)) is not None else {}),
        # Evaluation reads the held-out examples again where they came from.
        **{f"data ({path.name})": path for path in example_files(config.data)},
    }
    for key, path in places.items():
        if odd := _odd_letters(config.cluster, str(path)):
            why = f"cannot be shown to a container ({config.cluster.container.value}): its name holds {odd}"
            yield Problem(key, str(path), why, "Rename the folder, or use another one")


def _model_folder(config: RunConfig) -> Path | None:
    """Where the model lies, if it is a folder of the user's."""
    name = config.model.name_or_path
    return Path(name).expanduser().absolute() if model_source(name) is ModelSource.folder else None


def _odd_letters(cluster: ClusterConfig, text: str) -> str:
    """Those letters of a path that the container program takes for something else, as a text; empty without any."""
    separators = _SEPARATORS.get(cluster.container, ",:")
    names = {" ": "a blank", "\t": "a tab", ",": "a comma", ":": "a colon"}
    return " and ".join(names.get(letter, letter) for letter in separators if letter in text)
