"""The README.md of an exported model: what it was tuned on and how, how good it is, how to call it, its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.export.example_kind import Taught, taught
from launcher.export.hf_format import read_json
from launcher.export.source import ExportInfo, ExportSource
from launcher.runs.metrics import EvalRecord, Metrics, read_metrics


def model_card(source: ExportSource, info: ExportInfo) -> str:
    """Markdown with the YAML header the Hub reads."""
    sections = [
        _header(source, info),
        _title(source, info),
        _results(read_json(source.paths.eval), info.step),
        _data(source),
        _training(source),
        _loss(read_metrics(source.paths.metrics), info.step),
        _usage(info, taught(Path(source.derived.data_dir))),
        _limits(source, info),
        _licence(source),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def base_licence(base_dir: Path) -> str | None:
    """The licence named in the base model's README, such as apache-2.0; None where it names none."""
    readme = base_dir / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("license", "licence") and value.strip():
            return value.split(". ")[0].strip(" '\".").lower()
    return None


def _header(source: ExportSource, info: ExportInfo) -> str:
    adapter = source.is_adapter and not info.merged
    fields: dict[str, object] = {
        "base_model": source.config.model.name_or_path,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["launcher", "sft", info.method],
    }
    licence = base_licence(source.base_dir)
    if licence:
        fields = {"license": licence, **fields}
    # JSON values are YAML values, and need no thought about quoting.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _title(source: ExportSource, info: ExportInfo) -> str:
    kind = {"full": "All weights were tuned"}.get(info.method, f"A {info.method.upper()} adapter was tuned")
    form = " and is merged into the weights here." if info.merged else "."
    lines = [
        f"# {source.config.name or source.paths.root.name}",
        "",
        f"{source.config.model.name_or_path}, fine-tuned with launcher. {kind}{form}",
        f"These are the weights after optimizer step {info.step} of {source.derived.total_steps}, in {info.dtype} "
        f"({info.num_parameters:,} numbers in {info.num_tensors} tensors).",
    ]
    return "\n".join([*lines, *(f"\n> {warning}" for warning in info.warnings)])


def _results(result: Mapping[str, object], step: int) -> str:
    conditions = result.get("conditions")
    if not isinstance(conditions, dict) or not conditions:
        return ""
    rows = [
        [_label(name, scores), _share(scores, "exact_match"), _share(scores, "token_f1")]
        for name, scores in conditions.items()
    ]
    measured = result.get("step")
    note = "" if measured == step else f" They were measured on step {measured}, not on this one."
    loss = result.get("heldout_loss")
    loss_text = ""
    if isinstance(loss, dict) and all(isinstance(loss.get(key), float) for key in ("base", "tuned")):
        loss_text = f"\n\nHeld-out loss: {loss['base']:.4f} before, {loss['tuned']:.4f} after tuning."
    return (
        f"## Results\n\n{result.get('verdict', '')}\n\n"
        f"On {_count(result.get('examples'))}, with 95 % intervals.{note}\n\n"
        + _table(["", "exact match", "token F1"], rows)
        + loss_text
    )


def _count(examples: object) -> str:
    return f"{examples} held-out example{'' if examples == 1 else 's'}"


def _label(name: str, scores: Mapping[str, object]) -> str:
    shots = f" ({scores['shots']} examples)" if "shots" in scores else ""
    return name.replace("_", "-") + shots


def _share(scores: Mapping[str, object], key: str) -> str:
    value, interval = scores.get(key), scores.get(f"{key}_ci")
    if not isinstance(value, int | float):
        return ""
    text = f"{100 * value:.1f} %"
    if isinstance(interval, list) and len(interval) == 2:
        text += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return text


_KIND_OF_DATA = {
    Taught.chat: "Supervised examples",
    Taught.text: "Plain text, all of it learned,",
    Taught.mixed: "Supervised examples, and plain text that is all learned,",
}


def _data(source: ExportSource) -> str:
    folder = Path(source.derived.data_dir)
    rows = []
    for split in ("train", "validation"):
        meta = read_json(folder / split / "meta.json")
        if meta:
            counts = (meta.get(key) for key in ("num_examples", "num_tokens", "num_supervised_tokens"))
            rows.append([split, *(f"{count:,}" if isinstance(count, int) else "?" for count in counts)])
    origin = _data_origin(source.config)
    return "\n\n".join(
        part
        for part in (
            "## Data",
            f"{_KIND_OF_DATA[taught(folder)]} from {origin}; prepared data `{source.derived.data_key[:16]}`.",
            _table(["", "examples", "tokens", "of them learned"], rows),
            _audit(read_json(folder / "audit.json")),
        )
        if part
    )


def _data_origin(config: RunConfig) -> str:
    if config.data.mixture:
        return ", ".join(f"`{part.path}` (weight {part.weight:g})" for part in config.data.mixture)
    return f"`{config.data.path}`" if config.data.path else f"{len(config.data.inline)} examples in the configuration"


def _audit(audit: Mapping[str, object]) -> str:
    findings = audit.get("findings")
    if not isinstance(findings, list):
        return ""
    if not findings:
        return "The data audit found nothing to object to."
    lines = [
        f"- {finding.get('severity')}: {finding.get('count')} x {finding.get('what')} (`{finding.get('code')}`)"
        for finding in findings
        if isinstance(finding, dict)
    ]
    return "The data audit found:\n\n" + "\n".join(lines)


