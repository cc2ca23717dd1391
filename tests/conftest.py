"""What every test stands on: no network, no keys, no stale rank variables, a cache of its own, and a tiny model."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model as make_tiny_model_folder

_SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_REAL_CACHE = os.environ.get("LAUNCHER_CACHE")
_CACHE_KEY = pytest.StashKey[tempfile.TemporaryDirectory[str]]()

for _name in [*_SECRETS, *_RANKS, *(name for name in os.environ if name.startswith(("ACCELERATE_", "SLURM_")))]:
    os.environ.pop(_name, None)
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# As launcher/train/__main__.py: one ninja for all, or each builds DeepSpeed's CPU parts anew.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _set_cache(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("LAUNCHER_CACHE", None)
    else:
        os.environ["LAUNCHER_CACHE"] = folder


@pytest.fixture(scope="session", autouse=True)
def _session_cache() -> Iterator[None]:
    yield
    _set_cache(_REAL_CACHE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked `model` use the user's cache, where the converted model lies; all others one of their own.

    A hook, not a fixture: it must act before session and module fixtures are made.
    """
    _set_cache(_REAL_CACHE if item.get_closest_marker("model") else _test_cache(item.config))
    return (yield)


def _test_cache(config: pytest.Config) -> str:
    folder = config.stash.get(_CACHE_KEY, None)
    if folder is None:
        folder = tempfile.TemporaryDirectory(prefix="launcher-test-cache-")
        config.stash[_CACHE_KEY] = folder
        config.add_cleanup(folder.cleanup)
    return folder.name


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """`make_tiny_model(folder, **arch) -> folder`; see tests/tiny_model.py."""
    return make_tiny_model_folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny llama, made once; do not write into it."""
    return make_tiny_model_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """Folder of the embedded 135M model; only for tests marked `model`."""
    from launcher.demo.embedded_model import ensure_embedded

    return ensure_embedded()
