"""What training requires of a model, a guide and a data source: all hooks, in one place.

To bring your own, implement only

* a **model**: an ``nn.Module`` whose ``forward(*batch)`` is a Pyro program on a batch of the source;
* a **guide**: an ``nn.Module`` made from the model, ``Guide(model, **options)``, whose
  ``forward(*batch)`` samples the model's latent sites. The prior as guide is
  :class:`wsram_ppl.objectives.Prior`;
* a **data source**: a :class:`DataSource`. Annotate an option that names a file or a folder with
  ``Path``: a run then still works after the file has moved.

Everything else here is optional. Hooks that exist are used:

============  ==============================  ==========================================================
of            hook                            purpose
============  ==============================  ==========================================================
model         ``max_plate_nesting``           an integer: batch dimensions of plates; saves a trial run
model         :class:`Prepares`               preprocessing that does not depend on parameters
model         :class:`ChecksBatches`          refuses unsuitable batches before the first update
model         :class:`Measures`               further measures, such as an error
model         :class:`Gazes`                  pictures of where it looks (``wsram glimpses``)
model         :class:`Classifies`             the probability of each class (``wsram look``)
model         :class:`Speaks`                 captions (``wsram caption``, BLEU)
model, guide  ``baselines``                   a submodule with the networks of declared baselines:
                                              its gradient is clipped and measured separately
model, guide  a buffer named like an option   a scalar: the option may be a schedule
guide         ``forward(observations=)``      a keyword, values by observed site: for sleep-q
guide         ``is_prior``, ``model``         true if the guide is the prior, and its model
guide         ``constant_samples``            true if it detaches its samples: no ``pathwise``
data source   ``evaluation_batches(split=)``  a keyword, "validation" (the default) or "test":
                                              test data besides the validation data
data source   :class:`DrawsRows`              one process's rows of a minibatch alone
data source   :class:`Composes`               a recorded update makes its own minibatch
data source   :class:`InformsModel`           options of the model that follow from the data
data source   :class:`KeepsRecord`            what is needed to interpret the weights
data source   :class:`InformsFromRecord`      a run's model can be built without its data
data source   :class:`ReadsPictures`          reads the user's own files (``wsram look``)
data source   :class:`AdoptsRecord`           other data can be read as those of a run (its words)
data source   :class:`ComputesFeatures`       one-time preparation of data (``wsram features``)
============  ==============================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from wsram_ppl.errors import InputError

__all__ = [
    "AdoptsRecord",
    "ChecksBatches",
    "Classifies",
    "Composes",
    "ComputesFeatures",
    "DataSource",
    "DrawsRows",
    "Gaze",
    "Gazes",
    "HeldOut",
    "InformsFromRecord",
    "InformsModel",
    "KeepsRecord",
    "Measure",
    "Measures",
    "Prepares",
    "ReadsPictures",
    "Speaks",
    "batch_metrics",
    "check_batch",
    "check_finite",
    "plate_nesting",
    "prepared",
    "training_rows",
]


# Hooks of a model.


@runtime_checkable
class Prepares(Protocol):
    """A model with preprocessing that does not depend on parameters, done ahead of the update."""

    def prepare(self, *batch: Tensor) -> tuple[Any, ...]:
        """The batch in a form that :meth:`forward` of model and guide also accept.

        Called on each minibatch in the thread that prepares minibatches.
        """


@runtime_checkable
class ChecksBatches(Protocol):
    """A model that checks a batch and says what is wrong with it and what to do."""

    def check_batch(self, *batch: Tensor) -> None:
        """Called on the first minibatch and the first held-out batch of a run.

        Raises:
            InputError: types, shapes or values do not suit the model.
        """


@runtime_checkable
class Measures(Protocol):
    """A model with its own measures, reported beside the bound."""

    def metrics(self, *batch_and_samples: Any) -> Mapping[str, Tensor | Measure]:
        """Called as ``metrics(*batch, samples)``.

        Returns:
            Numbers by name, including ``error`` if there is one: values ``[B]``, or a
            :class:`Measure`.
        """


@runtime_checkable
class Gazes(Protocol):
    """A model that reports where it looks, for a picture.

    With a keyword ``samples`` it also samples sequences of looks; the Gaze then has that many rows for
    each image, one after another. ``wsram look`` calls it without labels.
    """

    def gaze(self, *batch: Tensor) -> Gaze:
        """Where it looks in each image of the batch, following its most probable choices."""
        ...


@runtime_checkable
class Classifies(Protocol):
    """A classifier, whose classes have names."""

    class_names: Sequence[str]

    def probabilities(self, images: Tensor, samples: int | None = None) -> Tensor:
        """Class probabilities, ``[B, classes]``: the mean over ``samples``; None: the likeliest one."""


@runtime_checkable
class Speaks(Protocol):
    """A model that writes captions."""

    def speaker(self, paths: int | None = None) -> Any:
        """A :class:`wsram_ppl.captions.decoding.Speaker`.

        Args:
            paths: sampled paths of looks per sentence; None for the most probable looks.
        """


class Measure(NamedTuple):
    """A measure of each datum, and the datum's weight in the mean (by default 1).

    A measure per word of a sentence, for example, is weighted by the number of words.
    """

    values: Tensor
    weights: Tensor | None = None

    def total(self) -> Tensor:
        """``[2]``, float64: the weighted sum and the sum of weights."""
        values = self.values.double()
        weights = torch.ones_like(values) if self.weights is None else self.weights.to(values)
        return torch.stack([(values * weights).sum(), weights.sum()])


@dataclass(frozen=True)
class Gaze:
    """Where a model looked in each of B images, and its answer.

    Args:
        images: ``[B, height, width]`` or ``[B, channels, height, width]``, in [0, 1].
        windows: ``[B, N, 3]``: left, top and side of each glimpse's window, in pixels of the image.
        patches: ``[B, N, k, k]`` or ``[B, N, channels, k, k]``: what the glimpses saw.
        captions: what to write under each image.
        correct: whether the answer was right, per image; None if unknown.
    """

    images: Tensor
    windows: Tensor
    patches: Tensor
    captions: Sequence[str]
    correct: Sequence[bool | None]


def prepared(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A batch as passed to model and guide (:class:`Prepares`)."""
    return model.prepare(*batch) if isinstance(model, Prepares) else batch


