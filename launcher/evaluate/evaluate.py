"""Measures the tuned model against its base on validation examples: answers, scores, loss and a verdict."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from launcher.config.schema import MethodKind
from launcher.data.prepared import Prepared
from launcher.data.template import ChatFormat
from launcher.errors import RunError, UserError
from launcher.evaluate.answer import Answerer, Tokens
from launcher.evaluate.compare import (
    BASELINES,
    TUNED,
    Answers,
    EvalResult,
    LossDifference,
    TuningEffect,
    compare_answers,
    judge_tuning,
)
from launcher.evaluate.questions import Prompt, Question, as_question, read_examples, with_shots
from launcher.evaluate.retrieval import NearestTexts
from launcher.evaluate.scores import LabelLoss, mean_loss
from launcher.export.export import cached_export
from launcher.export.source import ExportSource, open_source
from launcher.files import find_record, write_json
from launcher.paths import RunPaths

ALL_CONDITIONS = (*BASELINES, TUNED)
DEFAULT_SHOTS = 5
NUM_SAMPLES = 20
# Enough for good shots; reading and indexing more would take longer than answering.
MAX_POOL = 20_000

StageProgress = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and of how much; 0 of 0 as long as that is not known."""


@dataclass(frozen=True, slots=True)
class _Task:
    """The same for all conditions."""

    questions: list[Question]
    tokens: list[Tokens]
    pool: list[Question]
    """Training examples that shots are taken from."""
    max_new_tokens: int = 0
    notes: list[str] = field(default_factory=list)


def evaluate_run(
    run_dir: Path,
    *,
    step: int | None = None,
    limit: int | None = None,
    shots: int = DEFAULT_SHOTS,
    max_new_tokens: int | None = None,
    conditions: Sequence[str] = ALL_CONDITIONS,
    progress: StageProgress | None = None,
) -> EvalResult:
    """Measures base and tuned model on the run's validation examples and writes eval.json.

    If eval.json holds a fuller evaluation of the same checkpoint, this one goes to eval-partial.json.

    Args:
        limit: validation examples at most, drawn with the run's seed; None: all.
        shots: worked examples shown to the base model in few_shot and retrieval.
        max_new_tokens: longest answer; None: a little longer than the longest expected one.
        conditions: of zero_shot, few_shot, retrieval, tuned.
    Raises: RunError when the run has no validation examples, DataError when they cannot be read again.
    """
    _refuse_unknown(conditions, shots)
    tell = progress or (lambda stage, done, of: None)
    source = open_source(run_dir, step)
    chat = ChatFormat.from_folder(Path(source.derived.data_dir))
    task = _make_task(source, limit, needs_pool=bool({"few_shot", "retrieval"} & set(conditions)))
    answers: dict[str, Answers] = {}
    tell("loading the base model", 0, 0)
    base = Answerer(source.base_dir, chat_format=chat)
    task = _fitting(task, base, max_new_tokens)
    for name in [name for name in BASELINES if name in conditions and task.questions]:
        prompts, fewest = _prompts(name, task, base, shots, seed=source.config.seed)
        answers[name] = _answer(base, prompts, task, tell, name, fewest or None)
    losses = {"base": base.losses(task.tokens, progress=lambda done, of: tell("validation loss of the base", done, of))}
    del base
    gc.collect()
    if TUNED in conditions:
        tell("loading the tuned model", 0, 0)
        tuned = tuned_answerer(source, chat)
        if task.questions:
            answers[TUNED] = _answer(tuned, [question.prompt for question in task.questions], task, tell, TUNED)
        losses[TUNED] = tuned.losses(
            task.tokens, progress=lambda done, of: tell("validation loss of the tuned", done, of)
        )
    return _write(source.paths, _result(source, task, answers, losses))


def tuned_answerer(source: ExportSource, chat: ChatFormat) -> Answerer:
    """The tuned model of a run: its export, or its base with the adapter."""
    folder = cached_export(source, merge=False)
    if source.is_adapter:
        return Answerer(source.base_dir, adapter=folder, chat_format=chat)
    return Answerer(folder, chat_format=chat)


def visible_answer(text: str) -> str:
    """An answer without the thinking that some models write first."""
    return re.sub(r"^.*</think>", "", text, flags=re.DOTALL)


def _refuse_unknown(conditions: Sequence[str], shots: int) -> None:
    unknown = [name for name in conditions if name not in ALL_CONDITIONS]
    if unknown or not conditions:
        raise UserError(f"--conditions {','.join(conditions)}: choose from {', '.join(ALL_CONDITIONS)}, with commas.")
    if shots < 1:
        raise UserError(f"--shots {shots}: at least 1; for none use --conditions zero_shot,tuned.")


def _make_task(source: ExportSource, limit: int | None, *, needs_pool: bool) -> _Task:
    folder, config = Path(source.derived.data_dir), source.config
    if not Prepared.exists(folder, "validation"):
        raise RunError(
            f"{source.paths.root} has no validation examples, and a model cannot be judged by the examples it was "
            "trained on. Start the run with data.validation_path=FILE or data.validation_fraction=0.1."
        )
    validation = Prepared.open(folder, "validation")
    chosen = _draw(validation.num_examples, limit, config.seed)
    tokens = [Tokens(validation.tokens(i).tolist(), validation.mask(i).tolist()) for i in chosen]
    questions = [as_question(example) for example in read_examples(config.data, folder, validation, chosen)]
    usable = [question for question in questions if question is not None]
    notes = []
    if len(usable) < len(questions):
        notes.append(
            f"{len(questions) - len(usable)} of {len(questions)} validation examples have no text answer (plain "
            "text, or a tool call); only their loss was measured."
        )
    pool: list[Question] = []
    if needs_pool and usable:
        train = Prepared.open(folder, "train")
        rows = _draw(train.num_examples, MAX_POOL, config.seed)
        found = (as_question(example) for example in read_examples(config.data, folder, train, rows))
        pool = [question for question in found if question is not None and not question.prompt.tools]
    if source.config.method.kind is MethodKind.qlora:
        notes.append("Measured with the adapter over the full-precision base; it was trained over a 4-bit one.")
    return _Task(usable, tokens, pool, notes=notes)


