"""MLflow: the server of MLFLOW_TRACKING_URI, otherwise a SQLite file in the run directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from launcher.config.schema import TrackConfig
from launcher.runs.jsonl import parse_time
from launcher.runs.metrics import Record
from launcher.runs.redact import redacted
from launcher.tracking.tracker import Cursor, TrackedRun, Tracker, flat, values_of

RUN_ID_TAG = "launcher.run_id"
LONGEST_PARAM = 6000
PARAMS_AT_ONCE = 100


class MlflowTracker(Tracker):
    title = "MLflow"

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.track.wandb_project
        known = self._client.get_experiment_by_name(name)
        self._experiment = str(known.experiment_id if known is not None else self._client.create_experiment(name))
        found = self._client.search_runs([self._experiment], f"tags.`{RUN_ID_TAG}` = '{run.run_id}'", max_results=1)
        self.is_new = not found
        if found:
            self._run_id = str(found[0].info.run_id)
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create(run)
        page = f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._run_id}"
        self.url = redacted(page) if uri.startswith(("http://", "https://")) else None

    @classmethod
    def destination(cls, track: TrackConfig, environment: Mapping[str, str], *, syncing: bool = False) -> str | None:
        uri = environment.get("MLFLOW_TRACKING_URI")
        # A digest, because an address may contain a login and slashes.
        return hashlib.sha256(uri.encode()).hexdigest()[:8] if uri else "local"

    def recover(self) -> Cursor:
        return Cursor(self._newest_step("train/loss"), self._newest_step("eval/loss"))

    def log(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for record in records:
            moment_ms = int(parse_time(record.time).timestamp() * 1000)
            # The loss last, because `recover` looks for it, and a file store takes values one by one.
            values = sorted(values_of(record).items(), key=lambda item: item[0].endswith("/loss"))
            metrics += [Metric(name, float(value), moment_ms, record.step) for name, value in values]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def close(self, scores: Mapping[str, float], *, failed: bool) -> None:
        held = self._client.get_run(self._run_id).data.metrics if scores else {}
        for name, value in scores.items():
            if held.get(name) != value:
                self._client.log_metric(self._run_id, name, value, synchronous=True)
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _newest_step(self, metric: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self._run_id, metric)), default=0)

    def _create(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        tags = {RUN_ID_TAG: run.run_id} | {f"tag.{tag}": "true" for tag in run.track.tags}
        run_id = str(self._client.create_run(self._experiment, tags=tags, run_name=run.paths.root.name).info.run_id)
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in flat(run.settings).items() if value != {}]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[first : first + PARAMS_AT_ONCE], synchronous=True)
        return run_id


TRACKER = MlflowTracker
