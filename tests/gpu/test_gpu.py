"""What only a GPU can show: the varlen kernel, bf16 and fp16 training, ZeRO on nccl."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launcher.checkpoint.commit import newest_verified
from launcher.checkpoint.consolidate import full_state
from launcher.config.frozen import load_config, save_config
from launcher.config.schema import Attention, Precision
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.metrics import read_metrics
from launcher.train.attention import _segments, _varlen
from launcher.train.engines.replicated import ReplicatedEngine
from launcher.train.loop import train_loop
from launcher.train.main import prepare_run, start_or_resume
from launcher.train.recorder import Recorder
from launcher.train.run import Run
from launcher.train.world import World
from tests.dist.rig import make_data, make_run, new_attempt
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.gpu

# Without a GPU only a dry run comes here (tests/gpu/conftest.py); it shows that the code runs.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [130, 1, 64, 63, 257, 7]
STEPS = ["optim.max_steps=12", "optim.lr=1e-2", "optim.schedule=constant", "batch.micro_sequences=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("gpu") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("gpu") / "data")


def cuda_run(root: Path, model: Path, data: Path, *overrides: str) -> Path:
    """The small run of tests/dist/rig.py, refrozen for one GPU."""
    run_dir = make_run(root, model, data, f"cluster.device={DEVICE}", *overrides)
    if DEVICE == "cpu":
        return run_dir
    config = RunPaths(run_dir).config
    frozen = load_config(config)
    assert frozen.derived is not None
    half = frozen.config.strategy.precision is not Precision.fp32
    attention = Attention.varlen if half else Attention.segments
    frozen.derived = replace(frozen.derived, device="cuda", attention=attention.value)
    save_config(config, frozen)
    return run_dir


def start(run_dir: Path, attempt: int, *, stop_after: int | None = None) -> int:
    """Trains in a process of its own, as a rank does; returns its exit code."""
    code = (
        "import os\n"
        "from launcher.worker import _guarded\n"
        "from tests.dist.trials import train\n"
        f"os._exit(_guarded(lambda: 0 if train({str(run_dir)!r}, {attempt}, {stop_after}) == 'DONE' else 1)[0])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode in (ExitCode.DONE, ExitCode.PREEMPTED), ended.stderr[-4000:]
    return ended.returncode


def losses(run_dir: Path) -> list[float]:
    return [record.loss for record in read_metrics(RunPaths(run_dir).metrics).steps]


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("window", [None, 20])
def test_the_varlen_kernel_equals_segments(kv_heads: int, window: int | None) -> None:
    dice = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), 64) for heads in (8, kv_heads, kv_heads)]
    exact = [torch.randn(shape, generator=dice, device="cuda") for shape in shapes]
    bounds = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)

    def value_and_gradients(kernel: object, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in exact]
        out, _ = kernel(  # type: ignore[operator]
            nn.Module(), *inputs, None, cu_seq_lens_q=bounds, max_length_q=max(LENGTHS), sliding_window=window
        )
        weight = torch.linspace(-1, 1, out.numel(), device="cuda").reshape(out.shape)
        gradients = torch.autograd.grad((out.float() * weight).sum(), inputs)
        return [x.float() for x in (out, *gradients)]

    wanted = value_and_gradients(_segments, torch.float32)
    found = value_and_gradients(_varlen, torch.bfloat16)
    for name, mine, theirs in zip(("output", "query", "key", "value"), found, wanted, strict=True):
        difference = (mine - theirs).norm() / theirs.norm()
        assert difference < 0.02, f"{name}: relative difference {difference:.3f}"


def test_an_example_never_changes_another_on_a_gpu() -> None:
    dice = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(1, 4, sum(LENGTHS), 64, generator=dice, device="cuda").bfloat16() for _ in range(3)]
    bounds = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    before, _ = _varlen(nn.Module(), *inputs, None, cu_seq_lens_q=bounds)
    start, end = list(pairwise(bounds.tolist()))[2]
    for x in inputs:
        x[:, :, start:end] += 1
    after, _ = _varlen(nn.Module(), *inputs, None, cu_seq_lens_q=bounds)
    assert torch.equal(after[:, :start], before[:, :start]) and torch.equal(after[:, end:], before[:, end:])
    assert not torch.equal(after[:, start:end], before[:, start:end])


@pytest.mark.dry_run
@pytest.mark.parametrize("strategy", ["single", "zero2", "zero3"])
def test_bf16_trains_stops_and_goes_on(tmp_path: Path, model: Path, data: Path, strategy: str) -> None:
    settings = [*STEPS, "strategy.precision=bf16", f"strategy={strategy}"]
    golden = cuda_run(tmp_path / "golden", model, data, *settings)
    assert start(golden, 1) == ExitCode.DONE
    assert len(losses(golden)) == 12
    assert sum(losses(golden)[-3:]) < sum(losses(golden)[:3])

    run = cuda_run(tmp_path / "run", model, data, *settings)
    assert start(run, 1, stop_after=4) == ExitCode.PREEMPTED
    assert start(run, new_attempt(run)) == ExitCode.DONE
    # Not bitwise: flash attention's backward adds up in no fixed order.
    assert losses(run) == pytest.approx(losses(golden), rel=0.02)
    checkpoint = newest_verified(run)
    assert checkpoint is not None and checkpoint.step == 12
    assert all(tensor.isfinite().all() for tensor in full_state(checkpoint.path).values())


def test_fp16_skips_steps_until_its_loss_scale_fits_and_then_trains(tmp_path: Path, model: Path, data: Path) -> None:
    run = open_run(RunPaths(cuda_run(tmp_path / "run", model, data, *STEPS, "strategy.precision=fp16")))
    assert isinstance(run.engine, ReplicatedEngine) and run.recorder is not None
    run.engine._scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    state = train_loop(run, start_or_resume(run))
    run.recorder.close()
    records = read_metrics(run.paths.metrics).steps
    assert state.step == len(records) == 12
    applied = [record.grad_norm < float("inf") for record in records]
    assert not applied[0] and sum(applied) >= 4
    assert records[-1].loss < records[0].loss


def open_run(paths: RunPaths) -> Run:
    """A run on this process's GPU, ready for its first step."""
    frozen = load_config(paths.config)
    assert frozen.derived is not None
    recorder = Recorder(paths, frozen.derived, attempt=1)
    world = World(rank=0, size=1, device=torch.device("cuda", 0))
    return prepare_run(paths, frozen.config, frozen.derived, attempt=1, world=world, recorder=recorder)
