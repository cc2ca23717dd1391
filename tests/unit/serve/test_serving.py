"""The serving command, and a real server that the real openai client asks."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launcher.errors import UserError
from launcher.serve.serving import ServerCommand, is_public, refuse_busy_port, server_command
from tests.unit.evaluate.learned_runs import add_learned_checkpoint, make_run, pairs


def command(tmp_path: Path, engine: str = "transformers", host: str = "127.0.0.1", name: str = "tiny") -> ServerCommand:
    folder = tmp_path / "runs" / name / "export" / "step-000006"
    return server_command(folder, root=tmp_path / "runs", host=host, port=8123, engine=engine, options=["--x=1"])


def test_transformers_serves_the_folder_under_its_name_from_the_runs_folder(tmp_path: Path) -> None:
    made = command(tmp_path)
    assert made.model == "tiny/export/step-000006"
    assert made.cwd == tmp_path / "runs"
    assert made.argv[3:] == [
        "transformers.cli.transformers",
        "serve",
        "tiny/export/step-000006",
        *("--host", "127.0.0.1", "--port", "8123", "--x=1"),
    ]
    assert made.env["HF_HUB_OFFLINE"] == "1"


def test_vllm_gets_the_folder_and_the_same_name(tmp_path: Path) -> None:
    made = command(tmp_path, engine="vllm")
    assert made.argv[4:7] == ["serve", str(tmp_path / "runs/tiny/export/step-000006"), "--served-model-name"]
    assert made.argv[7] == made.model == "tiny/export/step-000006"


def test_a_name_transformers_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'@' or ':' in it"):
        command(tmp_path, name="run@home")
    assert command(tmp_path, name="run@home", engine="vllm").model.startswith("run@home/")


@pytest.mark.parametrize(
    ("host", "url", "public"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123/v1", False),
        ("localhost", "http://localhost:8123/v1", False),
        ("0.0.0.0", "http://127.0.0.1:8123/v1", True),
        ("::1", "http://[::1]:8123/v1", False),
        ("10.1.2.3", "http://10.1.2.3:8123/v1", True),
    ],
)
def test_the_url_is_one_that_can_be_called(tmp_path: Path, host: str, url: str, public: bool) -> None:
    assert command(tmp_path, host=host).url == url
    assert is_public(host) is public


def test_the_examples_survive_quotes_in_the_question(tmp_path: Path) -> None:
    made = command(tmp_path)
    question = 'what\'s "it"?\n$HOME'
    words = shlex.split(made.curl(question).replace("\\\n", " "))
    assert words[0] == "curl" and "what's" in words[-1]
    compile(made.python(question), "example", "exec")
    compile(made.python(question, as_chat=False), "example", "exec")


def test_a_busy_port_is_refused_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"):
            refuse_busy_port("127.0.0.1", port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run that is being served, and the URL of its server."""
    folder = tmp_path_factory.mktemp("served")
    train = [{"prompt": f"question {n}", "completion": "of course"} for n in range(40)]
    run, _ = make_run(folder, tiny_model, "data.system_prompt=Be kind.", train=train, validation=pairs(5))
    add_learned_checkpoint(run, tiny_model)
    port = free_port()
    log = (folder / "server.log").open("w+")
    words = ["serve", "tiny", "--runs-dir", str(folder / "runs"), "--port", str(port), "--engine", "transformers"]
    process = subprocess.Popen([sys.executable, "-m", "launcher", *words], stdout=log, stderr=log, env={**os.environ})
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield run.root, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        # The server replaced the launcher, so the signal is its own and it leaves in order.
        assert process.wait(timeout=30) in (0, -15)
        log.close()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    pytest.fail(f"the server did not answer in 120 s:\n{log.read_text()}")


@pytest.mark.slow
def test_the_openai_client_gets_the_greedy_answer_of_the_exported_folder(served: tuple[Path, str]) -> None:
    from openai import OpenAI

    from launcher.evaluate.answer import Answerer
    from launcher.evaluate.questions import Prompt

    run_dir, url = served
    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=180)
    name = "tiny/export/step-000060"
    answerer = Answerer(run_dir / "export" / "step-000060", dtype=torch.float32, device="cpu")
    for question in ("question 3", "something else entirely"):
        completion = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
        )
        prompt = Prompt(({"role": "user", "content": question},))
        expected = answerer.answer([prompt], max_new_tokens=24)[0]
        assert completion.choices[0].message.content == expected
        # The run's system prompt is in the served template: the prompt the server counted is the prompt of training.
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == len(answerer.encode(prompt))
    assert "Be kind." in answerer.format.render([{"role": "user", "content": "x"}])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_works(served: tuple[Path, str], tmp_path: Path) -> None:
    run_dir, url = served
    made = server_command(
        run_dir / "export" / "step-000060",
        root=run_dir.parent,
        host="127.0.0.1",
        port=int(url.split(":")[2].removesuffix("/v1")),
        engine="transformers",
    )
    answer = subprocess.run(["bash", "-c", made.curl("question 3")], capture_output=True, timeout=180, check=True)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == "of course"
    plain = made.curl("question 3", as_chat=False)
    answer = subprocess.run(["bash", "-c", plain], capture_output=True, timeout=180, check=True)
    assert isinstance(json.loads(answer.stdout)["choices"][0]["text"], str)
