"""launcher serve: the tuned model behind the OpenAI API, through vLLM or `transformers serve`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from launcher.config.devices import smallest_memory_gib, visible_gpus
from launcher.config.model_files import find_architecture
from launcher.errors import ExitCode
from launcher.export.example_kind import ExampleKind, example_kind
from launcher.export.source import ExportSource, cached_folder, open_source
from launcher.files import as_json
from launcher.plan.memory import inference_gpus, tensor_parallel_size
from launcher.runs.run_dir import find_run
from launcher.serve.serving import ServerCommand, is_public, pick_engine, refuse_busy_port, server_command

_QUESTION = "Hello!"


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir).resolve()
    engine = args.engine or pick_engine()
    if not args.dry_run:
        refuse_busy_port(args.host, args.port)
    source = open_source(run_dir, args.step)
    as_chat = example_kind(Path(source.derived.data_dir)) is not ExampleKind.text
    # All weights, adapters merged: exported on the first call.
    if args.dry_run:
        folder = cached_folder(source, merge=True)
    else:
        from launcher.export.export import cached_export

        folder = cached_export(source, merge=True)
    # The user's come last, and win.
    options = [*(_tensor_parallel(source) if engine == "vllm" else []), *args.server_option]
    command = server_command(
        folder, root=run_dir.parent, host=args.host, port=args.port, engine=engine, options=options
    )
    if args.json and args.dry_run:
        print(json.dumps(as_json(command), indent=2))
        return ExitCode.DONE
    _tell(command, args.host, as_chat=as_chat)
    if args.dry_run:
        return ExitCode.DONE
    sys.stdout.flush()
    # The server replaces this process, so that Ctrl-C, SIGTERM and the exit code are its own.
    os.chdir(command.cwd)
    os.execvpe(command.argv[0], command.argv, {**os.environ, **command.env})


def _tensor_parallel(source: ExportSource) -> list[str]:
    """vLLM's option to use as many of the GPUs here as the model needs; none where one is enough."""
    architecture = find_architecture(source.config.model, model_dir=source.derived.model_dir)
    gpus = visible_gpus()
    memory_gib = smallest_memory_gib(gpus)
    if architecture is None or memory_gib is None:
        return []
    needed = inference_gpus(architecture, memory_gib, at_most=len(gpus))
    count = tensor_parallel_size(architecture, needed, at_most=len(gpus))
    return [f"--tensor-parallel-size={count}"] if count > 1 else []


def _tell(command: ServerCommand, host: str, *, as_chat: bool) -> None:
    print(f"model  {command.model}")
    print(f"url    {command.url}  ({command.engine})")
    print(f"start  cd {shlex.quote(str(command.cwd))} && {shlex.join(command.argv)}")
    if is_public(host):
        print(f"note   {host} is open to other hosts, and this server asks for no key")
    if not as_chat:
        print("note   tuned on plain text: it continues a text, and knows no chat format")
    print(f"\nask it from a shell:\n\n{command.curl(_QUESTION, as_chat=as_chat)}")
    print(f"\nor from Python (pip install openai):\n\n{command.python(_QUESTION, as_chat=as_chat)}\n")
