"""Secrets of the user's environment reach the ranks, and nothing else: no file, no argv, nothing Slurm shows."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import sys
import threading
import urllib.parse
from pathlib import Path

import psutil

from launcher.paths import RunPaths
from tests.slurm import faults
from tests.slurm.cluster import Cluster
from tests.slurm.rig import SlurmRun

NAMES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
FILES_OF_SLURM = ("environment",)
"""Slurm itself keeps a job's environment, in files only root can read; everything else in its folders is searched."""


def forms(canary: str) -> set[bytes]:
    """The canary as it might be written: plain, quoted for a URL, and in base64 at each of the three offsets."""
    quoted = {canary.encode(), urllib.parse.quote(canary, safe="").encode()}
    shifted = (base64.b64encode(b"\0" * shift + canary.encode())[4:-4] for shift in range(3))
    return quoted | set(shifted)


def test_a_canary_is_found_nowhere(cluster: Cluster, tmp_path: Path, tiny_model: Path) -> None:
    canaries = {name: f"ca/na+ry{secrets.token_hex(16)}" for name in NAMES}
    environment = {**canaries, "HTTPS_PROXY": f"http://user:{canaries['HF_TOKEN']}@127.0.0.1:9"}
    work = tmp_path / "work"
    work.mkdir()
    seen, over = set[str](), threading.Event()
    watcher = threading.Thread(target=_watch_arguments, args=(seen, over), daemon=True)
    watcher.start()
    settings = [
        f"model.name_or_path={tiny_model}", "data=next_number", "data.seq_len_tokens=256", "cluster=slurm", "name=one",
        "cluster.device=cpu", "cluster.devices_per_node=1", "cluster.nodes=2", "strategy=ddp", "method=full",
        "optim.max_steps=200", "checkpoint.save_every_steps=10", "track.wandb=offline", "batch.global_sequences=4",
    ]  # fmt: skip
    command = [sys.executable, "-m", "launcher", "submit", *settings, "--json"]
    job_id = str(json.loads(cluster.run(command, cwd=work, env=environment).stdout)["job_id"])
    run = SlurmRun(cluster, work / "runs" / "one", 2, 1, job_id, [job_id])
    run.wait_checkpoint(10)
    told = [
        cluster.run(["scontrol", "--details", "show", "job", job_id]).stdout,
        cluster.run(["squeue", "-o%all"]).stdout,
    ]
    reached = {process.environ().get("WANDB_API_KEY") for process in faults.ranks_of(run.run_dir)}
    assert reached == {canaries["WANDB_API_KEY"]}, "the ranks need the key"
    faults.signal_rank(run.run_dir, signal.SIGKILL, rank=1)
    run.wait_done()
    over.set()
    watcher.join()
    assert run.num_attempts() == 2 and (RunPaths(run.run_dir).tracker("wandb")).is_dir()
    told += [
        cluster.run([sys.executable, "-m", "launcher", verb, "one"], cwd=work, env=environment).stdout
        for verb in ("status", "report")
    ]
    needles = {form: name for name, canary in canaries.items() for form in forms(canary)}
    places = [("arguments of a process", words.encode()) for words in seen]
    places += [("what a command says", text.encode()) for text in told]
    for folder in (work, cluster.folder):
        files = (path for path in folder.rglob("*") if path.is_file() and path.name not in FILES_OF_SLURM)
        places += [(str(path), path.read_bytes()) for path in files]
    found = [f"{needles[form]} in {place}" for place, data in places for form in needles if form in data]
    assert not found, "\n".join(found)
    assert len(seen) > 10 and len(places) > 30


def _watch_arguments(seen: set[str], over: threading.Event) -> None:
    """What `ps` would have shown to anybody, all the time."""
    while not over.wait(0.1):
        for process in psutil.process_iter(["cmdline"]):
            seen.add(" ".join(process.info["cmdline"] or []))
