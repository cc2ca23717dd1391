"""Small files: whole or not at all, durable where asked, and strictly typed when they are read back."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from launcher.errors import RecordError
from launcher.files import as_json, find_record, read_record, record_from, replacing, write_atomically, write_json


class Color(Enum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.0


@dataclass(frozen=True)
class Outer:
    count: int
    color: Color = Color.red
    inner: Inner | None = None
    items: list[Inner] = field(default_factory=list)
    ci: tuple[float, float] = (0.0, 1.0)
    labels: dict[str, int] = field(default_factory=dict)
    folder: Path | None = None
    flag: bool = False
    hint: str = field(default="", metadata={"json": "todo"})


FULL = Outer(
    3, Color.blue, Inner("a", 0.5), [Inner("b")], (-1.0, math.inf), {"x": 1}, Path("/somewhere"), True, "run this"
)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", FULL)
    assert read_record(Outer, tmp_path / "record.json") == FULL


def test_a_field_goes_by_its_name_in_json() -> None:
    assert as_json(FULL)["todo"] == "run this"
    assert record_from(Outer, {"count": 1, "todo": "x"}).hint == "x"


def test_keys_of_a_newer_version_are_passed_over_and_missing_ones_take_their_default() -> None:
    assert record_from(Outer, {"count": 1, "later": {"a": 1}}) == Outer(1)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("count", {}),
        ("count", {"count": "1"}),
        ("count", {"count": True}),
        ("count", {"count": 1.0}),
        ("color", {"count": 1, "color": "green"}),
        ("inner.name", {"count": 1, "inner": {}}),
        ("items[1].share", {"count": 1, "items": [{"name": "a"}, {"name": "b", "share": "much"}]}),
        ("ci", {"count": 1, "ci": [1.0]}),
        ("labels.x", {"count": 1, "labels": {"x": None}}),
        ("flag", {"count": 1, "flag": 1}),
        ("todo", {"count": 1, "todo": None}),
    ],
)
def test_a_value_of_another_type_is_refused_with_file_and_key(tmp_path: Path, key: str, values: object) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(values))
    with pytest.raises(RecordError) as caught:
        read_record(Outer, path)
    assert caught.value.data == {"path": str(path), "key": key}
    assert str(path) in str(caught.value)
    assert find_record(Outer, path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(RecordError):
        read_record(Outer, tmp_path / "record.json")


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(Outer, tmp_path / "none")
    assert find_record(Outer, tmp_path / "none") is None


def test_numbers_and_text_that_json_lacks_come_back(tmp_path: Path) -> None:
    for share in (math.inf, -math.inf, 0.1):
        write_json(tmp_path / "a", Inner("\udc80 é", share))
        assert read_record(Inner, tmp_path / "a") == Inner("\udc80 é", share)
    assert math.isnan(record_from(Inner, {"name": "", "share": "NaN"}).share)


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("half")
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_what_is_durable_is_synced_before_the_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_replace, real_fsync = Path.replace, os.fsync

    def fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        calls.append("replace")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(tmp_path / "a", "x")
    assert calls == ["file", "replace", "folder"]
    calls.clear()
    write_atomically(tmp_path / "a", "x", durable=False)
    assert calls == ["replace"]


def test_the_mode_can_be_for_the_owner_only(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
