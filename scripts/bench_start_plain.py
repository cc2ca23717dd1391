"""The plain side of scripts/bench-start: one step of a model under DeepSpeed ZeRO-3, as one writes it by hand."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

started = time.time()

import deepspeed  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig  # noqa: E402


def main(model_dir: str, result: str) -> None:
    imported = time.time()
    deepspeed.init_distributed(dist_backend="gloo")
    met = time.time()
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    kept = HfDeepSpeedConfig(settings)  # alive while the model loads, which is then partitioned on the way
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    loaded = time.time()
    tokens = torch.randint(0, 200, (2, 60), generator=torch.Generator().manual_seed(0))
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
    stepped = time.time()
    del kept
    if int(os.environ["RANK"]) == 0:
        times = {"process": started, "imported": imported, "met": met, "loaded": loaded, "stepped": stepped}
        Path(result).write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.barrier()
    os._exit(0)  # gloo's destructor may wait for ever (docs/development.md)
