"""The command that serves a Hugging Face folder behind the OpenAI API, and how to call it. Starts nothing itself."""

from __future__ import annotations

import importlib.util
import json
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import UserError

_SERVE_MODULES = ("transformers", "torch", "fastapi", "uvicorn", "pydantic", "openai")


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to start a server. `model` is the name that requests must give."""

    engine: str
    argv: list[str]
    cwd: Path
    model: str
    url: str
    env: dict[str, str] = field(default_factory=dict)
    """Added to the environment."""

    def curl(self, question: str, *, as_chat: bool = True) -> str:
        """A shell line that asks the server; without `as_chat` it has the text continued as it is."""
        asked: dict[str, object] = (
            {"messages": [{"role": "user", "content": question}]} if as_chat else {"prompt": question}
        )
        body = json.dumps({"model": self.model, **asked, "temperature": 0})
        endpoint = "chat/completions" if as_chat else "completions"
        return f"curl {self.url}/{endpoint} -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"

    def python(self, question: str, *, as_chat: bool = True) -> str:
        """Python that asks the server through the openai package; `as_chat` as in `curl`."""
        asked = f"messages=[{{'role': 'user', 'content': {question!r}}}]" if as_chat else f"prompt={question!r}"
        method, answer = ("chat.completions", "message.content") if as_chat else ("completions", "text")
        return (
            "from openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{self.url}", api_key="none")\n'
            f"answer = client.{method}.create(\n"
            f"    model={self.model!r}, temperature=0, {asked}\n"
            ")\n"
            f"print(answer.choices[0].{answer})"
        )


def pick_engine() -> str:
    """vllm if it is installed, otherwise transformers; a UserError says what to install if neither can serve."""
    if importlib.util.find_spec("vllm") is not None:
        return "vllm"
    missing = [name for name in _SERVE_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"Nothing here can serve a model: vllm is not installed, and `transformers serve` lacks "
            f"{', '.join(missing)}. "
            "Run: pip install 'tunelaunch[train,serve]' (or pip install vllm)"
        )
    return "transformers"


def server_command(
    folder: Path, *, root: Path, host: str, port: int, engine: str, options: Sequence[str] = ()
) -> ServerCommand:
    """The command for `folder`, a model under `root`; its path from there is the model's name.

    Args:
        options: further arguments for the server.
    """
    model = folder.resolve().relative_to(root.resolve()).as_posix()
    # transformers serve takes what follows @ for a revision and what follows a colon for a file.
    if engine == "transformers" and ("@" in model or ":" in model):
        raise UserError(
            f"`transformers serve` cannot serve a folder named {model!r}: it has '@' or ':' in it. Rename it."
        )
    # -P: `-m` would put the working directory first on the import path, and a run may be called torch.
    if engine == "vllm":
        argv = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(folder.resolve())]
        argv += ["--served-model-name", model]
    else:
        # The folder by its name from `root`, because this server knows a model only by what it was started with.
        argv = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", model]
    argv += ["--host", host, "--port", str(port), *options]
    shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
    return ServerCommand(
        engine=engine,
        argv=argv,
        cwd=root.resolve(),
        model=model,
        url=f"http://{shown}:{port}/v1",
        # The weights are here; without these the server asks the network about the model and about its own version.
        env={"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"},
    )


def refuse_busy_port(host: str, port: int) -> None:
    """UserError when something else listens on that port already, or the address is not one of this host's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Give another --port or --host."
        ) from error


def is_public(host: str) -> bool:
    """Whether other hosts can reach a server on `host`."""
    return host not in ("localhost", "::1") and not host.startswith("127.")
