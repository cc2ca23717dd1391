"""Sources: which files a configuration names, on which side they stand, and clear words for what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launcher.config.schema import DataConfig, DataFormat, SourceConfig
from launcher.data.content_hash import file_sha256
from launcher.data.hub import fetch_split
from launcher.data.sources import find_sources
from launcher.errors import DataError, ExitCode, NotFetched
from launcher.paths import cache_dir
from tests.unit.data.chat_models import CHATML, make_folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")


def names(sources: tuple[object, ...], root: Path) -> list[str]:
    return [Path(source.name).relative_to(root).as_posix() for source in sources]  # type: ignore[attr-defined]


def test_a_folder_is_sorted_into_training_and_held_out_by_names(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.csv", "validation.jsonl", "dev-00000-of-00001.parquet", "test.json", "notes.md")
    touch(tmp_path, "more/c.json", "val/d.jsonl", "evaluation_of_cars.jsonl", ".hidden/x.jsonl", "_tmp.jsonl")
    found = find_sources(DataConfig(path=str(tmp_path)))
    assert names(found.train, tmp_path) == ["a.csv", "b.jsonl", "evaluation_of_cars.jsonl", "more/c.json"]
    assert names(found.validation, tmp_path) == ["dev-00000-of-00001.parquet", "val/d.jsonl", "validation.jsonl"]
    assert [Path(name).name for name in found.ignored] == ["test.json"]


def test_a_folder_named_like_held_out_data_is_not_judged_by_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path, "test/a.jsonl")
    assert len(find_sources(DataConfig(path=str(tmp_path / "test"))).train) == 1


def test_a_validation_path_replaces_what_the_folder_offers(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jsonl", "data/val.jsonl", "mine.jsonl")
    found = find_sources(DataConfig(path=str(tmp_path / "data"), validation_path=str(tmp_path / "mine.jsonl")))
    assert names(found.validation, tmp_path) == ["mine.jsonl"]


def test_the_built_in_set_brings_its_held_out_part() -> None:
    found = find_sources(DataConfig(path="builtin:next_number"))
    assert [len(source.records) for source in (*found.train, *found.validation)] == [600, 100]


def test_mixture_parts_keep_their_weights_and_formats(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "d/b.jsonl", "d/c.jsonl")
    mixture = [
        SourceConfig(path=str(tmp_path / "a.jsonl"), weight=0.5, format=DataFormat.text),
        SourceConfig(path=str(tmp_path / "d"), weight=2.0),
    ]
    found = find_sources(DataConfig(mixture=mixture, inline=[{"text": "x"}]))
    assert [source.part for source in found.train] == [0, 1, 1, 2]
    assert found.weights == (0.5, 2.0, 1.0)
    assert found.train[0].format is DataFormat.text


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "notes.md")
    (tmp_path / "empty").mkdir()
    mixture = [SourceConfig(path=str(tmp_path / name)) for name in ("gone.jsonl", "notes.md", "empty")]
    data = DataConfig(mixture=mixture, validation_path="builtin:unknown")
    with pytest.raises(DataError) as caught:
        find_sources(data)
    assert [problem.key for problem in caught.value.problems] == [
        "data.mixture[0].path",
        "data.mixture[1].path",
        "data.mixture[2].path",
        "data.validation_path",
    ]
    text = str(caught.value)
    assert all(words in text for words in ("no such file", "'.md'", "holds no data files", "builtin:next_number"))


def test_a_name_like_one_of_the_hub_suggests_the_prefix() -> None:
    with pytest.raises(DataError, match=r"Did you mean hub:owner/name\?"):
        find_sources(DataConfig(path="owner/name"))


def test_no_data_at_all_says_what_to_set() -> None:
    with pytest.raises(DataError, match=r"Set data\.path, data\.mixture or data\.inline"):
        find_sources(DataConfig())


def test_the_hub_is_not_asked_when_only_looking() -> None:
    with pytest.raises(NotFetched, match="launcher prepare"):
        find_sources(DataConfig(path="hub:owner/name"), download=False)


def test_without_network_the_hub_error_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"hub:owner/name \(split 'train'\).*cannot be reached"):
        fetch_split("owner/name", "train", None)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """A Hub on this machine; called with the status and error code it is to answer with."""
    import datasets
    from huggingface_hub import constants

    class Handler(BaseHTTPRequestHandler):
        status, code = 500, ""

        def do_GET(self) -> None:
            # What a data set is may be read even where it is gated; its files may not.
            is_info = self.path.startswith("/api/datasets/open/")
            body = json.dumps({"id": "open/gated", "sha": "c0ffee"}).encode() if is_info else b""
            self.send_response(200 if is_info else self.status)
            if self.code:
                self.send_header("X-Error-Code", self.code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    def answer(status: int, code: str) -> None:
        Handler.status, Handler.code = status, code

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    file_url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", file_url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("owner/typo", 404, "RepoNotFound", ["no such data set", "private", "Check the spelling"]),
        ("owner/v401-authenticated-gated", 404, "RepoNotFound", ["no such data set", "Check the spelling"]),
        # So the Hub answers who has not signed in, be the data set missing or private.
        ("owner/name", 401, "RepoNotFound", ["no such data set", "private"]),
        ("owner/name", 404, "RevisionNotFound", ["no revision", "owner/name/commits"]),
        ("owner/name", 401, "", ["did not accept the credentials (401)", "HF_TOKEN"]),
        ("owner/name", 403, "GatedRepo", ["gated", "Accept its terms at https://huggingface.co/datasets/owner/name"]),
        ("open/gated", 403, "GatedRepo", ["gated", "Accept its terms at https://huggingface.co/datasets/open/gated"]),
        ("owner/name", 403, "", ["refuses access (403)", "https://huggingface.co/settings/tokens"]),
        ("owner/name", 418, "", ["answered with an error (418)"]),
    ],
)
def test_what_the_hub_answers_is_explained_by_type_and_status(
    name: str, status: int, code: str, words: list[str], answering: Callable[[int, str], None]
) -> None:
    answering(status, code)
    with pytest.raises(DataError) as caught:
        fetch_split(name, "train", None)
    text = str(caught.value)
    assert all(word in text for word in words), text
    kinds = ("no such data set", "no revision", "credentials", "gated.", "refuses access", "with an error")
    assert len([kind for kind in kinds if kind in text]) == 1


def test_a_hub_that_cannot_be_reached_is_explained_instead_of_called_a_bug(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", CHATML)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "HF_HOME": str(tmp_path),
        "LAUNCHER_CACHE": str(tmp_path / "c"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "prepare", "data.path=hub:owner/name", f"model.name_or_path={folder}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.USER
    assert "the Hub cannot be reached" in done.stderr and "or give a file" in done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


def test_other_errors_of_the_hub_are_passed_on_and_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(error: Exception) -> Callable[..., None]:
        def raise_it(self: object, name: str, revision: str | None) -> None:
            raise error

        return raise_it

    why = ValueError("Unknown split \"trian\". Should be one of ['train'].")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail(why))
    with pytest.raises(DataError, match='download failed: Unknown split "trian"'):
        fetch_split("owner/name", "trian", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match=r"download failed: .*No space left"):
        fetch_split("owner/name", "train", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail(AttributeError("ours")))
    with pytest.raises(AttributeError):
        fetch_split("owner/name", "train", None)


def test_what_was_fetched_is_a_file_from_then_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[str, str | None, str, str]] = []

    def load(name: str, subset: str | None, *, split: str, revision: str) -> datasets.Dataset:
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_list([{"question": "a", "answer": "b"}])

    commit = type("Info", (), {"sha": "c0ffee"})()
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: commit)
    data = DataConfig(path="hub:owner/name:small", hub_validation_split="test")
    found = find_sources(data)
    assert find_sources(data, download=False) == found
    assert sorted(asked) == [("owner/name", "small", split, "c0ffee") for split in ("test", "train")]
    assert found.train[0].name == "hub:owner/name:small[train]"
    assert found.validation[0].path is not None and found.validation[0].path.is_relative_to(cache_dir())


def test_the_hash_of_a_file_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    first = file_sha256(path)
    assert file_sha256(path) == first
    path.write_text("other")
    assert file_sha256(path) != first


def test_a_damaged_memo_of_a_hash_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    first = file_sha256(path)
    for memo in (cache_dir() / "hashes").iterdir():
        memo.write_text("{")
    assert file_sha256(path) == first
