"""DeepSpeed's file writer, watched. Apart from shards.py, because importing DeepSpeed takes seconds."""

from __future__ import annotations

from pathlib import Path

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine


class RecordingCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's file writer, which also remembers what this rank wrote."""

    def __init__(self) -> None:
        super().__init__()
        # The zip form carries checksums of its own and can be read lazily by DeepSpeed's converters.
        self.zipfile_serialization = True
        self._written: list[Path] = []
        self._problems: list[str] = []

    def save(self, state_dict: dict[str, object], path: str) -> None:
        try:
            super().save(state_dict, path)
            self._written.append(Path(path))
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as RuntimeError. Raised here, it would leave the other ranks in DeepSpeed's
            # barrier.
            self._problems.append(f"{path}: {error}")

    def take(self) -> list[Path]:
        """The files written since the last call.

        Raises: OSError if one could not be written.
        """
        written, self._written = self._written, []
        problems, self._problems = self._problems, []
        if problems:
            raise OSError("; ".join(problems))
        return written
