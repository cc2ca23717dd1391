"""The manifest: what is written is read, anything else is refused, and no name leads outside."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.checkpoint import manifest as manifest_module
from launcher.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    TrainState,
    content_damage,
    damage,
    read_manifest,
    seal_file,
    sha256_file,
)
from launcher.errors import CheckpointError
from tests.unit.checkpoint.made_checkpoints import make_manifest


def read_text(text: str | bytes) -> Manifest:
    """The manifest of a folder whose manifest.json holds this."""
    with TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_manifest(Path(folder))


EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(
    state=st.builds(TrainState, best_eval_loss=st.none() | st.floats(allow_nan=False), step=st.integers(0)),
    files=st.lists(st.builds(FileEntry)),
    run_id=st.text(),
)
def test_what_is_written_is_read(state: TrainState, files: list[FileEntry], run_id: str) -> None:
    manifest = replace(make_manifest(1, files), state=state, run_id=run_id)
    assert read_text(manifest.to_json()) == manifest


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_format_of_another_version_is_explained(version: object) -> None:
    text = json.dumps({**asdict(make_manifest(1, [])), "format_version": version})
    with pytest.raises(
        CheckpointError, match=rf"format {version}, this launcher reads 1; use the version that wrote it"
    ):
        read_text(text)


WHOLE = asdict(make_manifest(1, [FileEntry("a", 0, EMPTY_SHA256)]))
NO_MANIFESTS = [
    pytest.param("", id="empty"),
    pytest.param("{", id="cut"),
    pytest.param("null", id="null"),
    pytest.param("[1, 2]", id="list"),
    pytest.param("7", id="number"),
    pytest.param("[" * 100_000, id="deep"),
    pytest.param(json.dumps({k: v for k, v in WHOLE.items() if k != "files"}), id="no files"),
    pytest.param(json.dumps({k: v for k, v in WHOLE.items() if k != "run_id"}), id="no run_id"),
    pytest.param(json.dumps({**WHOLE, "state": 3}), id="state is a number"),
    pytest.param(json.dumps({**WHOLE, "state": {"step": "1"}}), id="step is text"),
    pytest.param(json.dumps({**WHOLE, "files": [{"name": 5, "size_bytes": 1, "sha256": ""}]}), id="name is a number"),
    pytest.param(json.dumps({**WHOLE, "files": [{"name": "a"}]}), id="file without size"),
]


@pytest.mark.parametrize("text", NO_MANIFESTS)
def test_anything_but_a_manifest_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        read_text(text)


@given(st.binary())
def test_garbage_is_a_checkpoint_error_and_nothing_else(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_text(content)


def test_a_key_that_a_later_version_added_is_passed_over() -> None:
    state = {**WHOLE["state"], "more": 1}
    assert asdict(read_text(json.dumps({**WHOLE, "state": state, "more": 1}))) == WHOLE


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{}"])
def test_an_unreadable_manifest_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path / MANIFEST)):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "zero/../../secret", "/etc/hostname", "..", "zero/.."])
def test_a_name_that_leads_outside_is_refused_whatever_lies_there(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"")
    folder = tmp_path / "checkpoint"
    (folder / "zero").mkdir(parents=True)
    found = damage(folder, make_manifest(1, [FileEntry(name, 0, EMPTY_SHA256)]))
    assert found == [f"{name}: points outside the checkpoint"]


@pytest.mark.parametrize("name", ["", ".", "zero", "./file", "a\0b", "nothing"])
def test_a_name_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "zero").mkdir()
    (tmp_path / "file").touch()
    assert damage(tmp_path, make_manifest(1, [FileEntry(name, 0, EMPTY_SHA256)]))


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    assert damage(tmp_path, make_manifest(1, [FileEntry("pipe", 0, EMPTY_SHA256)])) == ["pipe: missing"]


def test_every_kind_of_damage_is_told_at_once(tmp_path: Path) -> None:
    for name in ("whole", "short", "other"):
        (tmp_path / name).write_bytes(name.encode())
    files = [seal_file(tmp_path, tmp_path / name) for name in ("whole", "short", "other")]
    (tmp_path / "short").write_bytes(b"sho")
    (tmp_path / "other").write_bytes(b"0ther")
    (tmp_path / "extra").touch()
    assert damage(tmp_path, make_manifest(1, [*files, FileEntry("gone", 1, "")])) == [
        "short: 3 bytes, manifest says 5",
        "other: content does not match its sha256",
        "gone: missing",
        "extra: not in the manifest",
    ]


def test_a_sealed_file_is_described_by_its_name_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "file").touch()
    assert seal_file(tmp_path, tmp_path / "zero" / "file") == FileEntry("zero/file", 0, EMPTY_SHA256)


def test_a_long_file_is_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3_000_000) + b"end")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(bytes(3_000_000) + b"end").hexdigest()


def test_a_validation_loss_counts_only_for_the_weights_it_was_measured_on() -> None:
    measured = TrainState(step=4, last_eval_step=4, last_eval_loss=0.5)
    assert replace(make_manifest(4, []), state=measured).eval_loss == 0.5
    assert replace(make_manifest(5, []), state=replace(measured, step=5)).eval_loss is None


def test_the_size_is_that_of_all_files() -> None:
    assert make_manifest(1, [FileEntry("a", 3, ""), FileEntry("b", 4, "")]).size_bytes == 7


def test_reading_shows_signs_of_life_only_while_bytes_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a terabyte takes minutes; a file system that hangs must not look alive."""
    monkeypatch.setattr(manifest_module, "_BEAT_S", 0.02)
    entries = [FileEntry(name, 0, EMPTY_SHA256) for name in ("slow", "stuck")]
    beats: list[float] = []
    for entry in entries:
        (tmp_path / entry.name).touch()

        def read(path: Path, reading: manifest_module._Reading) -> str:
            for _ in range(10):
                time.sleep(0.02)
                reading.num_bytes += path.name == "slow"
            return EMPTY_SHA256

        monkeypatch.setattr(manifest_module, "sha256_file", read)
        before = len(beats)
        assert content_damage(tmp_path, [entry], beat=lambda: beats.append(0)) == []
        assert (len(beats) > before) == (entry.name == "slow")


def test_an_interrupt_ends_the_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").touch()
    ended: list[str] = []

    def read(path: Path, reading: manifest_module._Reading) -> str:
        for _ in range(1000):
            reading.num_bytes += 1
            time.sleep(0.01)
            if reading.is_cancelled:
                ended.append("cancelled")
                break
        return ""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest_module, "_BEAT_S", 0.01)
    monkeypatch.setattr(manifest_module, "sha256_file", read)
    with pytest.raises(KeyboardInterrupt):
        content_damage(tmp_path, [FileEntry("large", 0, "")], beat=interrupt)
    assert ended == ["cancelled"]