#: Names of measures that are not the model's.
_TAKEN = frozenset(
    {"bound", "ess", "particles", "samples", "examples", "step", "split", "updates", "learning_rate"}
    | {"entropy_weight", "seconds", "updates_per_second"}
)


def batch_metrics(model: nn.Module, batch: tuple[Tensor, ...], samples: int) -> dict[str, Measure]:
    """The model's own measures of each datum of a batch (:class:`Measures`), if it has any.

    Raises:
        InputError: one is not a tensor ``[B]``, or has the name of another measure.
    """
    if not isinstance(model, Measures):
        return {}
    found, size = model.metrics(*batch, samples), len(batch[0])
    what = f"{type(model).__name__}.metrics"
    if not isinstance(found, Mapping):
        raise InputError(f"{what} should return a dict of tensors, not a {type(found).__name__}")
    measures = {k: v if isinstance(v, Measure) else Measure(v) for k, v in found.items()}
    for name, measure in measures.items():
        if name in _TAKEN:
            raise InputError(f"{what} returns {name!r}, which is measured already: choose another name")
        for part in measure.values, measure.weights:
            shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            if part is not None and shape != [size]:
                raise InputError(
                    f"{what} returns {name!r} of shape {shape}: return a tensor [{size}], with a number "
                    "for each datum of the batch"
                )
    return measures


def plate_nesting(model: Callable[..., Any]) -> int | float:
    """How many batch dimensions the model's plates use; infinity if it does not declare this."""
    found: int | float = getattr(model, "max_plate_nesting", float("inf"))
    return found


# Hooks of a data source.

#: A split that is not trained on: validation data for choices, test data for the final measurement.
HeldOut = Literal["validation", "test"]


@runtime_checkable
class DataSource(Protocol):
    """What training and evaluation need from a data source.

    A batch is a tuple of tensors whose first dimension is the datum; it is passed as
    ``model(*batch)`` and ``guide(*batch)``. For digits it is images [B, canvas, canvas], float32 in
    [0, 1], and labels [B], int64.
    """

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, ...]:
        """The batch of update ``step`` (from 0): ``size`` training data.

        A pure function of its arguments, so that a run can be resumed at any step.
        """
        ...

    def evaluation_batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """The fixed validation set, or the first ``limit`` of it; the last batch may be smaller.

        A source with a test set takes a keyword ``split``, a :data:`HeldOut`.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Moves the data to ``device``, where its batches will be; returns the source itself."""
        ...


@runtime_checkable
class DrawsRows(Protocol):
    """A data source that can make only some rows of a training batch."""

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, ...]:
        """The rows of :meth:`DataSource.training_batch`, for one of several processes."""


