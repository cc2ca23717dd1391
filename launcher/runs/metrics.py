"""metrics.jsonl: one line per optimizer step and per evaluation, written by rank 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.errors import RecordError
from launcher.files import record_from
from launcher.runs import jsonl


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, over all ranks."""

    step: int
    """Optimizer steps done, this one included."""
    epoch: float
    """Passes over the training data done, as a fraction."""
    loss: float
    """Mean over the supervised tokens of the step, natural log."""
    lr: float
    """Learning rate this step used."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    supervised_tokens: int
    tokens_per_s: float
    step_time_s: float
    memory_gib: float
    """Most memory any one rank held so far: of its device, or resident on a CPU."""
    total_tokens: int
    """Tokens seen since step 1, over all attempts."""
    attempt: int
    time: str
    data_time_s: float = 0.0
    """The part of step_time_s in which rank 0 waited for its examples."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further numbers of the objective; left out of the line when there are none."""


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One evaluation on the validation examples."""

    step: int
    epoch: float
    loss: float
    """Mean over all supervised validation tokens."""
    tokens: int
    """Supervised ones."""
    eval_time_s: float
    epoch_end: bool
    """Whether it closes an epoch."""
    attempt: int
    time: str


Record = StepRecord | EvalRecord
_KINDS: dict[str, type[StepRecord] | type[EvalRecord]] = {"train": StepRecord, "eval": EvalRecord}


@dataclass(frozen=True, slots=True)
class Metrics:
    """A run's numbers, rising by step: what a rewound attempt had after its last checkpoint is gone."""

    steps: list[StepRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)


class MetricsWriter(jsonl.AppendLog):
    """Appends to metrics.jsonl; every line is in the file when `write` returns. Ranks: 0 only."""

    def write(self, record: Record) -> None:
        """Adds one line.

        Raises: OSError: the disk does not take it.
        """
        kind = "train" if isinstance(record, StepRecord) else "eval"
        fields = {name: value for name, value in asdict(record).items() if name != "metrics" or value}
        self.append({"kind": kind, **fields})


def read_metrics(path: Path) -> Metrics:
    """The numbers in metrics.jsonl that count; empty where there is no file.

    An attempt starts again from its checkpoint, so its first line removes everything an older attempt wrote for what
    it does and later, and lines an older attempt still writes afterwards do not count.
    """
    history = History()
    for record in read_every_record(path):
        history.add(record)
    return history.metrics()


def read_every_record(path: Path) -> list[Record]:
    """Every line of metrics.jsonl, steps that a later attempt made again included, in the order they were written."""
    lines, _ = jsonl.read_lines(path)
    return [record for line in lines if (record := parse_line(line)) is not None]


class History:
    """Applies records in the order they were written, and holds what is true after each."""

    def __init__(self) -> None:
        self._attempt = 0
        self._steps: dict[int, StepRecord] = {}
        self._evals: dict[int, EvalRecord] = {}

    def add(self, record: Record) -> None:
        if record.attempt < self._attempt:
            return
        if record.attempt > self._attempt:
            self._attempt = record.attempt
            # One that begins with an evaluation continues from the checkpoint of that very step, which was trained.
            kept = record.step if isinstance(record, EvalRecord) else record.step - 1
            self._steps = {step: old for step, old in self._steps.items() if step <= kept}
            self._evals = {step: old for step, old in self._evals.items() if step < record.step}
        if isinstance(record, StepRecord):
            self._steps[record.step] = record
        else:
            self._evals[record.step] = record

    def metrics(self) -> Metrics:
        return Metrics(
            steps=[self._steps[step] for step in sorted(self._steps)],
            evals=[self._evals[step] for step in sorted(self._evals)],
        )


def parse_line(line: dict[str, object]) -> Record | None:
    """The record a line of metrics.jsonl holds; None for a kind or shape this version does not know."""
    kind = _KINDS.get(str(line.get("kind")))
    try:
        return record_from(kind, line) if kind is not None else None
    except RecordError:
        return None
