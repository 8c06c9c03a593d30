"""Checkpoints: tensors and plain data in one checked file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.files import write_atomically

#: What the header says of a file that this module wrote.
FORMAT = "wsram_ppl checkpoint 1"


def _digest(tensors: Mapping[str, Tensor], data: str) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, and the plain data."""
    digest = hashlib.sha256(data.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Writes tensors and JSON data, with a checksum over both.

    Raises:
        RunError: the file cannot be written; an earlier file of that name is intact.
    """
    text = json.dumps(data, sort_keys=True)
    metadata = {"format": FORMAT, "data": text, "sha256": _digest(tensors, text)}
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(flat, metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_checkpoint` wrote; never runs code from the file.

    Raises:
        InputError: not there, not a checkpoint, cut short, or altered (the checksum differs).
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} is not a checkpoint of this library")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole checkpoint: {' '.join(str(error).split())}") from error
    text = metadata.get("data", "")
    if _digest(tensors, text) != metadata.get("sha256"):
        raise InputError(f"{path} is damaged: its checksum does not match")
    data: dict[str, Any] = json.loads(text)
    return tensors, data
