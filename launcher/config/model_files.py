"""Where a model's files are: the converted embedded model, a local folder, or the Hub cache. No weights are opened."""

from __future__ import annotations

import json
import os
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from launcher.config.build import one_of
from launcher.config.hub_errors import explain_hub_error, is_download_error
from launcher.config.schema import ArchitectureConfig, ModelConfig
from launcher.config.shipped_files import share_dir
from launcher.errors import ModelError, Problem
from launcher.paths import cache_dir

EMBEDDED = ("smollm2-135m-instruct",)
_PREFIX = "embedded:"
_USUAL_MODULES = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3", "granite", "olmo", "olmo2")
)
"""model_type of architectures whose modules have the names Llama's have; a test compares them with transformers."""
_TEXT_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
_WEIGHT_FILES = ["*.safetensors"]


class ModelSource(Enum):
    embedded = "embedded"
    folder = "folder"
    hub = "hub"


def model_source(name: str) -> ModelSource:
    """What kind of name this is: an existing folder wins over a Hub name."""
    if name.startswith(_PREFIX):
        return ModelSource.embedded
    if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        return ModelSource.folder
    return ModelSource.hub


def name_problem(name: str) -> Problem | None:
    """Why there is no model of this name, as far as this host can tell."""
    key, source = "model.name_or_path", model_source(name)
    if source is ModelSource.embedded and (short := name.removeprefix(_PREFIX)) not in EMBEDDED:
        return Problem(key, name, "there is no such embedded model", one_of(short, list(EMBEDDED)))
    if source is ModelSource.folder:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return Problem(key, name, "there is no such folder", "Give a folder, or a Hub name (owner/name)")
        if not (folder / "config.json").is_file():
            return Problem(key, name, "the folder has no config.json", "Give the folder of a Hugging Face model")
    return None


def embedded_folder(name: str) -> Path:
    """Folder of the converted embedded model, present or not; `name` as in embedded:NAME."""
    return cache_dir() / "models" / name


def find_model(model: ModelConfig, *, weights: bool = True, download: bool = True) -> Path:
    """Folder of the model on this host, with config.json, tokenizer and safetensors; fetched from the Hub if necessary.

    Args:
        weights: False asks only for configuration and tokenizer (all that preparing data needs).
        download: False looks on this host only.
    Raises:
        ModelError: not there, not allowed, or not usable; says what to do.
    """
    name = model.name_or_path
    if problem := name_problem(name):
        raise ModelError(str(problem))
    source = model_source(name)
    if source is ModelSource.embedded:
        folder = embedded_folder(name.removeprefix(_PREFIX))
        if not (folder / "config.json").is_file():
            hint = "Run scripts/quickstart, or `launcher train` with tunelaunch[demo] installed"
            raise _unusable(name, f"not converted on this host yet ({folder} is missing). {hint}")
    elif source is ModelSource.folder:
        folder = Path(name).expanduser().resolve()
    else:
        folder = _hub_folder(name, model.revision, weights=weights, download=download)
    if not (folder / "config.json").is_file():
        raise _unusable(name, f"{folder} holds no config.json; give the folder of a Hugging Face model")
    if "auto_map" in _read_json(folder / "config.json"):
        why = "config.json names Python code (auto_map), and code from a model is never run"
        raise _unusable(name, f"{why}. Choose a model whose architecture is built into transformers")
    if weights and (missing := _missing_weights(folder)):
        raise _unusable(name, missing)
    return folder


def find_architecture(model: ModelConfig, *, model_dir: str = "") -> ArchitectureConfig | None:
    """The model's dimensions: from the configuration, or from config.json on this host; None if neither has them."""
    if model.architecture.hidden_size > 0:
        return model.architecture
    try:
        folder = Path(model_dir) if model_dir else find_model(model, weights=False, download=False)
        return read_architecture(folder / "config.json")
    except (ModelError, OSError):
        return None


def read_architecture(config_json: Path) -> ArchitectureConfig:
    """The dimensions in a Hugging Face config.json.

    Raises:
        ModelError: not JSON, or a dimension is missing.
    """
    values = _read_json(config_json)
    heads = values.get("num_attention_heads")
    dimensions = {
        "hidden_size": values.get("hidden_size"),
        "intermediate_size": values.get("intermediate_size"),
        "num_layers": values.get("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or 0,
        "vocab_size": values.get("vocab_size"),
        "max_position_tokens": values.get("max_position_embeddings") or 0,
    }
    missing = [key for key, value in dimensions.items() if not isinstance(value, int) or isinstance(value, bool)]
    if missing:
        raise ModelError(f"{config_json} has no valid {', '.join(missing)}; only models like Llama can be planned")
    qkv_bias = values.get("attention_bias", values.get("model_type") == "qwen2")
    return ArchitectureConfig(
        **dimensions,  # type: ignore[arg-type]
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        attention_bias=bool(qkv_bias),
    )


def has_usual_modules(model: ModelConfig, *, model_dir: str = "") -> bool:
    """Whether the layers are known to be called as in parameters.module_shapes; False also where nothing is known."""
    if model.name_or_path in _shipped_models():
        return True
    try:
        folder = Path(model_dir) if model_dir else find_model(model, weights=False, download=False)
        return _read_json(folder / "config.json").get("model_type") in _USUAL_MODULES
    except ModelError:
        return False


@cache
def _shipped_models() -> frozenset[str]:
    """Names in conf/model/, which has models of the Llama kind only."""
    files = share_dir("conf").glob("model/*.yaml")
    return frozenset(str(yaml.safe_load(file.read_text(encoding="utf-8")).get("name_or_path")) for file in files)


def _unusable(name: str, why: str) -> ModelError:
    return ModelError(f"model.name_or_path = {name!r}: {why}")


def _hub_folder(name: str, revision: str | None, *, weights: bool, download: bool) -> Path:
    """The snapshot folder in the Hub cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    fetch = partial(
        snapshot_download,
        name,
        revision=revision,
        allow_patterns=_TEXT_FILES + (_WEIGHT_FILES if weights else []),
        ignore_patterns=["original/*"] if weights else ["original/*", "*.index.json"],
    )
    try:
        folder = Path(fetch(local_files_only=True))
        if (folder / "config.json").is_file() and (not weights or not _missing_weights(folder)):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise _unusable(name, f"neither a folder nor a Hub name (owner/name): {error}") from error
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if is_offline or not download:
        why = "not on this host, and HF_HUB_OFFLINE forbids fetching it" if is_offline else "not on this host"
        raise _unusable(name, f"{why}. Run `hf download {name}` where there is a network, or give a folder")
    try:
        return Path(fetch())
    except Exception as error:
        if not is_download_error(error):
            raise
        hint = "Check the network, or fetch it elsewhere and give the folder"
        raise _unusable(name, explain_hub_error(error, name, revision, offline_hint=hint)) from error


def _missing_weights(folder: Path) -> str:
    """Why the weights in `folder` cannot be used, or an empty text."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        absent = [shard for shard in shards if not (folder / str(shard)).is_file()]
        if not shards or absent:
            return f"{folder} lacks weights named in {index.name}: {', '.join(absent) or 'all'}. Fetch the model again"
        return ""
    if any(folder.glob("*.safetensors")):
        return ""
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return (
            f"{folder} has weights only as pickle (.bin), which can run code when loaded. Convert them to safetensors: "
            "load with transformers and call save_pretrained(folder)"
        )
    return f"{folder} holds no safetensors weights"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a JSON object")
    return values
