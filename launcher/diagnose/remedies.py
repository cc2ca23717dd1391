"""Remedies after an attempt: the one setting to change, and the next step."""

from __future__ import annotations

from launcher.config.schema import Precision, RunConfig
from launcher.diagnose.causes import Cause
from launcher.diagnose.evidence import Evidence
from launcher.diagnose.verdict import ACTIONS, Action
from launcher.errors import VerdictClass
from launcher.runs.heartbeat import Phase

_LIMIT_OF_PHASE: dict[str, str] = {
    Phase.meet: "meet_limit_s",
    Phase.load: "load_limit_s",
    Phase.rehearse: "load_limit_s",
    Phase.save: "save_limit_s",
    Phase.finish: "save_limit_s",
}


def setting_to_change(cause: Cause, evidence: Evidence) -> str:
    """The one setting most likely to help, as one would type it for a new run; empty where none does. Pure."""
    config = evidence.config
    if config is None:
        return ""
    match cause.verdict_class:
        case VerdictClass.out_of_memory_gpu:
            return _less_gpu_memory(config)
        case VerdictClass.out_of_memory_host:
            return _more_host_memory(config)
        case VerdictClass.timeout:
            return _within_the_limit(config, evidence)
        case VerdictClass.rendezvous if config.cluster.is_slurm and not cause.node:
            # Elsewhere than in a job the ranks have the caller's environment, and the setting is refused.
            return "cluster.environment={NCCL_SOCKET_IFNAME:INTERFACE}"
        case VerdictClass.rendezvous | VerdictClass.node_failure:
            return _exclude(config, cause.node)
        case VerdictClass.non_finite:
            if config.strategy.precision is Precision.fp16:
                return "strategy.precision=bf16"
            return f"optim.lr={evidence.derived.peak_lr / 2:.3g}" if evidence.derived is not None else ""
        case VerdictClass.disk:
            return "checkpoint.keep_last=1" if config.checkpoint.keep_last > 1 else ""
        case VerdictClass.hang:
            return _longer_limit(config, evidence)
        case _:
            return ""


def _less_gpu_memory(config: RunConfig) -> str:
    batch, half = config.batch, config.batch.micro_tokens // 2
    if batch.micro_sequences is not None and batch.micro_sequences > 1:
        return f"batch.micro_sequences={batch.micro_sequences // 2}"
    # A micro-batch holds at least one sequence: below its length the setting changes nothing.
    if batch.micro_sequences is None and half >= config.data.seq_len_tokens:
        return f"batch.micro_tokens={half}"
    if not config.strategy.activation_checkpointing:
        return "strategy.activation_checkpointing=true"
    return f"data.seq_len_tokens={config.data.seq_len_tokens // 2}"


def _more_host_memory(config: RunConfig) -> str:
    asked = config.cluster.memory_gib_per_node
    if config.cluster.is_slurm and asked != 0:
        # 0 asks Slurm for all there is.
        return f"cluster.memory_gib_per_node={2 * asked:g}" if asked else "cluster.memory_gib_per_node=0"
    if config.strategy.offload_params:
        return "strategy.offload_params=false"
    return "strategy.offload_optimizer=false" if config.strategy.offload_optimizer else ""


def _within_the_limit(config: RunConfig, evidence: Evidence) -> str:
    if evidence.checkpoint_after > max(0, evidence.checkpoint_before):
        return ""
    done = evidence.step_end - evidence.step_start
    if done >= 2:
        return f"checkpoint.save_every_steps={max(1, done // 2)}"
    limit = config.cluster.walltime_min
    return f"cluster.walltime_min={2 * limit}" if limit else ""


def _exclude(config: RunConfig, node: str) -> str:
    if not node or not config.cluster.is_slurm:
        return ""
    present = config.cluster.exclude
    return f"cluster.exclude='{present},{node}'" if present else f"cluster.exclude={node}"


def _longer_limit(config: RunConfig, evidence: Evidence) -> str:
    stall = evidence.report.stall
    name = _LIMIT_OF_PHASE.get(stall.phase) if stall is not None else None
    return f"fault.{name}={2 * getattr(config.fault, name):g}" if name is not None else ""


_ADVICE = {
    VerdictClass.configuration: "correct what the message names, then start the run again",
    VerdictClass.data: "correct the examples it names; launcher prepare checks them without training",
    VerdictClass.non_finite: "look at the examples it names; a smaller learning rate needs a new run",
    VerdictClass.checkpoint: "see what is damaged: launcher verify {run}",
    VerdictClass.superseded: "nothing: look at the newer attempt with launcher status {run}",
    VerdictClass.cancelled: "launcher resume {run} continues from {from_step}; the quality of such a model is unknown",
}


def what_to_do(cause: Cause, evidence: Evidence, setting: str) -> str:
    """The next step, or what happens without one. Pure."""
    run = evidence.run_name
    if cause.verdict_class is VerdictClass.done:
        return f"launcher eval {run}"
    step = evidence.checkpoint_after
    from_step = f"step {step}" if step > 0 else "the beginning"
    advice = _ADVICE.get(cause.verdict_class, "").format(run=run, from_step=from_step)
    if cause.verdict_class is VerdictClass.configuration and "No module named" in cause.error:
        where = f" on node {cause.node}" if cause.node else ""
        advice = f"the environment{where} is not the one the run was made in: install what is missing there"
    if cause.verdict_class is VerdictClass.disk:
        full = ", ".join(f"{folder} has {mib:.0f} MiB left" for folder, mib in evidence.full.items())
        advice = f"make room{f': {full}' if full else ' where the run directory lies'}"
    if cause.verdict_class in (VerdictClass.configuration, VerdictClass.disk):
        advice += f"; launcher resume {run} continues from {from_step}"
    if ACTIONS[cause.verdict_class] is Action.stop or cause.verdict_class is VerdictClass.disk:
        return advice
    by_itself = evidence.record is not None and evidence.record.starter == "slurm"
    again = (
        f"it continues by itself from {from_step}" if by_itself else f"launcher resume {run} continues from {from_step}"
    )
    return f"{again}; if it happens again, start a new run with {setting}" if setting else again
