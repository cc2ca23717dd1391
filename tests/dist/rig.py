"""Small runs for tests: a tiny llama, prepared data with random tokens, a frozen run directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from launcher.config.topology import Topology
from launcher.plan.batch import derive
from tests.made import make_facts
from launcher.config.compose import compose_config
from launcher.config.frozen import save_config
from launcher.paths import RunPaths
from launcher.config.schema import FrozenRun
from launcher.data.prepared import SplitWriter, TokenBatch

VOCABULARY = 250


def write_split(folder: Path, *, num_examples: int, seed: int, packing: bool, seq_len_tokens: int = 64) -> None:
    """Examples of 6 to 40 random tokens; the second half of each is supervised."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 41, num_examples)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.uint8)
    writer = SplitWriter(folder)
    writer.write(
        TokenBatch(
            tokens=rng.integers(0, VOCABULARY, offsets[-1]).astype(np.int32),
            mask=mask,
            offsets=offsets,
            file=np.zeros(num_examples, np.int32),
            line=np.arange(1, num_examples + 1, dtype=np.int64),
        )
    )
    writer.finish(files=["random"], seq_len_tokens=seq_len_tokens, packing=packing, blocked=False)


def make_data(folder: Path, *, num_examples: int = 24, packing: bool = False) -> Path:
    """A prepared data set with a training and a held-out split."""
    write_split(folder / "train", num_examples=num_examples, seed=1, packing=packing)
    write_split(folder / "validation", num_examples=7, seed=2, packing=packing)
    return folder


def make_run(root: Path, model: Path, data: Path, *overrides: str, world_size: int = 1) -> Path:
    """A run directory frozen from defaults and overrides, with its first attempt."""
    from launcher.data.prepared import Prepared

    split = Prepared.open(data, "train")
    defaults = [
        f"model.name_or_path={model}",
        "data.path=builtin:next_number",
        f"data.packing={str(split.meta.packing).lower()}",
        "data.seq_len_tokens=64",
        "strategy.precision=fp32",
        "optim.lr=1e-3",
        "batch.global_sequences=4",
        "cluster.device=cpu",
        "cluster.threads_per_process=1",
        f"cluster.devices_per_node={world_size}",
        "track.wandb=disabled",
    ]
    given = {override.partition("=")[0] for override in overrides}
    config = compose_config([d for d in defaults if d.partition("=")[0] not in given] + list(overrides))
    derived = derive(
        config,
        make_facts(
            split.num_packs,
            pack_tokens=float(split.pack_lengths.mean()),
            longest=int(split.pack_lengths.max()),
        ),
        Topology("cpu", world_size, config.cluster.nodes),
        run_id="0123456789abcdef",
        model_dir=str(model),
    )
    derived = replace(derived, data_dir=str(data), data_key="key")
    root.mkdir(parents=True)
    paths = RunPaths(root)
    save_config(paths.config, FrozenRun(config=config, derived=derived))
    paths.attempts.mkdir()
    paths.data.symlink_to(data)
    new_attempt(root)
    return root


def new_attempt(root: Path) -> int:
    """Makes the next attempt folder; returns its number."""
    paths = RunPaths(root)
    number = len(list(paths.attempts.iterdir())) + 1
    paths.attempt(number).mkdir()
    return number


def with_accumulation(root: Path, *, micro_sequences: int, grad_accum_steps: int) -> None:
    """Refreezes a run with another division of the same global batch."""
    from launcher.config.frozen import load_config

    frozen = load_config(RunPaths(root).config)
    assert frozen.derived is not None
    frozen.derived = replace(frozen.derived, micro_sequences=micro_sequences, grad_accum_steps=grad_accum_steps)
    save_config(RunPaths(root).config, frozen)