def _draw(count: int, limit: int | None, seed: int) -> list[int]:
    """All rows, or `limit` of them sampled with `seed`, in order."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(int(row) for row in np.random.default_rng(seed).choice(count, max(limit, 1), replace=False))


def _fitting(task: _Task, base: Answerer, max_new_tokens: int | None) -> _Task:
    """The task with its answer length, without questions that leave too little room for an answer."""
    longest = max((base.count(question.expected) for question in task.questions), default=0)
    room = max_new_tokens or longest + 8
    fits = [question for question in task.questions if len(base.encode(question.prompt)) + room <= base.max_tokens]
    if len(fits) < len(task.questions):
        task.notes.append(
            f"{len(task.questions) - len(fits)} questions were left out: with an answer of {room} tokens they exceed "
            f"the {base.max_tokens} tokens of this model."
        )
    return replace(task, questions=fits, max_new_tokens=room)


def _prompts(name: str, task: _Task, base: Answerer, shots: int, *, seed: int) -> tuple[list[Prompt], int]:
    """The prompts of a baseline, and the lowest number of worked examples in any of them."""
    if name == "zero_shot" or not task.pool:
        return [question.prompt for question in task.questions], 0
    generator = np.random.default_rng(seed)
    drawn = [task.pool[int(row)] for row in generator.permutation(len(task.pool))[:shots]]
    index = NearestTexts([question.asked for question in task.pool]) if name == "retrieval" else None
    prompts, fewest = [], shots
    for question in task.questions:
        # The nearest example comes last, right before the question.
        chosen = [task.pool[i] for i in index.search(question.asked, shots)][::-1] if index else drawn
        while True:
            prompt = with_shots(question, chosen, base.format.preamble)
            if not chosen or len(base.encode(prompt)) + task.max_new_tokens <= base.max_tokens:
                break
            chosen = chosen[1:]
        prompts.append(prompt)
        fewest = min(fewest, len(chosen))
    if fewest < shots:
        task.notes.append(f"{name}: some prompts had room for only {fewest} of {shots} examples.")
    return prompts, fewest


def _answer(
    model: Answerer, prompts: list[Prompt], task: _Task, tell: StageProgress, name: str, shots: int | None = None
) -> Answers:
    stage = f"{name.replace('_', '-')} answers"
    texts = model.answer(prompts, max_new_tokens=task.max_new_tokens, progress=lambda done, of: tell(stage, done, of))
    expected = [question.expected for question in task.questions]
    return Answers.score([visible_answer(text) for text in texts], expected, shots=shots)


def _result(
    source: ExportSource, task: _Task, answers: dict[str, Answers], losses: dict[str, list[LabelLoss]]
) -> EvalResult:
    conditions = {name: found.scores() for name, found in answers.items()}
    compared = compare_answers(answers)
    loss = {name: mean_loss(found) for name, found in losses.items()}
    has_both = TUNED in losses and any(found.labels for found in losses["base"])
    changed = LossDifference.between(losses[TUNED], losses["base"]) if has_both else None
    judgement = judge_tuning(conditions, compared, loss, changed)
    samples = [
        {
            "prompt": question.asked,
            "expected": question.expected,
            **{name: found.texts[index] for name, found in answers.items()},
        }
        for index, question in enumerate(task.questions[:NUM_SAMPLES])
    ]
    return EvalResult(
        examples=len(task.questions) or len(task.tokens),
        step=source.checkpoint.step,
        conditions=conditions,
        validation_loss=loss,
        loss_difference=changed,
        difference={f"vs_{name}": found for name, found in compared.items()},
        verdict=judgement.text,
        better=judgement.effect is TuningEffect.better,
        effect=judgement.effect,
        samples=samples,
        notes=task.notes,
    )


def _write(paths: RunPaths, result: EvalResult) -> EvalResult:
    """Writes the result, and returns it with its path."""
    path, before = paths.eval, find_record(EvalResult, paths.eval)
    if before is not None and _is_fuller(before, result):
        path = paths.eval_partial
        note = (
            f"eval.json holds a fuller evaluation of step {result.step} ({before.examples} examples) and was kept; "
            f"this one is in {path.name}."
        )
        result = replace(result, notes=[*result.notes, note])
    write_json(path, result.as_dict(), indent=2)
    return replace(result, path=path)


def _is_fuller(before: EvalResult, result: EvalResult) -> bool:
    """Whether an older result of the same checkpoint has more examples, or as many and conditions that this one lacks.

    One with fewer examples never counts as fuller.
    """
    lacks = before.conditions.keys() - result.conditions.keys()
    lacks |= before.validation_loss.keys() - result.validation_loss.keys()
    is_larger = before.examples > result.examples or (before.examples == result.examples and bool(lacks))
    return before.step == result.step and is_larger
