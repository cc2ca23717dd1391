"""The tests for a GPU run on a CPU as far as they go, and report what held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_trains_resumes_and_reports(tmp_path: Path) -> None:
    environment = {**os.environ, "LAUNCHER_GPU_DRY_RUN": "1", "LAUNCHER_GPU_REPORT": str(tmp_path)}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", "single or varlen", "tests/gpu"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-4000:]
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    found = {item["name"]: (item["status"], item["reason"]) for item in report["items"]}
    assert report["dry_run"] and report["machine"]["cards"] == []
    assert found.pop("bf16 trains stops and goes on[single]") == ("held", "")
    assert found and set(found.values()) == {("not run", "torch sees no GPU")}
    assert "| bf16 trains stops and goes on[single] | held |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
