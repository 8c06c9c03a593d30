"""The captioner in a training step on a CUDA device that is not there; see ``test_fake_cuda``."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch

from tests.models.test_captioner import CHANNELS, HIDDEN, SIZES, WORDS, objectives
from tests.training.test_fake_cuda import CUDA, FAKE, NoCopiesToHost
from wsram_ppl.guides import CaptionInferenceNetwork
from wsram_ppl.models import GlimpseCaptioner
from wsram_ppl.objectives import Prior
from wsram_ppl.objectives.exploration import Exploration


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with (
        pyro.settings.context(module_local_params=True),
        pyro.validation_enabled(False),
        FAKE,
        NoCopiesToHost(),
    ):
        yield


def make_batch() -> tuple[torch.Tensor, ...]:
    words = torch.ones(2, 4, dtype=torch.long, device=CUDA)
    maps = (torch.ones(2, c, *size, device=CUDA) for c, size in zip(CHANNELS, SIZES, strict=True))
    return words, words > 0, *maps


@pytest.mark.parametrize(
    ("objective_name", "guide_name", "location"),
    [
        ("variational-site", "prior", "grid"),
        ("wake-sleep-learned", "inference", "grid"),
        ("sleep", "inference", "gaussian"),
    ],
)
def test_the_loss_waits_for_nothing(objective_name: str, guide_name: str, location: str) -> None:
    """What is the objectives' own is tested with the digits."""
    with torch.device(CUDA):
        model = GlimpseCaptioner(
            vocabulary=WORDS,
            channels=CHANNELS,
            hidden=HIDDEN,
            location=location,  # type: ignore[arg-type]
        )
        guide = CaptionInferenceNetwork(model) if guide_name == "inference" else Prior(model)
    objective = dict(objectives())[objective_name](
        vectorize_particles=True,
        max_plate_nesting=1,
        regularizer=Exploration(entropy=0.1, temperature=2.0, coverage=0.1),
    )
    loss = objective.differentiable_loss(model, guide, *make_batch())
    assert (loss.device, loss.shape) == (CUDA, ())


def test_metrics_stay_on_the_device() -> None:
    with torch.device(CUDA):
        model = GlimpseCaptioner(vocabulary=WORDS, channels=CHANNELS, hidden=HIDDEN)
    found = model.metrics(*make_batch(), 3)
    assert all(measure.total().device == CUDA for measure in found.values())
