"""Checkpoints: all that a run needs to resume, in one checksummed file, written atomically."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from wsram_ppl import __version__
from wsram_ppl.config import Components
from wsram_ppl.errors import InputError
from wsram_ppl.files import write_atomically

__all__ = [
    "Checkpoint",
    "TrainingState",
    "copy_weights",
    "load_checkpoint",
    "load_weights",
    "not_finite",
    "save_checkpoint",
]

#: The format in the header of files written by this module, and by earlier versions.
FORMAT, _EARLIER = "wsram_ppl checkpoint 2", {"wsram_ppl checkpoint 1": "0.1"}


@dataclass(frozen=True)
class TrainingState:
    """The tensors of a run in a checkpoint, and their names.

    ``model.NAME`` and ``guide.NAME`` are parameters and buffers, ``objective.NAME`` running estimates,
    ``optimizer.INDEX.NAME`` the optimiser's state for a parameter. Random streams have no state: they
    are seeded by the number of the update.

    Args:
        components: model, guide and objective.
        optimizer: None if only the weights are needed.
    """

    components: Components
    optimizer: Optimizer | None = None

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of model and guide."""
        parts = (("model", self.components.model), ("guide", self.components.guide))
        return {f"{part}.{k}": v for part, module in parts for k, v in module.state_dict().items()}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of model and guide."""
        parts = (("model", self.components.model), ("guide", self.components.guide))
        every = ((part, module.named_buffers(remove_duplicate=False)) for part, module in parts)
        return {f"{part}.{name}": buffer for part, buffers in every for name, buffer in buffers}

    def places(self) -> dict[str, int]:
        """The addresses in memory of the weights' values."""
        return {name: weight.data_ptr() for name, weight in self.weights().items()}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors."""
        found = self.weights()
        found |= {f"objective.{k}": v for k, v in self.components.objective.state_dict().items()}
        if self.optimizer is not None:
            for index, state in self.optimizer.state_dict()["state"].items():
                found |= {f"optimizer.{index}.{k}": v for k, v in state.items() if v is not None}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores all tensors.

        Raises:
            InputError: names or shapes do not fit.
        """
        load_weights(self.components.model, "model", tensors)
        load_weights(self.components.guide, "guide", tensors)
        # Where the values are computed: what is compiled or recorded reads them there.
        device = next((weight.device for weight in self.weights().values()), None)
        running = {name: mean.to(device) for name, mean in _part("objective", tensors).items()}
        self.components.objective.load_state_dict(running)
        if self.optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _part("optimizer", tensors).items():
                index, key = name.split(".", 1)
                state.setdefault(int(index), {})[key] = tensor
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def not_finite(tensors: Mapping[str, Tensor], apart_from: Collection[str] = ()) -> list[str]:
    """The names of those tensors that are not finite."""
    return [
        name
        for name, tensor in tensors.items()
        if name not in apart_from and not tensor.isfinite().all()
    ]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, as read.

    Args:
        path: its file.
        tensors: by the names of :class:`TrainingState`.
        data: ``step``, ``seconds`` and other plain data.
        refused: newer checkpoints that were skipped, with the reason.
    """

    path: Path
    tensors: dict[str, Tensor]
    data: dict[str, Any]
    refused: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The number of updates done when it was written."""
        return int(self.data["step"])

    def warn(self, what: str) -> None:
        """Warns of newer checkpoints that were skipped, if there are any.

        Args:
            what: is done with this one.
        """
        for reason in self.refused:
            warnings.warn(f"{reason}; {what} {self.path}, after update {self.step}", stacklevel=2)


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Writes tensors and JSON data, with a checksum over both.

    Raises:
        RunError: the file cannot be written; an earlier file of that name is intact.
    """
    text = json.dumps(data, sort_keys=True)
    metadata = {"format": FORMAT, "data": text, "sha256": _digest(tensors, text)}
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(flat, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads what :func:`save_checkpoint` wrote; never runs code from the file.

    Raises:
        InputError: missing, not a checkpoint, of another version, truncated, or altered (the checksum
            differs).
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        content = path.read_bytes()  # safetensors cannot open a path that is not UTF-8
        tensors = load(content)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata = json.loads(header).get("__metadata__", {})
        _check_format(path, metadata.get("format"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not an intact checkpoint: {' '.join(str(error).split())}"
        ) from error
    text = metadata.get("data", "")
    if _digest(tensors, text) != metadata.get("sha256"):
        raise InputError(f"{path} is damaged: its checksum does not match")
    return Checkpoint(path, tensors, json.loads(text))


def _check_format(path: Path, found: str | None) -> None:
    if found in _EARLIER:
        raise InputError(
            f"{path} was written by wsram_ppl {_EARLIER[found]}, whose checkpoints {__version__} cannot "
            "read: use that version, or train again"
        )
    if found is not None and found != FORMAT and found.startswith(FORMAT.rstrip("0123456789")):
        raise InputError(
            f"{path} was written by a later version than {__version__} of wsram_ppl, which cannot read "
            "it: use the later one"
        )
    if found != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this library")


def _digest(tensors: Mapping[str, Tensor], data: str) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, and the plain data."""
    digest = hashlib.sha256(data.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _part(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part, by their names within it."""
    prefix = f"{part}."
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def copy_weights(
    module: nn.Module, part: str, tensors: Mapping[str, Tensor], options: Collection[str]
) -> tuple[int, list[str]]:
    """Restores those parameters and buffers of a part that fit.

    Args:
        options: names of scalar buffers that hold options: these are left unchanged.

    Returns:
        How many were restored, and a text for each of the others.
    """
    found, others = 0, []
    given = _part(part, tensors)
    own = module.state_dict()  # its tensors are the module's own
    with torch.no_grad():
        for name, tensor in own.items():
            if name in options and not tensor.dim():
                continue
            there = given.get(name)
            if there is not None and there.shape == tensor.shape:
                tensor.copy_(there)
                found += 1
            else:
                shape = "not there" if there is None else f"there {list(there.shape)}"
                others.append(f"{part}.{name} {list(tensor.shape)} ({shape})")
    return found, others


def load_weights(module: nn.Module, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Restores the parameters and buffers of a part (``model`` or ``guide``).

    Raises:
        InputError: names or shapes do not fit.
    """
    try:
        module.load_state_dict(_part(part, tensors))
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint does not fit the {part}: {' '.join(str(error).split())}"
        ) from error
