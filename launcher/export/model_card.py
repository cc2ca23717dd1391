"""The README.md of an exported model: what it was tuned on and how, how good it is, how to call it, its limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from launcher.config.schema import RunConfig
from launcher.export.example_kind import ExampleKind, example_kind
from launcher.export.hf_format import read_json
from launcher.export.source import ExportInfo, ExportSource
from launcher.runs.metrics import Metrics, read_metrics

_CARD = """\
---
{header}
---

# {name}

{base}, fine-tuned with launcher. {method}
These are the weights after optimizer step {info.step} of {derived.total_steps}, in {info.dtype} \
({info.num_parameters:,} numbers in {info.num_tensors} tensors).

{warnings}

{results}

## Data

{kind.data} from {origin}; prepared data `{derived.data_key:.16}`.

{splits}

{findings}

## Training

{settings}

{loss}

## How to call it

{kind.format}

{usage}

## Limits

- {kind.length}: tuned on examples of at most {seq_len_tokens:,} tokens{longest}.
- Text in, text out; no images, no sound.
- {kind.limit}
- It can be wrong, and it can repeat what is in its examples.
{needs_base}

## Base model and licence

The base is {base}. {licence} The licence of the base, and that of the data, hold for this model too.
"""

_CHAT_PROMPT = """\
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
_SERVE_CHAT = "As an OpenAI-compatible server: `vllm serve DIR` or `transformers serve DIR`."


@dataclass(frozen=True, slots=True)
class _Kind:
    """Texts of the card about a kind of training examples."""

    data: str
    format: str
    limit: str
    length: str = "Input and answer together"
    prompt: str = _CHAT_PROMPT
    serve: str = _SERVE_CHAT


_KINDS = {
    ExampleKind.chat: _Kind(
        data="Supervised examples",
        format="""\
The chat template in this folder is the format the model was tuned on, any system prompt and preamble included: ask in
it and in no other.""",
        limit="Tuned to answer as the assistant in the chat format of this folder; nothing else was trained.",
    ),
    ExampleKind.text: _Kind(
        data="Plain text, all of it learned,",
        format="""\
The model was tuned on plain text, without a chat template: give it the beginning of a text, and it goes on. The chat
template in this folder is only carried along; nothing was tuned in it.""",
        limit="Tuned to go on with texts like its own; answering questions in a chat was not trained.",
        length="A text",
        prompt='prompt = tokenizer("...", return_tensors="pt", return_token_type_ids=False)',
        serve="As an OpenAI-compatible server: `vllm serve DIR`, asked at /v1/completions.",
    ),
    ExampleKind.mixed: _Kind(
        data="Supervised examples, and plain text that is all learned,",
        format="""\
The chat template in this folder is the format the model was tuned to answer in, any system prompt and preamble
included. It was tuned on plain text as well: the beginning of a text, without the template, is continued.""",
        limit="Tuned to answer as the assistant in this folder's chat format, and to go on with texts like its own.",
    ),
}


def model_card(source: ExportSource, info: ExportInfo) -> str:
    """Markdown with the YAML header the Hub reads."""
    config, data_dir = source.config, Path(source.derived.data_dir)
    base, licence = config.model.name_or_path, base_licence(source.base_dir)
    kind = _KINDS[example_kind(data_dir)]
    is_adapter = source.is_adapter and not info.merged
    header = ModelCardData(
        license=licence,
        base_model=base,
        base_model_relation="adapter" if is_adapter else "finetune",
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["launcher", "sft", info.method],
    )
    tuned = f"A {info.method.upper()} adapter was tuned" if source.is_adapter else "All weights were tuned"
    positions = read_json(source.base_dir / "config.json").get("max_position_embeddings")
    card = _CARD.format(
        header=header.to_yaml(),
        name=config.name or source.paths.root.name,
        base=base,
        info=info,
        derived=source.derived,
        kind=kind,
        method=tuned + (" and is merged into the weights here." if info.merged else "."),
        warnings="\n".join(f"> {warning}\n" for warning in info.warnings),
        results=_results(read_json(source.paths.eval), info.step),
        origin=_data_origin(config),
        splits=_splits(data_dir),
        findings=_findings(read_json(data_dir / "audit.json")),
        settings=_settings(source),
        loss=_loss(read_metrics(source.paths.metrics), info.step),
        usage=_usage(kind, is_adapter=is_adapter),
        seq_len_tokens=config.data.seq_len_tokens,
        longest=f" (the base model allows {positions:,} tokens)" if isinstance(positions, int) else "",
        needs_base=f"- An adapter only: it needs its base model, {base}." if is_adapter else "",
        licence=f"It is published under: {licence}."
        if licence
        else "Its licence is not stated in its folder; look it up.",
    )
    return re.sub(r"\n{3,}", "\n\n", card)


def base_licence(base_dir: Path) -> str | None:
    """The licence named in the base model's README, such as apache-2.0; None where it names none."""
    readme = base_dir / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = re.search(r"^\s*licen[sc]e\s*:\s*(\S.*)$", text, re.MULTILINE | re.IGNORECASE)
    return found[1].split(". ")[0].strip(" '\".").lower() if found else None


