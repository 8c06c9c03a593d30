"""Plain ``torch.nn`` parts of the attention models, without Pyro's effects, so they can be compiled."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.errors import InputError
from wsram_ppl.primitives.glimpses import Levels, Pyramid, build_pyramid, extract
from wsram_ppl.primitives.handlers import memoize
from wsram_ppl.primitives.layers import Linear, wide


class RecurrentLayer(nn.Module):
    """relu(W [input, state]); the recurrent part of W starts as ``memory`` times the identity.

    The two parts are two products, not one on concatenated inputs: the state before the first glimpse is
    shared by all particles, and so is its product.
    """

    def __init__(self, inputs: int, hidden: int, memory: float = 0.9) -> None:
        super().__init__()
        self.input = Linear(inputs, hidden, relu=True)
        self.recurrent = Linear(hidden, hidden, bias=False)
        with torch.no_grad():
            self.recurrent.weight.copy_(memory * torch.eye(hidden))

    def forward(self, new: Tensor, state: Tensor) -> Tensor:
        """``[..., inputs], [..., hidden] -> [..., hidden]``, with broadcasting."""
        found: Tensor = self.input(new, also=(state, self.recurrent.weight))
        return found


class Policy(nn.Module):
    """Predicts where to look from a state: location mean in (-1, 1)^2 and scale logits."""

    def __init__(self, hidden: int, num_scales: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 2 + num_scales)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., hidden] -> [..., 2], [..., num_scales]``."""
        mean, logits = self.linear(state).split([2, self.linear.out_features - 2], -1)
        return torch.tanh(mean), logits


class ProposalNetwork(nn.Module):
    """The inference network: a layer on [r2, one_hot(y)] and a policy of the model's form."""

    def __init__(self, inputs: int, hidden: int, classes: int, policy: nn.Module) -> None:
        super().__init__()
        self.state = Linear(inputs, hidden, relu=True)
        self.label = nn.Embedding(classes, hidden)  # with `state`: a layer on [r2, one_hot(y)]
        self.policy = policy

    def forward(self, r2: Tensor, label: Tensor, *context: Any) -> Any:
        """The policy's output for ``r2 [..., B, inputs]``, an embedded label ``[..., B, hidden]``."""
        return self.policy(self.state(r2, plus=label), *context)


class SiteBaselines(nn.Module):
    """One prediction per latent site from a state and the label: a baseline, or a coefficient."""

    def __init__(self, hidden: int, classes: int, num_sites: int) -> None:
        super().__init__()
        self.state = Linear(hidden, hidden, relu=True)
        self.label = nn.Embedding(classes, hidden)
        self.out = nn.Linear(hidden, num_sites)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, state: Tensor, label: Tensor) -> Tensor:
        """Three inputs of predictions, given an embedded label: each ``[..., hidden]``."""
        features: Tensor = self.state(state, plus=label)
        return features

    def declare(self, sites: Iterable[int], state: Tensor, label: Tensor) -> list[InferDict]:
        """``infer`` of the sites of these indices, all chosen from one state, in Pyro's schema."""
        features: list[Tensor] = []  # computed for all on first use: some objectives need none

        def predict(site: int, state: Tensor) -> Tensor:
            if not features:
                features.append(self(state, label))
            predicted: Tensor = features[0] @ self.out.weight[site] + self.out.bias[site]
            return wide(predicted)

        # Pyro's own key, missing from its type of ``infer``.
        return [
            cast(
                InferDict,
                {"baseline": {"nn_baseline": partial(predict, site), "nn_baseline_input": state}},
            )
            for site in sites
        ]


