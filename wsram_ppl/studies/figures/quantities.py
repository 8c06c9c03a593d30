"""The measures of a run that are drawn as curves, with their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Quantity:
    """How one number is drawn, with one line per variant."""

    split: str
    column: str
    title: str
    axis: str
    what: str
    smooth: bool = True
    percent: bool = False
    log: bool | None = False
    """None: where it helps."""


QUANTITIES: Final[dict[str, Quantity]] = {
    "error": Quantity(
        "train",
        "error",
        "Training error",
        "training error",
        "Share of the current minibatch's examples that are predicted wrongly, using as many sampled "
        "glimpse sequences as the objective has particles",
        percent=True,
        log=None,
    ),
    "validation_error": Quantity(
        "eval",
        "error",
        "Validation error",
        "validation error",
        "Share of validation examples that are predicted wrongly",
        smooth=False,
        percent=True,
        log=None,
    ),
    "nll_per_word": Quantity(
        "train",
        "nll_per_word",
        "Training loss per word",
        "negative log-likelihood (nats per word)",
        "For the current minibatch's sentences: -log of the mean probability over as many sequences of "
        "looks as the objective has particles, drawn from the model whatever the guide; with dropout",
    ),
    "bound": Quantity(
        "eval",
        "bound",
        "Bound on validation data",
        "bound (nats per example)",
        "Importance bound with the run's own number of particles of its guide",
        smooth=False,
    ),
    "ess": Quantity(
        "train",
        "ess",
        "Effective sample size",
        "effective sample size (particles)",
        "1 / (sum of squared normalised importance weights) per example, from 1 to the number of "
        "particles; mean over the current minibatch",
    ),
    "variance": Quantity(
        "probe",
        "variance",
        "Gradient variance",
        "total variance of the gradient (nats²)",
        "Variance, summed over the model's parameters (without those of the guide and the coefficient "
        "networks), of the gradient of the mean loss per example, exploration terms included, over "
        "repeated draws of particles (probe_repeats in the config) on one fixed minibatch. It is not "
        "used for training and, for one seed, the same in all variants. The weights are those of the "
        "run at that update: every variant is measured along its own path",
        smooth=False,
        log=True,
    ),
}
QUANTITIES["test_error"] = QUANTITIES["validation_error"]  # the name in earlier studies
