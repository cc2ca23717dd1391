"""launcher prepare: reads, masks, audits and packs the examples, and shows some as the model sees them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from launcher.commands.console import printable, progress_view
from launcher.commands.options import DEFAULT_SHOWN
from launcher.config.compose import compose_config
from launcher.config.schema import RunConfig
from launcher.data.audit import RULES, AuditFinding
from launcher.data.encode import EncodedExample
from launcher.data.prepare import PreparedInfo, find_prepared, prepare, preview_examples
from launcher.data.prepared import SplitFacts
from launcher.data.sources import find_sources
from launcher.errors import ExitCode, ModelError
from launcher.files import as_json
from launcher.plan.run_plan import locate_model

_SHOWN_CHARS = 1500
_PLACES_SHOWN = 5


def run(args: argparse.Namespace) -> int:
    config = compose_config(args.overrides, extra_dir=args.conf_dir)
    if args.dry_run:
        return _dry_run(config, as_json=args.json)
    model = locate_model(config.model, weights=False)
    with progress_view(quiet=args.json) as show:

        def progress(done: int, share: float) -> None:
            show("preparing", share, f"{done:,} examples")

        info = prepare(config, model, progress=progress, allow_blocked=True)
    wanted = args.show if args.show is not None else 0 if args.json else DEFAULT_SHOWN
    shown = preview_examples(config, model, wanted) if wanted else []
    if args.json:
        document = {
            **as_json(info),
            "audit": info.audit.as_dict(),
            "examples": [_as_dict(example) for example in shown],
        }
        print(json.dumps(document, ensure_ascii=False))
    else:
        _show(info, shown)
    return ExitCode.USER if info.audit.blocked else ExitCode.DONE


def _dry_run(config: RunConfig, *, as_json: bool) -> int:
    sources = find_sources(config.data, download=False)
    model: Path | None
    try:
        model = locate_model(config.model, weights=False, download=False)
    except ModelError:
        model = None
    info = find_prepared(config, model, allow_blocked=True) if model is not None else None
    document = {
        "dry_run": True,
        "train": {source.name: source.size_bytes for source in sources.train},
        "validation": {source.name: source.size_bytes for source in sources.validation},
        "is_prepared": info is not None,
        "folder": str(info.folder) if info is not None else None,
    }
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return ExitCode.DONE
    for split, group in (("train", sources.train), ("validation", sources.validation)):
        for source in group:
            print(f"{split}: {source.name}, {source.size_bytes:,} bytes")
    print(f"already prepared in {info.folder}" if info is not None else "would be prepared; nothing was done")
    return ExitCode.DONE


def _as_dict(encoded: EncodedExample) -> dict[str, object]:
    """For --json; spans count characters of `text`, `mask` is 1 where a token is a label."""
    return {
        "file": encoded.example.source,
        "line": encoded.example.line,
        "text": encoded.text,
        "token_ids": encoded.ids.tolist(),
        "mask": [int(is_label) for is_label in encoded.mask.tolist()],
        "supervised_spans": [list(span) for span in encoded.spans],
        "supervised_text": [encoded.text[start:end] for start, end in encoded.spans],
        "tokens_cut": encoded.num_cut,
    }


def _show(info: PreparedInfo, shown: list[EncodedExample]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for encoded in shown:
        _show_example(console, encoded)
    _show_splits(console, info)
    _show_findings(console, info.audit.findings)
    if info.audit.blocked:
        console.print("The audit rejects this data; runs do not start on it.", style="bold red")
    source = "found in the cache" if info.from_cache else "prepared"
    console.print(f"{source}: {info.folder}", markup=False)


def _show_example(console: Console, encoded: EncodedExample) -> None:
    where = f"{encoded.example.source}:{encoded.example.line}"
    console.print(Text(f"--- {where}  {len(encoded.ids)} tokens, {int(encoded.mask.sum())} supervised", style="dim"))
    colour = console.is_terminal and not console.no_color
    text, at = Text(), 0
    for start, end in encoded.spans:
        text.append(_readable(encoded.text[at:start]))
        said = _readable(encoded.text[start:end])
        text.append(said if colour else f">>>{said}<<<", style="green")
        at = end
    text.append(_readable(encoded.text[at:]))
    console.print(text)
    if encoded.num_cut:
        console.print(f"(the last {encoded.num_cut} tokens are cut off)", style="yellow")


def _readable(text: str) -> str:
    """Printable, the middle of a long text left out."""
    if len(text) > _SHOWN_CHARS:
        left = f" [... {len(text) - _SHOWN_CHARS} characters ...] "
        text = text[: _SHOWN_CHARS // 2] + left + text[-_SHOWN_CHARS // 2 :]
    return printable(text)


def _show_splits(console: Console, info: PreparedInfo) -> None:
    console.print()
    for file, kind in info.audit.formats.items():
        console.print(f"{file}: {kind} format", markup=False)
    splits = {"train": info.train, **({"validation": info.validation} if info.validation else {})}
    rows = {split: _split_row(info, split, facts) for split, facts in splits.items()}
    if not console.is_terminal:
        for split, row in rows.items():
            console.print(f"{split}: " + ", ".join(f"{name} {value}" for name, value in row.items()), markup=False)
        return
    table = Table("", *(Column(split, justify="right") for split in rows))
    for name in rows["train"]:
        table.add_row(name, *(row[name] for row in rows.values()))
    console.print(table)


def _split_row(info: PreparedInfo, split: str, facts: SplitFacts) -> dict[str, str]:
    counts = info.audit.counts[split]
    share = facts.num_supervised_tokens / facts.num_tokens if facts.num_tokens else 0.0
    packed = facts.num_packs < facts.num_examples
    return {
        "examples read": f"{counts.examples_read:,}",
        "used": f"{facts.num_examples:,}",
        "dropped": f"{counts.examples_dropped:,}",
        "truncated": f"{counts.examples_truncated:,}",
        "tokens": f"{facts.num_tokens:,}",
        "supervised": f"{facts.num_supervised_tokens:,} ({share:.1%})",
        "cut off": f"{counts.tokens_cut:,}",
        "packs": f"{facts.num_packs:,} of {facts.seq_len_tokens:,} tokens" if packed else "none",
        "packs filled": f"{facts.fill:.1%}" if packed else "-",
        "length p50/p95/max": f"{facts.length_p50}/{facts.length_p95}/{facts.length_max}",
    }


def _show_findings(console: Console, findings: tuple[AuditFinding, ...]) -> None:
    console.print()
    if not findings:
        console.print("audit: nothing found", style="green")
    for finding in findings:
        mark = "accepted" if finding.accepted else finding.severity.value
        style = "red" if finding.blocks else "yellow"
        console.print(Text(f"{mark}: {finding.code}: {finding.count:,}x {finding.what}", style=style))
        for place in finding.places[:_PLACES_SHOWN]:
            console.print(Text(f"    {_readable(str(place))}"))
        if finding.count > len(finding.places[:_PLACES_SHOWN]) > 0:
            console.print(f"    and {finding.count - len(finding.places[:_PLACES_SHOWN]):,} more")
        can_allow = finding.blocks and RULES[finding.code].can_allow
        hint = f"; or accept it: data.allow=[{finding.code}]" if can_allow else ""
        console.print(Text(f"    -> {finding.hint}{hint}"))