@runtime_checkable
class Composes(Protocol):
    """A data source that chooses a batch on the host and composes it on the device from data there.

    A recorded update composes its own batch, so that all of it is one launch. ``training_batch`` is
    ``compose(*training_choices(...))``.
    """

    def training_choices(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, ...]:
        """What determines some rows of a training batch: small tensors on the device."""
        ...

    def compose(self, *choices: Tensor) -> tuple[Tensor, ...]:
        """The rows, by operations of torch on the choices and on tensors that stay where they are."""
        ...


@runtime_checkable
class InformsModel(Protocol):
    """A data source whose data imply options of a model, such as the number of words."""

    @property
    def model_options(self) -> Mapping[str, Any]:
        """Values by option name. A model with such an option gets it, unless the experiment sets it."""


@runtime_checkable
class KeepsRecord(Protocol):
    """A data source with a record that is needed to interpret a run's weights, such as the words."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Plain data, kept with the run and compared when the run is used again.

        Its ``training`` part is ignored when the run is measured on other data.
        """


@runtime_checkable
class ComputesFeatures(Protocol):
    """A data source (the class itself) that reads features computed once."""

    def compute_features(
        self,
        options: Mapping[str, Any],
        *,
        device: torch.device | str,
        progress: Callable[[int, int], None],
    ) -> tuple[Any, Sequence[str]]:
        """Computes the features that a source with these options reads.

        Args:
            options: of the constructor; defaults apply to those left out.
            progress: called with the number of data done and their total.

        Returns:
            The store, and a line for each problem found in the data.
        """


@runtime_checkable
class InformsFromRecord(Protocol):
    """A data source (the class itself) that knows ``model_options`` without its data."""

    def implied_options(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The ``model_options`` of a source with this record (:class:`KeepsRecord`)."""


@runtime_checkable
class AdoptsRecord(Protocol):
    """A data source that can read its data as those of a run, to measure the run on them."""

    def adopt(self, record: Mapping[str, Any]) -> None:
        """Takes over what a run's record (:class:`KeepsRecord`) says of its data, such as its words."""


@runtime_checkable
class ReadsPictures(InformsFromRecord, Protocol):
    """A data source (the class itself) that makes its images from the user's own files.

    Its own data are not needed.
    """

    def read_pictures(
        self, files: Sequence[str], options: Mapping[str, Any], record: Mapping[str, Any]
    ) -> tuple[Tensor, Sequence[str]]:
        """Images as in a batch, and a line for each that had to be changed.

        Args:
            options: of the constructor.
            record: the run's record (:class:`KeepsRecord`).

        Raises:
            InputError: a file is not a picture.
        """


def training_rows(
    source: DataSource, step: int, size: int, seed: int, rows: slice
) -> tuple[Tensor, ...]:
    """Some rows of the batch of update ``step``, without making the rest if the source can.

    Raises:
        InputError: what the source yields is no batch.
    """
    if isinstance(source, DrawsRows) and rows != slice(0, size):
        return _batch(source.training_rows(step, size, seed, rows))
    return tuple(part[rows] for part in _batch(source.training_batch(step, size, seed)))


def _batch(made: object, what: str = "") -> tuple[Tensor, ...]:
    """What a source has made, if it is a batch; else an InputError, on ``what`` if it is given."""
    parts = made if isinstance(made, tuple | list) else ()
    if not parts or not all(isinstance(part, Tensor) and part.dim() for part in parts):
        found = f"a {type(made).__name__} of {', '.join(type(part).__name__ for part in parts)}"
        raise InputError(
            f"{what}{': ' if what else ''}a batch should be a tuple of tensors whose first dimension is "
            f"the datum, (x,) for a single one, not {found if parts else f'a {type(made).__name__}'}"
        )
    return tuple(parts)


def check_batch(model: nn.Module, batch: tuple[Tensor, ...], what: str) -> None:
    """InputError if a batch is not finite, or the model cannot work on it (:class:`ChecksBatches`).

    Args:
        what: the batch, for the message.
    """
    check_finite(_batch(batch, what), what)
    if isinstance(model, ChecksBatches):
        try:
            model.check_batch(*batch)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error


def check_finite(batch: tuple[Tensor, ...], what: str) -> None:
    """InputError if a tensor of a batch contains NaN or infinity.

    Args:
        what: the batch, for the message.
    """
    for index, part in enumerate(batch):
        if not part.isfinite().all():
            raise InputError(f"part {index} of {what} is not finite: look at the data")
