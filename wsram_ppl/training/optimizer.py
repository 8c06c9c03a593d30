"""The optimiser of a run and the clipping of its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wsram_ppl.config import TrainingSettings
from wsram_ppl.errors import InputError
from wsram_ppl.objectives.diagnostics import parameter_groups


def make_optimizer(
    training: TrainingSettings, model: nn.Module, guide: nn.Module, device: torch.device
) -> Optimizer:
    """The optimiser, with the model's parameters and the guide's own in two groups.

    On a GPU Adam's learning rates are tensors, which a recorded update can read. The numbers are the
    same whether the update is recorded or not.

    Args:
        device: where the parameters will be.

    Raises:
        InputError: a learning rate for no parameters; an optimiser that a CUDA graph cannot record.
    """
    known = {id(p) for p in model.parameters()}
    own = [p for p in guide.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "name": "model"}]
    if own:
        groups.append({"params": own, "name": "guide"})
    elif training.guide_learning_rate is not None:
        raise InputError(
            "training.guide_learning_rate: the guide has no parameters of its own; leave it out, or "
            "choose a guide that has"
        )
    rate = training.learning_rate.initial
    if training.optimizer == "sgd":
        if training.cuda_graph:
            raise InputError(
                "training.cuda_graph: the learning rate of 'sgd' cannot change in a recorded update; "
                "use optimizer 'adam' or 'adamw', or cuda_graph = false"
            )
        return torch.optim.SGD(groups, lr=rate, weight_decay=training.weight_decay)
    on_gpu = device.type == "cuda"
    if on_gpu:
        for group in groups:
            group["lr"] = torch.tensor(rate, device=device)
    adam = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=rate, weight_decay=training.weight_decay, fused=True, capturable=on_gpu)


class Clipping:
    """Bounds the gradient norms of coefficient networks (``baselines``) and of all else, separately.

    The gradient of a baseline's regression may be far larger than the model's.

    Args:
        parameters: all that are trained.
        largest: the largest norm; None for no bound.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        parameters: Sequence[nn.Parameter],
        largest: float | None,
    ) -> None:
        groups = parameter_groups(model, guide).values()
        followed = {id(p) for group in groups for p in group}
        parts = (
            [p for p in parameters if id(p) in followed],
            [p for p in parameters if id(p) not in followed],
        )
        self._parts = [part for part in parts if part]
        self._largest = largest or math.inf

    def __call__(self, finite: Tensor) -> None:
        """Clips, and sets ``finite`` (a Boolean on the device) to false if a gradient was not finite."""
        for part in self._parts:
            # Without any gradient the norm is on the CPU: nothing to wait for.
            finite &= nn.utils.clip_grad_norm_(part, self._largest).isfinite()