def _training(source: ExportSource) -> str:
    config, derived = source.config, source.derived
    rows = [
        ["method", config.method.kind.value],
        [
            "strategy",
            f"{config.strategy.kind.value}, {config.strategy.precision.value}, ranks: {derived.world_size}",
        ],
        ["optimizer steps", f"{derived.total_steps} ({derived.steps_per_epoch} an epoch)"],
        ["sequences per step", str(derived.global_sequences)],
        ["longest sequence", f"{config.data.seq_len_tokens} tokens, packing {'on' if config.data.packing else 'off'}"],
        [
            "peak learning rate",
            f"{derived.peak_lr:g}, {config.optim.schedule.value}, {derived.warmup_steps} warm-up steps",
        ],
        ["weight decay, clip", f"{config.optim.weight_decay:g}, {config.optim.grad_clip:g}"],
        ["seed", str(config.seed)],
    ]
    if source.is_adapter:
        method = config.method
        scale = ", rank-stabilised" if method.rslora else ""
        rows.insert(1, ["adapter", f"rank {method.rank}, alpha {method.alpha:g}{scale}, dropout {method.dropout:g}"])
        rows.insert(2, ["adapted modules", ", ".join(method.target_modules)])
    return "## Training\n\n" + _table(["setting", "value"], rows)


def _loss(metrics: Metrics, step: int) -> str:
    steps = [record for record in metrics.steps if record.step <= step]
    evals = [record for record in metrics.evals if record.step <= step]
    if not steps:
        return ""
    first, last = steps[0], steps[-1]
    text = f"Training loss went from {first.loss:.4f} (step {first.step}) to {last.loss:.4f} (step {last.step})."
    if not evals:
        return f"## Loss\n\n{text} There was no held-out data."
    return f"## Loss\n\n{text}\n\n" + _table(["step", "epoch", "held-out loss"], [_eval_row(r) for r in _thin(evals)])


def _eval_row(record: EvalRecord) -> list[str]:
    return [str(record.step), f"{record.epoch:.2f}", f"{record.loss:.4f}"]


def _thin(evals: list[EvalRecord], most: int = 12) -> list[EvalRecord]:
    """At most `most` of them, the last one always."""
    stride = -(-len(evals) // most)
    return evals[::-1][::stride][::-1]


_FORMAT = {
    Taught.chat: """\
The chat template in this folder is the format the model was tuned on, any system prompt and preamble included: ask in
it and in no other.""",
    Taught.text: """\
The model was tuned on plain text, without a chat template: give it the beginning of a text, and it goes on. The chat
template in this folder is only carried along; nothing was tuned in it.""",
    Taught.mixed: """\
The chat template in this folder is the format the model was tuned to answer in, any system prompt and preamble
included. It was tuned on plain text as well: the beginning of a text, without the template, is continued.""",
}
_CHAT_PROMPT = """\
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
_TEXT_PROMPT = """\
prompt = tokenizer("...", return_tensors="pt", return_token_type_ids=False)"""


def _usage(info: ExportInfo, kind: Taught) -> str:
    adapter = info.method != "full" and not info.merged
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = f"from transformers import {loader}, AutoTokenizer"
    if adapter:
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
    # A dot, because where the folder will lie is not known here, and the path on this machine is nobody's business.
    code = f"""\
## How to call it

{_FORMAT[kind]}

```python
{imports}

folder = "."  # where this file lies
model = {loader}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
{_TEXT_PROMPT if kind is Taught.text else _CHAT_PROMPT}
answer = model.generate(**prompt, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
    if adapter:
        return code + "\n\nTo serve it, merge the adapter first: `launcher export RUN --to DIR --merge`."
    if kind is Taught.text:
        return code + "\n\nAs an OpenAI-compatible server: `vllm serve DIR`, asked at /v1/completions."
    return code + "\n\nAs an OpenAI-compatible server: `vllm serve DIR` or `transformers serve DIR`."


_LIMIT = {
    Taught.chat: (
        "- Tuned to answer as the assistant in the chat format of this folder; what it says elsewhere was not trained."
    ),
    Taught.text: "- Tuned to go on with texts like its own; answering questions in a chat was not trained.",
    Taught.mixed: (
        "- Tuned to answer as the assistant in the chat format of this folder, and to go on with texts like its own."
    ),
}


def _limits(source: ExportSource, info: ExportInfo) -> str:
    positions = read_json(source.base_dir / "config.json").get("max_position_embeddings")
    longest = f" (the base model allows {positions:,} tokens)" if isinstance(positions, int) else ""
    seq_len_tokens = source.config.data.seq_len_tokens
    kind = taught(Path(source.derived.data_dir))
    room = "A text" if kind is Taught.text else "Input and answer together"
    lines = [
        f"- {room}: tuned on examples of at most {seq_len_tokens:,} tokens{longest}.",
        "- Text in, text out; no images, no sound.",
        _LIMIT[kind],
        "- It can be wrong, and it can repeat what is in its examples.",
    ]
    if info.method != "full" and not info.merged:
        lines.append(f"- An adapter only: it needs its base model, {source.config.model.name_or_path}.")
    return "## Limits\n\n" + "\n".join(lines)


def _licence(source: ExportSource) -> str:
    licence = base_licence(source.base_dir)
    named = f"It is published under: {licence}." if licence else "Its licence is not stated in its folder; look it up."
    return (
        f"## Base model and licence\n\nThe base is {source.config.model.name_or_path}. {named} "
        "The licence of the base, and that of the data, hold for this model too."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])
