"""The glimpse classifier: a prediction network that samples where to look."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from pyro.nn import PyroModule
from pyro.poutine.runtime import InferDict
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import Gaze
from wsram_ppl.models.classifier_network import (
    GlimpseNetwork,
    ImageFeatures,
    SiteBaselines,
    check_images,
    check_labels,
)
from wsram_ppl.primitives.distributions import Categorical
from wsram_ppl.primitives.glimpses import extract, window
from wsram_ppl.primitives.handlers import Mode


class GlimpseSequence(NamedTuple):
    """The result of one run of the model: ``[..., B, classes]``, ``[..., B, N, 2]``, ``[..., B, N]``."""

    logits: Tensor
    locations: Tensor
    scales: Tensor


class GlimpseClassifier(PyroModule):
    """Classifies an image from a few glimpses, each at a sampled location and scale (WS-RAM).

    The prediction network of Ba et al. (2015), sections 3 and 5.1, as a Pyro model. In plate
    ``images`` it samples, for each glimpse n = 1..N,

    * ``location_n`` ~ Normal(mean(r2), location_std), (x, y) in units where the image spans
      [-1, 1]^2, (0, 0) its centre;
    * ``scale_n`` ~ Categorical(logits(r2)), an index into ``scales``;

    and then ``label`` ~ Categorical(logits(r1)). Every latent site declares a baseline on the recurrent
    state (and the label), for objectives that use one.

    Args:
        hidden: H, units of every layer.
        num_glimpses: N.
        patch: k; a glimpse is k x k pixels.
        scales: pixels of the image per pixel of the glimpse, one per scale to choose from.
        location_std: standard deviation of a location; a scalar buffer, so that it can be scheduled.
        classes: number of labels; by default the data's, or 10.
        context: the view of the whole image that chooses the first glimpse: "pooled", two layers on
            12 x 12 pixels (the default), or "conv", three convolutions on 32 x 32.
        image_channels: 1 for grey, 3 for colour; by default the data's, or 1.
        class_names: the names of the labels, for pictures; by default the data's, or their numbers.
    """

    #: Batch dimensions used by plates, for objectives.
    max_plate_nesting = 1

    location_std: Tensor

    def __init__(
        self,
        *,
        hidden: PositiveInt = 128,
        num_glimpses: PositiveInt = 4,
        patch: PositiveInt = 12,
        scales: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4),
        location_std: Annotated[float, Field(gt=0)] = 0.15,
        classes: Annotated[int, Field(ge=2)] | None = None,
        context: Literal["pooled", "conv"] = "pooled",
        image_channels: PositiveInt | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        classes = classes or len(class_names or ()) or 10
        if class_names is not None and len(class_names) != classes:
            raise InputError(
                f"there are {len(class_names)} class_names (the data's, if you gave none) for classes = "
                f"{classes}: leave out model.classes"
            )
        if len(set(scales)) < len(scales):
            raise InputError(f"scales {list(scales)} contains a scale twice: each is one choice")
        self.num_glimpses, self.classes, self.scales = num_glimpses, classes, tuple(scales)
        self.class_names = class_names or tuple(map(str, range(classes)))
        self.network = GlimpseNetwork(
            hidden, patch, tuple(scales), classes, image_channels or 1, conv=context == "conv"
        )
        self.baselines = SiteBaselines(hidden, classes, 2 * num_glimpses)
        self.register_buffer("location_std", torch.tensor(float(location_std)))

    def forward(self, images: Tensor | ImageFeatures, labels: Tensor | None = None) -> GlimpseSequence:
        """The Pyro program.

        ``images [B, height, width]`` or ``[B, channels, height, width]``, in [0, 1]; ``labels [B]`` or
        None.
        """
        network, baselines = self.network, self.baselines
        pyramid, r1, r2 = network.start(images)
        label = None if labels is None else baselines.label(labels)
        locations, scales = [], []
        with pyro.plate("images", r2.shape[0], dim=-1):
            for n in range(self.num_glimpses):
                r2 = network.decide(r1, r2) if n else r2
                infer = self.declare_baseline(baselines, n, r2, label)
                location, scale = self.sample_glimpse(n, network.policy(r2), infer)
                r1 = network.look(pyramid, location, scale, r1)
                locations.append(location)
                scales.append(scale)
            logits = network.classify(r1).to(self.location_std)
            pyro.sample("label", Categorical(logits), obs=labels)
        return GlimpseSequence(logits, torch.stack(locations, -2), torch.stack(scales, -1))

    def sample_glimpse(
        self, n: int, policy: tuple[Tensor, Tensor], infer: list[InferDict]
    ) -> tuple[Tensor, Tensor]:
        """Samples sites ``location_{n+1}`` and ``scale_{n+1}``, for both guide and model."""
        mean, logits = (parameter.to(self.location_std) for parameter in policy)
        where = dist.Normal(mean, self.location_std).to_event(1)
        location = pyro.sample(f"location_{n + 1}", where, infer=infer[0])
        scale = pyro.sample(f"scale_{n + 1}", Categorical(logits), infer=infer[1])
        return location, scale

    def declare_baseline(
        self, baselines: SiteBaselines, n: int, r2: Tensor, label: Tensor | None
    ) -> list[InferDict]:
        """``infer`` for the two sites of glimpse n: a baseline on the state and an embedded label."""
        if label is None:
            return [{}, {}]
        return baselines.declare((2 * n, 2 * n + 1), r2, label)

    # Hooks for training, evaluation and pictures.

    def check_batch(self, images: Tensor, labels: Tensor) -> None:
        """Makes sure that images and labels suit this model.

        Raises:
            InputError: a dtype, shape or value does not.
        """
        check_images(images, self.network.channels)
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            remedy = "divide them by 255" if low >= 0 and 1 < high <= 255 else "scale them to [0, 1]"
            raise InputError(f"the images go from {low:g} to {high:g}: {remedy}")
        check_labels(labels, len(images), self.classes)

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[ImageFeatures, Tensor]:
        """Preprocessing without parameters; :meth:`forward` and the guides also take the result."""
        return self.network.see(images), labels

    @torch.no_grad()
    def look(self, images: Tensor, samples: int | None = None) -> GlimpseSequence:
        """Runs on images without labels: ``samples`` sampled glimpse sequences, or the modes if None.

        Leading dimension of the result: ``samples`` (1 for the modes).
        """
        if samples is None:
            with Mode():
                return GlimpseSequence(*(x.unsqueeze(0) for x in self(images)))
        with pyro.plate("samples", samples, dim=-2):
            looks = self(images)
        return GlimpseSequence(
            *(x.expand(samples, *x.shape[-rest:]) for x, rest in zip(looks, (2, 3, 2), strict=True))
        )

    @torch.no_grad()
    def probabilities(self, images: Tensor, samples: int | None = None) -> Tensor:
        """Class probabilities, ``[B, classes]``: the mean over samples, or by the policy's modes."""
        return torch.softmax(self.look(images, samples).logits, -1).mean(0)

    @torch.no_grad()
    def gaze(self, images: Tensor, labels: Tensor | None = None, *, samples: int | None = None) -> Gaze:
        """Where the policy's modes look in each image, for a picture.

        Args:
            labels: the labels to compare the answers with.
            samples: how many sequences to draw instead, each a row; an image's rows are adjacent.
        """
        looks = self.look(images, samples)
        pyramid = self.network.see(images).pyramid
        seen = [
            extract(pyramid, looks.locations[..., n, :], looks.scales[..., n])
            for n in range(self.num_glimpses)
        ]
        patch, channels = self.network.patch, images.shape[1:-2]
        factors = torch.tensor(self.scales, device=looks.scales.device, dtype=looks.locations.dtype)
        size = images.shape[-2], images.shape[-1]
        windows = window(looks.locations, factors[looks.scales], size, patch)

        def rows(each: Tensor) -> Tensor:
            """``[S, B, ...] -> [B * S, ...]``."""
            return each.transpose(0, 1).flatten(0, 1)

        count = len(looks.logits)
        confidence, predicted = torch.softmax(rows(looks.logits), -1).max(-1)
        names, repeated = self.class_names, images.repeat_interleave(count, 0)
        pairs = zip(predicted.tolist(), confidence.tolist(), strict=True)
        said = [f"{names[n]} ({sure:.0%})" for n, sure in pairs]
        correct: list[bool | None] = [None] * len(said)
        if labels is not None:
            known = labels.repeat_interleave(count)
            compared = zip(known.tolist(), said, strict=True)
            said = [f"a {names[n]}, read as {text}" for n, text in compared]
            correct = (predicted == known).tolist()
        return Gaze(
            repeated,
            rows(torch.stack(windows, -1)),
            rows(torch.stack(seen, -2)).unflatten(-1, (*channels, patch, patch)),
            said,
            correct,
        )

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor, samples: int) -> dict[str, Tensor]:
        """Per-image measures ``[B]`` of prediction and attention, from sampled glimpse sequences.

        * ``error``: 1 if the most probable label, by mean probability over sequences, is wrong;
        * ``mode_error``: the same for the sequence of the policy's modes;
        * ``distance``: of the glimpses from the image's centre of brightness, in pixels;
        * ``scale_s``: the fraction of glimpses at scale s.
        """
        looks = self.look(images, samples)
        predicted = torch.softmax(looks.logits, -1).mean(0).argmax(-1)
        mode = self.look(images).logits[0].argmax(-1)
        size = images.new_tensor([images.shape[-1] / 2, images.shape[-2] / 2])
        centre = _centre_of_brightness(images)
        offset = (looks.locations - centre[:, None]) * size
        measures = {
            "error": (predicted != labels).to(images.dtype),
            "mode_error": (mode != labels).to(images.dtype),
            "distance": offset.norm(dim=-1).mean((0, 2)),
        }
        for index, scale in enumerate(self.scales):
            measures[f"scale_{scale}"] = (looks.scales == index).to(images.dtype).mean((0, 2))
        return measures


def _centre_of_brightness(images: Tensor) -> Tensor:
    """``[B, ..., height, width] -> [B, 2]``, (x, y) in [-1, 1]^2; the centre for a black image."""
    if images.dim() == 4:
        images = images.sum(1)
    total = images.sum((-2, -1)).clamp_min(1e-6)

    def along(profile: Tensor) -> Tensor:
        count = profile.shape[-1]
        at = (2 * torch.arange(count, device=images.device, dtype=images.dtype) + 1) / count - 1
        return (profile * at).sum(-1) / total

    return torch.stack([along(images.sum(-2)), along(images.sum(-1))], -1)
