"""A checkpoint appears whole or not at all: killed anywhere, damaged anyhow, planted, superseded."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.checkpoint.commit import committed, newest_verified, prune, publish, step_dir, verify
from launcher.checkpoint.manifest import MANIFEST, seal_file
from launcher.errors import CheckpointError, SupersededError
from launcher.paths import RunPaths
from tests.unit.checkpoint.made_checkpoints import (
    CONTENTS,
    FEW,
    RUN_ID,
    damage_file,
    killed_at,
    make_manifest,
    new_run,
    save,
    save_and_prune,
    stage,
)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return new_run(tmp_path / "run")


def steps(run: RunPaths) -> list[int]:
    return [c.step for c in committed(run)]


def newest(run: RunPaths) -> int | None:
    found = newest_verified(run.root, run_id=RUN_ID)
    return None if found is None else found.step


# Crashes


def nothing(run: RunPaths) -> None:
    pass


def an_older_one(run: RunPaths) -> None:
    save(run, 1, contents=FEW)


def an_older_one_and_this_step_damaged(run: RunPaths) -> None:
    save(run, 1, contents=FEW)
    damage_file(save(run, 2, contents=FEW).path / "zero/mp_rank_00_model_states.pt")


def this_step_whole(run: RunPaths) -> None:
    save(run, 1, contents=FEW)
    save(run, 2, contents=FEW)


def leftovers_of_a_crash(run: RunPaths) -> None:
    save(run, 1, contents=FEW)
    stage(run, 2, contents=FEW)
    (run.checkpoints / ".trash-step-000000" / "zero").mkdir(parents=True)


@pytest.mark.parametrize(
    ("before", "allowed"),
    [
        (nothing, {None, 2}),
        (an_older_one, {1, 2}),
        (an_older_one_and_this_step_damaged, {1, 2}),
        (this_step_whole, {2}),
        (leftovers_of_a_crash, {1, 2}),
    ],
)
def test_killed_before_any_file_operation_of_a_save_the_old_or_the_new_checkpoint_is_there(
    tmp_path: Path, before: Callable[[RunPaths], None], allowed: set[int | None]
) -> None:
    seen: set[int | None] = set()
    operation, killed = 0, True
    while killed:
        operation += 1
        run = new_run(tmp_path / str(operation))
        before(run)
        killed = killed_at(operation, lambda run=run: save_and_prune(run, 2))  # type: ignore[misc]
        seen.add(newest(run))
        assert newest(run) in allowed, f"killed before operation {operation}"
        save_and_prune(run, 3)
        assert (newest(run), steps(run)) == (3, [3]), f"killed before operation {operation}"
        assert {p.name for p in run.checkpoints.iterdir()} == {"step-000003", "LATEST"}
        shutil.rmtree(run.root)
    assert seen == allowed
    assert operation > 15


def test_all_of_a_checkpoint_is_on_disk_before_its_name_is(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path] = []
    real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace

    def fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real_fsync(descriptor)

    def rename(old: Path, new: Path) -> None:
        done.append(Path(new))
        real_rename(old, new)

    def replace(draft: Path, final: Path) -> None:
        real_replace(draft, final)
        if Path(draft) in done:
            done[done.index(Path(draft))] = Path(final)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", replace)
    final = save(run, 1).path
    at = done.index(final)
    staging = run.checkpoints / ".staging-000001-0001"
    inside = [staging / p.relative_to(final) for p in final.rglob("*")]
    assert {staging, *inside} <= set(done[:at])
    assert run.checkpoints in done[at:]


# Publishing


def test_a_step_that_exists_whole_is_kept(run: RunPaths) -> None:
    first = save(run, 1)
    manifest = (first.path / MANIFEST).read_bytes()
    run.attempt(2).mkdir()
    again = save(run, 1, attempt=2)
    assert again == first and (first.path / MANIFEST).read_bytes() == manifest
    assert verify(again) == [] and not list(run.checkpoints.glob(".staging*"))


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
def test_a_step_that_exists_damaged_is_replaced(run: RunPaths, name: str) -> None:
    damage_file(save(run, 1).path / name)
    run.attempt(2).mkdir()
    assert save(run, 1, attempt=2).manifest.attempt == 2
    assert newest(run) == 1


def test_a_step_that_exists_whole_but_was_planted_is_replaced(run: RunPaths) -> None:
    trusted: set[str] = set()
    planted = save(run, 1).path / MANIFEST
    planted.write_text(planted.read_text() + " ")
    save(run, 1, trusted=trusted)
    found = newest_verified(run.root, run_id=RUN_ID, trusted=trusted)
    assert found is not None and found.step == 1


def test_the_journal_hears_of_a_manifest_before_it_can_be_found(run: RunPaths) -> None:
    staging = stage(run, 1)
    files = [seal_file(staging, staging / name) for name in CONTENTS]
    seen: list[tuple[str, list[int]]] = []
    publish(run, staging, make_manifest(1, files), journal=lambda sha256: seen.append((sha256, steps(run))))
    assert [there for _, there in seen] == [[]]
    assert newest_verified(run.root, trusted={seen[0][0]}) is not None


def test_an_older_attempt_may_not_publish(run: RunPaths) -> None:
    save(run, 1)
    run.attempt(3).mkdir()
    with pytest.raises(SupersededError, match=r"attempt 2 was superseded by attempt 3"):
        save(run, 2, attempt=2)
    assert (steps(run), newest(run)) == ([1], 1)
    assert save(run, 2, attempt=3).step == 2


def garbage(latest: Path) -> None:
    latest.write_bytes(os.urandom(64))


def empty(latest: Path) -> None:
    latest.write_bytes(b"")


def removed(latest: Path) -> None:
    latest.unlink()


def dangling(latest: Path) -> None:
    latest.unlink()
    latest.symlink_to("step-999999")


def loop(latest: Path) -> None:
    latest.unlink()
    latest.symlink_to(latest.name)


def folder(latest: Path) -> None:
    latest.unlink()
    (latest / "step-000009").mkdir(parents=True)


def older(latest: Path) -> None:
    latest.write_text("step-000001\n")


@pytest.mark.parametrize("spoil", [garbage, empty, removed, dangling, loop, folder, older])
@pytest.mark.parametrize("name", ["LATEST", ".LATEST.new"])
def test_a_damaged_latest_changes_nothing(run: RunPaths, name: str, spoil: Callable[[Path], None]) -> None:
    save(run, 1)
    save(run, 2)
    (run.checkpoints / name).touch()
    spoil(run.checkpoints / name)
    assert newest(run) == 2
    assert save(run, 3).step == 3
    assert newest(run) == 3
    prune(run, {3})
    assert newest(run) == 3


# Verifying


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
def test_any_flipped_bit_is_seen(run: RunPaths, name: str) -> None:
    trusted: set[str] = set()
    path = save(run, 1, trusted=trusted).path / name
    whole = path.read_bytes()
    dice = random.Random(name)
    for _ in range(50):
        content = bytearray(whole)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            newest_verified(run.root, run_id=RUN_ID, trusted=trusted)
    path.write_bytes(whole)
    assert newest(run) == 1


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_a_cut_or_a_longer_file_is_seen(run: RunPaths, name: str, keep: float) -> None:
    trusted: set[str] = set()
    path = save(run, 1, trusted=trusted).path / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if keep < 1 else content + b"\0")
    with pytest.raises(CheckpointError):
        newest_verified(run.root, run_id=RUN_ID, trusted=trusted)


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
def test_a_missing_file_is_seen(run: RunPaths, name: str) -> None:
    (save(run, 1).path / name).unlink()
    with pytest.raises(CheckpointError):
        newest(run)


def test_an_extra_file_is_seen(run: RunPaths) -> None:
    checkpoint = save(run, 1)
    (checkpoint.path / "zero" / "zero_pp_rank_1.pt").write_bytes(b"")
    assert verify(checkpoint) == ["zero/zero_pp_rank_1.pt: not in the manifest"]


def test_swapped_files_of_one_size_are_seen(run: RunPaths) -> None:
    checkpoint = save(run, 1, contents={"model-rank00000.safetensors": b"a", "model-rank00001.safetensors": b"b"})
    one, two = sorted(checkpoint.path.glob("model-*"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert [line.partition(":")[0] for line in verify(checkpoint)] == [one.name, two.name]


def test_a_file_replaced_by_a_link_to_the_same_bytes_is_refused(run: RunPaths, tmp_path: Path) -> None:
    checkpoint = save(run, 1)
    path = checkpoint.path / "scaler.json"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert verify(checkpoint) == ["scaler.json: missing"]


def test_a_folder_replaced_by_a_link_cannot_bring_files_along(run: RunPaths, tmp_path: Path) -> None:
    checkpoint = save(run, 1)
    path = checkpoint.path / "zero"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (path / "zero_pp_rank_1.pt").write_bytes(b"planted")
    assert verify(checkpoint) == ["zero: not in the manifest"]


def test_a_file_that_cannot_be_read_is_damage_and_not_a_crash(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    save(run, 2)
    real_open = Path.open

    def broken_disk(path: Path, *args: str, **options: str) -> object:
        if path == step_dir(run.checkpoints, 2) / "scaler.json":
            raise OSError(5, "Input/output error")
        return real_open(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", broken_disk)
    assert newest(run) == 1


def test_a_checkpoint_of_another_run_is_refused(run: RunPaths) -> None:
    save(run, 1)
    with pytest.raises(CheckpointError, match=f"belongs to run {RUN_ID}, not to ffff"):
        newest_verified(run.root, run_id="ffff")


def test_a_checkpoint_under_another_step_is_not_one(run: RunPaths) -> None:
    save(run, 1)
    save(run, 2).path.rename(step_dir(run.checkpoints, 7))
    assert steps(run) == [1]


def test_a_link_is_not_a_checkpoint(run: RunPaths, tmp_path: Path) -> None:
    save(run, 1)
    save(run, 2).path.rename(tmp_path / "elsewhere")
    step_dir(run.checkpoints, 2).symlink_to(tmp_path / "elsewhere")
    assert steps(run) == [1]


# Falling back


def test_the_newest_whole_one_is_found_past_the_damaged(run: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3, 4):
        save(run, step)
    damage_file(step_dir(run.checkpoints, 4) / MANIFEST)
    (step_dir(run.checkpoints, 3) / "scaler.json").unlink()
    assert newest(run) == 2
    assert "step-000003: scaler.json: missing" in caplog.text and "step-000004" in caplog.text


def test_when_all_are_damaged_each_is_named(run: RunPaths) -> None:
    for step in (1, 2):
        (save(run, step).path / "scaler.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be trusted.*step-000002.*step-000001"):
        newest(run)


def test_folders_without_a_readable_manifest_never_mean_a_fresh_start(run: RunPaths) -> None:
    (save(run, 1).path / MANIFEST).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none has a readable manifest"):
        newest(run)


def test_a_run_without_checkpoints_has_none(run: RunPaths) -> None:
    assert newest(run) is None
    stage(run, 1)
    assert newest(run) is None


def test_an_exact_step_is_taken_or_refused_but_never_replaced(run: RunPaths) -> None:
    for step in (1, 2, 3):
        save(run, step)
    found = newest_verified(run.root, step=1)
    assert found is not None and found.step == 1
    (step_dir(run.checkpoints, 2) / "scaler.json").unlink()
    with pytest.raises(CheckpointError, match="step-000002: scaler"):
        newest_verified(run.root, step=2)
    with pytest.raises(CheckpointError, match="no checkpoint of step 9"):
        newest_verified(run.root, step=9)


def test_steps_beyond_six_digits_are_in_order(run: RunPaths) -> None:
    for step in (999_999, 1_000_000):
        save(run, step)
    assert steps(run) == [1_000_000, 999_999]