class GlimpseEncoder(nn.Module):
    """What was seen, multiplied by where and at which scale it was seen; then another layer."""

    def __init__(self, pixels: int, num_scales: int, hidden: int) -> None:
        super().__init__()
        self.what = Linear(pixels, hidden, relu=True)
        self.where = Linear(2, hidden, relu=True)
        self.which = nn.Embedding(num_scales, hidden)  # with `where`: a layer on [location, one_hot]
        self.glimpse = Linear(hidden, hidden, relu=True)

    def forward(self, patch: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """``[..., pixels], [..., 2], [...] -> [..., hidden]``."""
        where = self.where(location, plus=self.which(scale))
        found: Tensor = self.glimpse(self.what(patch) * where)
        return found


class PooledContext(nn.Sequential):
    """Two layers on the image at a low resolution, 12 x 12."""

    side = 12

    def __init__(self, channels: int, hidden: int) -> None:
        pixels = channels * self.side**2
        super().__init__(Linear(pixels, hidden, relu=True), Linear(hidden, hidden, relu=True))

    def reduce(self, images: Tensor) -> Tensor:
        """``[B, channels, height, width]`` preprocessed for :meth:`forward`, without parameters."""
        return F.adaptive_avg_pool2d(images, self.side).flatten(1)


class ConvContext(nn.Sequential):
    """Three convolutions on the image at a low resolution, 32 x 32, and a layer (Ba et al. 2014)."""

    side = 32

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            Linear(32 * (self.side // 4) ** 2, hidden, relu=True),
        )

    def reduce(self, images: Tensor) -> Tensor:
        """``[B, channels, height, width]`` preprocessed for :meth:`forward`, without parameters."""
        return F.adaptive_avg_pool2d(images, self.side)


class ImageFeatures:
    """Preprocessed images, before any parameter is used.

    Not a dataclass: Lightning Fabric would copy it, tensor by tensor, at every call.

    Args:
        pyramid: the pyramid that glimpses are read from.
        context: the images at low resolution, the input of the context's layers.
    """

    def __init__(self, pyramid: Pyramid, context: Tensor) -> None:
        self.pyramid, self.context = pyramid, context


class GlimpseNetwork(nn.Module):
    """The recurrent attention network of Ba et al. (2015), section 3.

    A glimpse updates r1, r1 updates r2, and r2 chooses the next glimpse; both are ``[..., B, hidden]``,
    and r1 is zero before the first. The low-resolution context initialises only r2, so it reaches the
    label only through the choice of where to look.

    Args:
        hidden: H, units of every layer.
        patch: k; a glimpse is k x k pixels.
        scales: pixels of the image per pixel of the glimpse, for each scale that can be chosen.
        classes: number of labels.
        channels: of an image: 1 for grey, 3 for colour.
        conv: whether the context is :class:`ConvContext`, not :class:`PooledContext`.
    """

    def __init__(
        self,
        hidden: int,
        patch: int,
        scales: tuple[int, ...],
        classes: int,
        channels: int = 1,
        conv: bool = False,
    ) -> None:
        super().__init__()
        self.hidden, self.patch, self.scales, self.channels = hidden, patch, scales, channels
        self.context_layers = (ConvContext if conv else PooledContext)(channels, hidden)
        self.encoder = GlimpseEncoder(channels * patch * patch, len(scales), hidden)
        self.layer1 = RecurrentLayer(hidden, hidden)
        self.layer2 = RecurrentLayer(hidden, hidden)
        self.policy = Policy(hidden, len(scales))
        self.label = nn.Linear(hidden, classes)
        self._levels: Levels | None = None  # of the last images

    def see(self, images: Tensor) -> ImageFeatures:
        """Preprocesses ``images [B, height, width]``, or ``[B, channels, height, width]``.

        Raises:
            InputError: they do not suit this network.
        """
        check_images(images, self.channels)
        colour = self.channels > 1
        with_channels = images if images.dim() == 4 else images.unsqueeze(1)
        context = self.context_layers.reduce(with_channels)
        images = with_channels if colour else with_channels.squeeze(1)
        if self._levels is None or not self._levels.fit(images):
            self._levels = Levels.of(images, self.scales)
        return ImageFeatures(build_pyramid(images, self._levels, self.patch, colour=colour), context)

    @memoize
    def start(self, images: Tensor | ImageFeatures) -> tuple[Pyramid, Tensor, Tensor]:
        """Images, raw or preprocessed -> the pyramid for glimpses, and r1, r2 before the first."""
        sight = self.see(images) if isinstance(images, Tensor) else images
        r2 = self.context_layers(sight.context)
        return sight.pyramid, torch.zeros_like(r2), r2

    @memoize
    def look(self, pyramid: Pyramid, location: Tensor, scale: Tensor, r1: Tensor) -> Tensor:
        """r1 after a glimpse at ``location [..., B, 2]`` and ``scale [..., B]`` (an index)."""
        g = self.encoder(extract(pyramid, location, scale), location, scale)
        new: Tensor = self.layer1(g, r1)
        return new

    @memoize
    def decide(self, r1: Tensor, r2: Tensor) -> Tensor:
        """r2 after r1; it chooses the next glimpse."""
        new: Tensor = self.layer2(r1, r2)
        return new

    def classify(self, r1: Tensor) -> Tensor:
        """Label logits ``[..., B, classes]``, from r1 alone."""
        logits: Tensor = self.label(r1)
        return logits


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """InputError unless they are ``[count]`` whole numbers from 0 to ``classes - 1``."""
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise InputError(
            f"the labels are {labels.dtype} of shape {tuple(labels.shape)}: they should be torch.int64, "
            f"one for each of {count} images"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise InputError(f"a label is {low}: labels are whole numbers from 0")
    if high >= classes:
        raise InputError(
            f"a label is {high}, but the model has {classes} classes, 0 to {classes - 1}: set "
            f"model.classes = {high + 1} or more"
        )


def check_images(images: Tensor, channels: int) -> None:
    """InputError unless images have a dtype and a shape that a network with ``channels`` accepts."""
    shape = tuple(images.shape)
    if not images.is_floating_point():
        remedy = "make them floating point, in [0, 1]"
        if images.dtype == torch.uint8:
            remedy = "divide them by 255, as float32"
        raise InputError(f"the images are {images.dtype}: {remedy}")
    if images.dim() not in (3, 4):
        raise InputError(
            f"the images are of shape {shape}: they should be [B, height, width] or [B, channels, "
            "height, width]"
        )
    found = shape[1] if images.dim() == 4 else 1
    if found == channels:
        return
    if images.dim() == 4 and shape[-1] == channels:
        raise InputError(
            f"the images are of shape {shape}, channels last: move them with images.permute(0, 3, 1, 2)"
        )
    raise InputError(
        f"the images are of shape {shape}, with {found} channel(s), but the model's are {channels}: set "
        f"model.image_channels = {found}"
    )