def _results(result: Mapping[str, object], step: int) -> str:
    conditions, loss = result.get("conditions"), result.get("heldout_loss")
    if not isinstance(conditions, dict) or not conditions:
        return ""
    rows = []
    for name, scores in conditions.items():
        shots = f" ({scores['shots']} examples)" if "shots" in scores else ""
        rows.append([name.replace("_", "-") + shots, _share(scores, "exact_match"), _share(scores, "token_f1")])
    examples, measured = result.get("examples"), result.get("step")
    note = "" if measured == step else f" They were measured on step {measured}, not on this one."
    loss_text = ""
    if isinstance(loss, dict) and all(isinstance(loss.get(key), float) for key in ("base", "tuned")):
        loss_text = f"\n\nValidation loss: {loss['base']:.4f} before, {loss['tuned']:.4f} after tuning."
    return (
        f"## Results\n\n{result.get('verdict', '')}\n\n"
        f"On {examples} validation example{'' if examples == 1 else 's'}, with 95 % intervals.{note}\n\n"
        + _table(["", "exact match", "token F1"], rows)
        + loss_text
    )


def _share(scores: Mapping[str, object], key: str) -> str:
    value, interval = scores.get(key), scores.get(f"{key}_ci")
    if not isinstance(value, int | float):
        return ""
    text = f"{100 * value:.1f} %"
    if isinstance(interval, list) and len(interval) == 2:
        text += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return text


def _data_origin(config: RunConfig) -> str:
    if config.data.mixture:
        return ", ".join(f"`{part.path}` (weight {part.weight:g})" for part in config.data.mixture)
    return f"`{config.data.path}`" if config.data.path else f"{len(config.data.inline)} examples in the configuration"


def _splits(data_dir: Path) -> str:
    rows = []
    for split in ("train", "validation"):
        if meta := read_json(data_dir / split / "meta.json"):
            counts = (meta.get(key) for key in ("num_examples", "num_tokens", "num_supervised_tokens"))
            rows.append([split, *(f"{count:,}" if isinstance(count, int) else "?" for count in counts)])
    return _table(["", "examples", "tokens", "of them learned"], rows) if rows else ""


def _findings(audit: Mapping[str, object]) -> str:
    findings = audit.get("findings")
    if not isinstance(findings, list):
        return ""
    lines = [
        f"- {finding.get('severity')}: {finding.get('count')} x {finding.get('what')} (`{finding.get('code')}`)"
        for finding in findings
        if isinstance(finding, dict)
    ]
    return "\n".join(["The data audit found:\n", *lines]) if findings else "The data audit found nothing to object to."


def _settings(source: ExportSource) -> str:
    config, derived = source.config, source.derived
    method, strategy, optim, data = config.method, config.strategy, config.optim, config.data
    rows = {"method": method.kind.value}
    if source.is_adapter:
        scale = ", rank-stabilised" if method.rslora else ""
        rows["adapter"] = f"rank {method.rank}, alpha {method.alpha:g}{scale}, dropout {method.dropout:g}"
        rows["adapted modules"] = ", ".join(method.target_modules)
    rows |= {
        "strategy": f"{strategy.kind.value}, {strategy.precision.value}, ranks: {derived.world_size}",
        "optimizer steps": f"{derived.total_steps} ({derived.steps_per_epoch} an epoch)",
        "sequences per step": str(derived.global_sequences),
        "longest sequence": f"{data.seq_len_tokens} tokens, packing {'on' if data.packing else 'off'}",
        "peak learning rate": f"{derived.peak_lr:g}, {optim.schedule.value}, {derived.warmup_steps} warm-up steps",
        "weight decay, clip": f"{optim.weight_decay:g}, {optim.grad_clip:g}",
        "seed": str(config.seed),
    }
    return _table(["setting", "value"], rows.items())


def _loss(metrics: Metrics, step: int) -> str:
    steps = [record for record in metrics.steps if record.step <= step]
    evals = [record for record in metrics.evals if record.step <= step]
    if not steps:
        return ""
    first, last = steps[0], steps[-1]
    text = f"Training loss went from {first.loss:.4f} (step {first.step}) to {last.loss:.4f} (step {last.step})."
    if not evals:
        return f"## Loss\n\n{text} There was no validation data."
    # At most 12 rows, the last one always.
    shown = evals[::-1][:: -(-len(evals) // 12)][::-1]
    rows = [[str(record.step), f"{record.epoch:.2f}", f"{record.loss:.4f}"] for record in shown]
    return f"## Loss\n\n{text}\n\n" + _table(["step", "epoch", "validation loss"], rows)


def _usage(kind: _Kind, *, is_adapter: bool) -> str:
    loader = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    imports = f"from transformers import {loader}, AutoTokenizer"
    serve = kind.serve
    if is_adapter:
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
        serve = "To serve it, merge the adapter first: `launcher export RUN --to DIR --merge`."
    # A dot, because the reader's path is not known and the path on this host is private.
    return f"""\
```python
{imports}

folder = "."  # where this file is
model = {loader}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
{kind.prompt}
answer = model.generate(**prompt, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

{serve}"""


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])
