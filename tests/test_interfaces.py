"""Hooks of models, guides and data sources: found where they are, not missed elsewhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsram_ppl import interfaces
from wsram_ppl.data.captions.flickr8k import FlickrCaptions
from wsram_ppl.data.captions.scenes import SceneCaptions
from wsram_ppl.data.digits.source import MNISTDigits, SampleDigits
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import Measure, batch_metrics, plate_nesting, prepared, training_rows
from wsram_ppl.models import GlimpseCaptioner, GlimpseClassifier

BATCH = (torch.rand(3, 2, 2), torch.tensor([0, 1, 0]))


class Plain(nn.Module):
    """A model with nothing but a program."""

    def forward(self, *batch: Tensor) -> None: ...


class Rich(Plain):
    """A model with every hook."""

    max_plate_nesting = 2

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Any, ...]:
        return 2 * images, labels

    def metrics(self, images: Tensor, labels: Tensor, samples: int) -> dict[str, Tensor | Measure]:
        return {"error": labels.float(), "weighted": Measure(labels.float(), labels + samples)}


class Source:
    """A data source with nothing but what is needed."""

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, ...]:
        return (torch.arange(size) + step,)

    def evaluation_batches(self, size: int, limit: int | None = None) -> Any:
        yield self.training_batch(0, size, 0)

    def to(self, device: torch.device | str) -> Source:
        return self


class Rows(Source):
    """A data source that can make some rows alone."""

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, ...]:
        return (100 + self.training_batch(step, size, seed)[0][rows],)


def test_a_model_without_hooks_is_a_model() -> None:
    model = Plain()
    assert prepared(model, BATCH) is BATCH
    assert batch_metrics(model, BATCH, 5) == {}
    assert plate_nesting(model) == float("inf")
    for hook in (interfaces.Prepares, interfaces.Measures, interfaces.Gazes, interfaces.Speaks):
        assert not isinstance(model, hook)


def test_hooks_are_used() -> None:
    model = Rich()
    assert prepared(model, BATCH)[0].equal(2 * BATCH[0])
    assert plate_nesting(model) == 2
    found = batch_metrics(model, BATCH, 5)
    assert found["error"].total().tolist() == [1.0, 3.0]
    assert found["weighted"].total().tolist() == [6.0, 16.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            {"error": torch.tensor(0.5)},
            r"returns 'error' of shape []: return a tensor [3], with a number",
        ),
        ({"error": torch.zeros(3, 1)}, "returns 'error' of shape [3, 1]: return a tensor [3]"),
        ({"error": 0.5}, "returns 'error' of shape float: return a tensor [3]"),
        ({"error": Measure(torch.zeros(3), torch.tensor(1))}, "returns 'error' of shape []"),
        ({"bound": torch.zeros(3)}, "returns 'bound', which is measured already: choose another name"),
        ({"step": torch.zeros(3)}, "returns 'step', which is measured already"),
        ([torch.zeros(3)], "should return a dict of tensors, not a list"),
    ],
)
def test_measures_that_cannot_be(returned: Any, message: str) -> None:
    class Wrong(Plain):
        def metrics(self, images: Tensor, labels: Tensor, samples: int) -> Any:
            return returned

    with pytest.raises(InputError, match=re.escape(f"Wrong.metrics {message}")):
        batch_metrics(Wrong(), BATCH, 5)


def test_rows_are_made_alone_where_that_is_possible_and_of_use() -> None:
    some, all_ = slice(1, 3), slice(0, 4)
    assert training_rows(Source(), 2, 4, 0, some)[0].tolist() == [3, 4]
    assert training_rows(Rows(), 2, 4, 0, some)[0].tolist() == [103, 104]
    assert training_rows(Rows(), 2, 4, 0, all_)[0].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (torch.zeros(4, 2), "not a Tensor"),
        ({"x": torch.zeros(4)}, "not a dict"),
        ((np.zeros(4), torch.zeros(4)), "not a tuple of ndarray, Tensor"),
        ((torch.tensor(1.0),), "not a tuple of Tensor"),
        (None, "not a NoneType"),
    ],
)
def test_what_is_no_batch(made: Any, found: str) -> None:
    class Wrong(Source):
        def training_batch(self, step: int, size: int, seed: int) -> Any:
            return made

    message = "a batch should be a tuple of tensors whose first dimension is the datum, (x,) for a"
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        training_rows(Wrong(), 0, 4, 0, slice(0, 2))
    assert str(caught.value).endswith(found)
    with pytest.raises(InputError, match=re.escape(f"held-out batch 1: {message}")):
        interfaces.check_batch(Plain(), made, "held-out batch 1")


@pytest.mark.parametrize("source", [SampleDigits, MNISTDigits, SceneCaptions, FlickrCaptions, Source])
def test_data_sources_are_data_sources(source: type) -> None:
    assert issubclass(source, interfaces.DataSource)


def test_the_shipped_parts_have_the_hooks_that_the_commands_need() -> None:
    classifier = GlimpseClassifier(hidden=4, num_glimpses=1, patch=2, scales=(1,))
    captioner = GlimpseCaptioner(vocabulary=5, channels=(2,), hidden=4)
    assert isinstance(classifier, interfaces.Prepares) and isinstance(classifier, interfaces.Gazes)
    assert isinstance(captioner, interfaces.Speaks) and not isinstance(captioner, interfaces.Gazes)
    for model in (classifier, captioner):
        assert isinstance(model, interfaces.Measures) and plate_nesting(model) == 1
    assert isinstance(FlickrCaptions, interfaces.ComputesFeatures)
    assert not isinstance(SampleDigits, interfaces.ComputesFeatures)
    scenes = SceneCaptions(held_out=2)
    assert isinstance(scenes, interfaces.InformsModel) and isinstance(scenes, interfaces.KeepsRecord)
