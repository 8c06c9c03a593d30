"""Finds the first quantity that is not finite when an update has diverged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from wsram_ppl.config import Components
from wsram_ppl.errors import Diverged
from wsram_ppl.objectives import Objective
from wsram_ppl.objectives.prior import is_prior
from wsram_ppl.objectives.sites import random_sites
from wsram_ppl.primitives.distributions import parameters
from wsram_ppl.primitives.handlers import is_subsample
from wsram_ppl.runs.checkpoints import TrainingState, not_finite

__all__ = ["diverged", "find_cause"]


class _Found(Exception):
    """The site and the quantity."""


def _is_bad(name: str, value: Tensor) -> bool:
    # A logit may be -inf: a choice is ruled out.
    bad = ~value.isfinite() if name != "logits" else value.isnan() | value.isposinf()
    return bool(bad.any())


class _FirstBad(Messenger):
    """Stops at the first site whose distribution has a parameter that is not finite.

    Args:
        guided: the guide runs before the model, so each site is met twice.
    """

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self._guided = guided
        self._met: set[str] = set()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = str(msg["name"])
        if is_subsample(msg):
            return
        whose = "model"
        if self._guided and not msg["is_observed"]:
            whose = "model" if name in self._met else "guide"
            self._met ^= {name}
        for quantity, value in parameters(msg["fn"]):
            if _is_bad(quantity, value):
                raise _Found(f"the parameter '{quantity}' of site '{name}' in the {whose}")


@torch.no_grad()
def find_cause(
    objective: Objective, model: nn.Module, guide: nn.Module, batch: tuple[Tensor, ...]
) -> str | None:
    """Runs guide and model once more and names the first quantity that is not finite, if any.

    It is a parameter of a site's distribution or a site's log-density. Uses the global random state.
    """
    try:
        # Validation would stop the run without naming the site.
        with pyro.validation_enabled(False), _FirstBad(guided=not is_prior(guide, model)):
            draws = objective.particles(model, guide, *batch).draws
    except _Found as found:
        return str(found)
    except (RuntimeError, ValueError):
        return None
    for draw in draws:
        for whose, trace in (("model", draw.model_trace), ("guide", draw.guide_trace)):
            for name, site in random_sites(trace).items():
                if site["fn"].log_prob(site["value"]).isnan().any():
                    return f"the log-density of site '{name}' in the {whose}"
    return None


def diverged(
    components: Components,
    batch: tuple[Tensor, ...],
    *,
    step: int,
    update: int,
    measured: Sequence[str] = (),
    constants: Collection[str] = (),
) -> Diverged:
    """Reports what is not finite, with everything that it may depend on.

    Runs the program once more, with the random state as seeded.

    Args:
        batch: the minibatch of the update.
        step: updates done.
        update: the number of the update that went wrong, for the message.
        measured: other quantities found not to be finite.
        constants: buffers that need not be finite.
    """
    model, guide = components.model, components.guide
    tensors = TrainingState(components).weights()
    tensors |= {f"batch.{index}": part for index, part in enumerate(batch)}
    for whose, module in (("model", model), ("guide", guide)):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                tensors[f"gradient.{whose}.{name}"] = parameter.grad
    bad = not_finite(tensors, apart_from=constants)
    weights = [f"weight {name}" for name in bad if name.startswith(("model.", "guide."))]
    data = [f"part {name[6:]} of the minibatch" for name in bad if name.startswith("batch.")]
    gradients = [name.replace(".", " of ", 1) for name in bad if name.startswith("gradient.")]
    cause = find_cause(components.objective, model, guide, batch)
    # In order of cause and effect; if a site is at fault, a weight before it may be too.
    causes = [*data, *weights[:1], *([cause] if cause else [])]
    found = causes or measured or gradients[:1] or ["the gradient's norm"]
    what, verb = " and ".join(found), "is" if len(found) == 1 else "are"
    advice = "look at the data" if data else "lower the learning rate"
    message = f"update {update}: {what} {verb} not finite; {advice}"
    return Diverged(message, tensors, {"step": step, "what": what}, bool(causes))
