"""Run directories with a committed checkpoint of a tiny model, as training leaves them, without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from launcher.checkpoint import commit
from launcher.checkpoint.manifest import Manifest, TrainState, seal_file
from launcher.config.compose import compose_config
from launcher.config.frozen import save_config
from launcher.config.schema import FrozenRun, MethodKind, RunConfig
from launcher.config.topology import Topology
from launcher.data.prepared import SplitWriter, TokenBatch
from launcher.data.template import ChatFormat
from launcher.paths import RunPaths
from launcher.plan.batch import derive
from launcher.runs.events import EventWriter
from launcher.runs.metrics import EvalRecord, MetricsWriter, StepRecord
from tests.made import make_facts

RUN_ID = "0123456789abcdef"


def make_data(folder: Path, model: Path, *, system_prompt: str | None = None, preamble: str | None = None) -> Path:
    """A prepared data set of four examples in the model's own format."""
    folder.mkdir(parents=True)
    ChatFormat.from_folder(model, system_prompt=system_prompt, preamble=preamble).save(folder)
    writer = SplitWriter(folder / "train")
    lengths = np.array([5, 6, 7, 8])
    total = int(lengths.sum())
    writer.write(
        TokenBatch(
            tokens=np.arange(total, dtype=np.int32),
            mask=np.ones(total, dtype=np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            file=np.zeros(4, np.int32),
            line=np.arange(1, 5, dtype=np.int64),
        )
    )
    writer.finish(files=["train.jsonl"], seq_len_tokens=64, packing=False, blocked=False)
    return folder


def make_run(root: Path, model: Path, data: Path, *overrides: str) -> RunPaths:
    """A frozen run directory without checkpoints."""
    defaults = [
        f"name={root.name}",
        f"model.name_or_path={model}",
        "data.path=builtin:next_number",
        "data.seq_len_tokens=64",
        "optim.lr=1e-3",
        "cluster.device=cpu",
        "cluster.threads_per_process=1",
        "cluster.devices_per_node=1",
    ]
    given = {override.partition("=")[0] for override in overrides}
    config = compose_config([text for text in defaults if text.partition("=")[0] not in given] + list(overrides))
    derived = derive(
        config,
        make_facts(4, pack_tokens=6.5, longest=8),
        Topology("cpu", 1, config.cluster.nodes),
        run_id=RUN_ID,
        model_dir=str(model),
    )
    derived = replace(derived, data_dir=str(data), data_key="0f" * 32)
    root.mkdir(parents=True)
    paths = RunPaths(root)
    save_config(paths.config, FrozenRun(config=config, derived=derived))
    return paths


def add_checkpoint(
    run: RunPaths, config: RunConfig, weights: dict[str, Tensor], step: int, state: TrainState | None = None
) -> None:
    """Commits `weights` (under the names training has) as the checkpoint of `step`."""
    staging = commit.begin(run, step, 1)
    path = staging / "model-rank00000.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    journal = EventWriter(run.events, 1, 0)
    commit.publish(
        run,
        staging,
        Manifest(
            run_id=RUN_ID,
            attempt=1,
            world_size=1,
            strategy="single",
            method=config.method.kind.value,
            config_hash="x",
            state=state or TrainState(step=step, last_eval_step=step, last_eval_loss=1.0),
            files=[seal_file(staging, path)],
        ),
        journal=lambda sha256: journal.write("checkpoint_prepared", step=step, manifest_sha256=sha256),
    )
    journal.close()


def trained_model(
    model: Path, config: RunConfig, *, seed: int = 3, change: Callable[[str, Tensor], None] | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model whose trained weights moved at random, and these weights under the names training has.

    `change` may alter each trained tensor in place.
    """
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned: nn.Module = base
    if config.method.kind is not MethodKind.full:
        from launcher.train.model import add_adapters

        tuned = add_adapters(base, config.method, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
                if change is not None:
                    change(name, parameter)
    weights = {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}
    return tuned.eval(), weights


def add_metrics(run: RunPaths) -> None:
    """Six steps and two evaluations."""
    writer = MetricsWriter(run.metrics)
    for step in range(1, 7):
        writer.write(
            StepRecord(
                step=step,
                epoch=step / 3,
                loss=3.0 - step / 4,
                lr=1e-3,
                grad_norm=1.0,
                tokens=26,
                supervised_tokens=22,
                tokens_per_s=100.0,
                step_time_s=0.26,
                memory_gib=0.5,
                total_tokens=26 * step,
                attempt=1,
                time="2026-01-01T00:00:00.000Z",
            )
        )
        if step % 3 == 0:
            writer.write(
                EvalRecord(
                    step=step,
                    epoch=step / 3,
                    loss=2.5 - step / 5,
                    tokens=22,
                    eval_time_s=0.1,
                    epoch_end=True,
                    attempt=1,
                    time="2026-01-01T00:00:00.000Z",
                )
            )
    writer.close()
