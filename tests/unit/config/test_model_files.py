"""Finding a model: on this machine, in the Hub cache, or with a clear reason why not."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from launcher.config.model_files import (
    ModelSource,
    embedded_folder,
    find_architecture,
    find_model,
    model_source,
    read_architecture,
)
from launcher.config.schema import ArchitectureConfig, ModelConfig
from launcher.errors import ModelError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def model_folder(folder: Path, config: dict[str, object] | None = None, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    if weights:
        (folder / weights).touch()
    return folder


def find(name: object, *, weights: bool = True, download: bool = True) -> Path:
    return find_model(ModelConfig(name_or_path=str(name)), weights=weights, download=download)


def refusal(name: object, **options: bool) -> str:
    with pytest.raises(ModelError) as caught:
        find(name, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("embedded:smollm2-135m-instruct", ModelSource.embedded),
        ("meta-llama/Llama-3.1-8B", ModelSource.hub),
        ("./models/x", ModelSource.folder),
        ("/models/x", ModelSource.folder),
        ("~/models", ModelSource.folder),
        ("model", ModelSource.folder),
        ("a/b/c", ModelSource.folder),
    ],
)
def test_a_name_is_told_from_a_path(name: str, source: ModelSource) -> None:
    assert model_source(name) is source


def test_an_existing_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert find("owner/name") == tmp_path / "owner" / "name"


def test_a_local_folder_is_found(tmp_path: Path) -> None:
    assert find(model_folder(tmp_path / "m")) == tmp_path / "m"


def test_shards_named_in_the_index_must_all_be_there(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", weights="a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "b.safetensors" in refusal(folder)
    (folder / "b.safetensors").touch()
    assert find(folder) == folder


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    assert "save_pretrained" in refusal(model_folder(tmp_path / "m", weights="pytorch_model.bin"))


def test_a_folder_without_weights_serves_for_preparing_only(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", weights="")
    assert "no safetensors" in refusal(folder)
    assert find(folder, weights=False) == folder


def test_code_from_a_model_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    assert "never run" in refusal(model_folder(tmp_path / "m", config))


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_broken_config_json_is_a_clear_error(tmp_path: Path, content: str) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in refusal(folder)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


def test_an_embedded_model_is_found_once_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    name = "embedded:smollm2-135m-instruct"
    assert "scripts/quickstart" in refusal(name)
    model_folder(embedded_folder("smollm2-135m-instruct"))
    assert find(name) == tmp_path / "models" / "smollm2-135m-instruct"
    assert "smollm2-135m-instruct" in refusal("embedded:smollm2")


def hub_cache(cache: Path, name: str, commit: str = "0123abc", weights: str = "model.safetensors") -> Path:
    """A Hub cache as a download leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return model_folder(repository / "snapshots" / commit, weights=weights)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_model_in_the_hub_cache_is_found_without_network(cache: Path) -> None:
    folder = hub_cache(cache, "owner/name")
    assert find_model(ModelConfig(name_or_path="owner/name")) == folder
    assert find_architecture(ModelConfig(name_or_path="owner/name")) == read_architecture(folder / "config.json")


def test_a_snapshot_without_weights_does_not_count_as_the_model(cache: Path) -> None:
    folder = hub_cache(cache, "owner/name", weights="")
    assert find("owner/name", weights=False) == folder
    assert "HF_HUB_OFFLINE" in refusal("owner/name")


def test_what_is_not_in_the_cache_says_how_to_fetch_it(cache: Path) -> None:
    message = refusal("owner/name", download=False)
    assert "hf download owner/name" in message


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api/models/o/n"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError("x", response=response(403)), "Accept its terms at https://huggingface.co/o/n"),
        (RepositoryNotFoundError("x", response=response(404)), "no such model, or it is private"),
        (RevisionNotFoundError("x", response=response(404)), "no revision 'v9'"),
        (HfHubHTTPError("x", response=response(401)), "HF_TOKEN"),
        (HfHubHTTPError("x", response=response(403)), "https://huggingface.co/settings/tokens"),
        (HfHubHTTPError("server is down", response=response(503)), "server is down"),
        (LocalEntryNotFoundError("no connection"), "no connection"),
        (OSError(28, "No space left on device"), "No space left"),
        (OSError(), "OSError"),
        # The HTTP library's own errors get through where no answer comes.
        (httpx.ConnectError("no route"), "the Hub cannot be reached: no route"),
    ],
)
def test_a_failed_fetch_is_explained(error: Exception, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, local_files_only: bool = False, **options: object) -> None:
        raise LocalEntryNotFoundError("not in the cache") if local_files_only else error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        find_model(ModelConfig(name_or_path="o/n", revision="v9"))
    assert str(caught.value).startswith("model.name_or_path = 'o/n': ") and says in str(caught.value)


def test_figures_are_read_from_config_json(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", {**CONFIG, "num_key_value_heads": None, "head_dim": None})
    assert find_architecture(ModelConfig(name_or_path=str(folder))) == ArchitectureConfig(
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        vocab_size=100,
        tied_embeddings=True,
        max_position_tokens=256,
    )


def test_shipped_figures_win_and_need_no_folder() -> None:
    architecture = ArchitectureConfig(hidden_size=8)
    assert find_architecture(ModelConfig(name_or_path="nowhere", architecture=architecture)) is architecture


def test_a_model_of_another_kind_has_no_figures(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", {"model_type": "t5", "d_model": 64})
    assert find_architecture(ModelConfig(name_or_path=str(folder))) is None
    with pytest.raises(ModelError, match="no valid hidden_size"):
        read_architecture(folder / "config.json")
