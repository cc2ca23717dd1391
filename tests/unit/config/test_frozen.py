"""config.yaml: exactly what was frozen comes back, or nothing does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.config.compose import compose_config
from launcher.config.frozen import config_hash, load_config, save_config
from launcher.config.schema import SCHEMA_VERSION, DataConfig, Derived, FrozenRun, MethodKind, RunConfig, TrackConfig
from launcher.errors import RunError
from tests.made import make_derived

DERIVED = make_derived(model_dir="/models/a b", world_size=2, peak_lr=1e-4, warmup_steps=1)


def frozen_quickstart() -> FrozenRun:
    return FrozenRun(config=compose_config(["experiment=quickstart"]), derived=DERIVED)


def test_a_frozen_run_comes_back_equal(tmp_path: Path) -> None:
    frozen = frozen_quickstart()
    save_config(tmp_path / "config.yaml", frozen)
    assert load_config(tmp_path / "config.yaml") == frozen


YAML_WORDS = ["???", "null", "~", "1e5", "yes", "- a", "a: b", "&x", "*x", "---", "...", "%YAML", "#", "'", '"', "\\"]
HOSTILE = [
    "${oc.env:HOME}",
    "${",
    "!!python/object:os.system",
    "\x00",
    "\x85",
    "\ufeff",
    "\u2028",
    "a\r\nb",
    " ",
    "",
    "\t",
]
TEXT = st.text(max_size=60) | st.sampled_from(YAML_WORDS + HOSTILE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=TEXT.filter(lambda text: text != "???"),
    tags=st.lists(TEXT.filter(lambda text: text != "???"), max_size=3),
    inline=st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=3),
    lr=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(),
)
@example(prompt="", tags=[], inline=[{"score": float("inf"), "nested": [-float("inf")]}], lr=None, seed=0)
def test_any_text_and_number_survives(
    tmp_path: Path, prompt: str, tags: list[str], inline: list[dict[str, object]], lr: float | None, seed: int
) -> None:
    config = RunConfig(data=DataConfig(system_prompt=prompt, inline=inline), track=TrackConfig(tags=tags), seed=seed)
    config.model.name_or_path = "m"
    config.optim.lr = lr
    save_config(tmp_path / "config.yaml", FrozenRun(config=config, derived=DERIVED))
    assert load_config(tmp_path / "config.yaml").config == config


def edited(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "config.yaml"
    save_config(path, frozen_quickstart())
    values = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *sections, leaf = dotted.split("__")
        place = values
        for name in sections:
            place = place[name]
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, f"written with schema 99, but this launcher reads up to {SCHEMA_VERSION}"),
        ({"schema_version": "one"}, "not a version number"),
        ({"schema_version": 0}, "not a version number"),
        ({"extra": 1}, "extra = 1: there is no such setting"),
        ({"config__optim__lrr": 1}, "config.optim.lrr = 1: there is no such setting. Did you mean config.optim.lr?"),
        ({"config__optim__schedule": None}, "config.optim.schedule = None: is missing"),
        ({"config__seed": "zero"}, "config.seed = 'zero': must be a whole number"),
        ({"config__strategy__kind": "zero9"}, "config.strategy.kind = 'zero9': is not one of the choices"),
        ({"derived__world_size": None}, "derived.world_size = None: is missing"),
        ({"derived__total_steps": 1.5}, "derived.total_steps = 1.5: must be a whole number"),
    ],
)
def test_a_changed_file_is_refused_with_the_place(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RunError) as caught:
        load_config(edited(tmp_path, **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [1\n", b"\xff\xfe", b"!!python/object/apply:os.getpid []\n"])
def test_something_else_in_its_place_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunError):
        load_config(tmp_path / "config.yaml")


def test_a_folder_without_the_file_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_config(tmp_path / "config.yaml")


def test_a_failed_freeze_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    save_config(path, frozen_quickstart())
    before = path.read_bytes()

    def no_disk(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", no_disk)
    with pytest.raises(OSError, match="disk full"):
        save_config(path, FrozenRun(config=compose_config(["experiment=quickstart", "seed=9"]), derived=DERIVED))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_thawing_needs_no_hydra(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(path, frozen_quickstart())
    code = (
        "import sys, pathlib; from launcher.config.frozen import load_config; load_config(pathlib.Path(sys.argv[1])); "
        "assert 'hydra' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=180)


@pytest.mark.parametrize(
    "override", ["seed=1", "method=lora", "optim.lr=1e-3", "batch.global_sequences=4", "strategy.precision=fp32"]
)
def test_the_hash_changes_with_what_makes_another_training(override: str) -> None:
    base = compose_config(["experiment=quickstart"])
    assert config_hash(base, "a") != config_hash(compose_config(["experiment=quickstart", override]), "a")


@pytest.mark.parametrize(
    "override", ["name=x", "runs_dir=/tmp/x", "strategy=zero3", "track=no_wandb", "cluster.threads_per_process=2"]
)
def test_the_hash_stays_where_the_training_is_the_same(override: str) -> None:
    base = compose_config(["experiment=quickstart"])
    assert config_hash(base, "a") == config_hash(compose_config(["experiment=quickstart", override]), "a")


def test_the_hash_follows_the_prepared_data() -> None:
    base = compose_config(["experiment=quickstart"])
    assert config_hash(base, "a") != config_hash(base, "b")


def test_every_enum_is_frozen_by_value(tmp_path: Path) -> None:
    config = compose_config(["experiment=quickstart", "method=dora"])
    save_config(tmp_path / "config.yaml", FrozenRun(config=config, derived=DERIVED))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["config"]["method"]["kind"] == "dora"
    assert load_config(tmp_path / "config.yaml").config.method.kind is MethodKind.dora


def test_derived_values_are_all_frozen(tmp_path: Path) -> None:
    save_config(tmp_path / "config.yaml", frozen_quickstart())
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["derived"]
    assert set(written) == {spec.name for spec in fields(Derived)}
