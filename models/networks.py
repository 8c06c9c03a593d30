"""Plain ``torch.nn`` pieces of the attention models: no Pyro in here, so that they can be compiled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.glimpses import Pyramid, build_pyramid, extract
from wsram_ppl.handlers import shared


def recurrent_linear(inputs: int, hidden: int, memory: float = 0.9) -> nn.Linear:
    """A layer on [input, own state] whose recurrent part starts as ``memory`` times the identity."""
    layer = nn.Linear(inputs + hidden, hidden)
    with torch.no_grad():
        layer.weight[:, inputs:] = memory * torch.eye(hidden)
    return layer


class Policy(nn.Module):
    """Reads off a state where to look: location mean in (-1, 1)^2 and scale logits."""

    def __init__(self, hidden: int, num_scales: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 2 + num_scales)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., hidden] -> [..., 2], [..., num_scales]``."""
        mean, logits = self.linear(state).split([2, self.linear.out_features - 2], -1)
        return torch.tanh(mean), logits


class ProposalNetwork(nn.Module):
    """The inference network: a layer on [r2, one_hot(y)] and a policy of the usual form."""

    def __init__(self, inputs: int, hidden: int, classes: int, num_scales: int) -> None:
        super().__init__()
        self.state = nn.Linear(inputs, hidden)
        self.label = nn.Embedding(classes, hidden)  # with `state`: a layer on [r2, one_hot(y)]
        self.policy = Policy(hidden, num_scales)

    def forward(self, r2: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """A policy from ``r2 [..., B, inputs]`` and an embedded label ``[..., B, hidden]``."""
        policy: tuple[Tensor, Tensor] = self.policy(torch.relu(self.state(r2) + label))
        return policy


class SiteBaselines(nn.Module):
    """One prediction per latent site from a state and the label: a baseline, or a coefficient."""

    def __init__(self, hidden: int, classes: int, num_sites: int) -> None:
        super().__init__()
        self.state = nn.Linear(hidden, hidden)
        self.label = nn.Embedding(classes, hidden)
        self.out = nn.Linear(hidden, num_sites)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, state: Tensor, labels: Tensor, site: int) -> Tensor:
        """``[..., hidden], [...] -> [...]`` for the site of that index."""
        features = torch.relu(self.state(state) + self.label(labels))
        return features @ self.out.weight[site] + self.out.bias[site]


class State(NamedTuple):
    """Both recurrent layers, ``[..., images, hidden]``: r1 predicts, r2 decides where to look."""

    r1: Tensor
    r2: Tensor


class GlimpseNetwork(nn.Module):
    """The recurrent attention network of Ba et al. (2015), section 3.

    A glimpse updates r1, r1 updates r2, and r2 chooses the next glimpse. The low-resolution context
    starts r2 alone, so it reaches the label only through where it makes the network look.

    Args:
        hidden: H, units of every layer.
        patch: k; a glimpse is k x k pixels.
        scales: pixels of the image per pixel of the glimpse, for each scale that can be chosen.
        classes: labels to tell apart.
        context: side of the image as the context sees it.
    """

    def __init__(
        self, hidden: int, patch: int, scales: tuple[int, ...], classes: int, context: int = 12
    ) -> None:
        super().__init__()
        self.hidden, self.patch, self.scales, self.context = hidden, patch, scales, context
        self.context_layers = nn.Sequential(
            nn.Linear(context * context, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.what = nn.Linear(patch * patch, hidden)
        self.where = nn.Linear(2, hidden)
        self.which = nn.Embedding(len(scales), hidden)  # with `where`: a layer on [location, one_hot]
        self.glimpse = nn.Linear(hidden, hidden)
        self.layer1 = recurrent_linear(hidden, hidden)
        self.layer2 = recurrent_linear(hidden, hidden)
        self.policy = Policy(hidden, len(scales))
        self.label = nn.Linear(hidden, classes)

    @shared
    def start(self, images: Tensor) -> tuple[Pyramid, State]:
        """``images [B, height, width]`` -> what glimpses are read from, and the state before any."""
        small = F.adaptive_avg_pool2d(images.unsqueeze(1), self.context).flatten(1)
        r2 = self.context_layers(small)
        return build_pyramid(images, self.scales, self.patch), State(torch.zeros_like(r2), r2)

    @shared
    def look(self, pyramid: Pyramid, location: Tensor, scale: Tensor, r1: Tensor, r2: Tensor) -> State:
        """The state after a glimpse at ``location [..., B, 2]`` and ``scale [..., B]`` (an index)."""
        patch = extract(pyramid, location, scale)
        what = torch.relu(self.what(patch))
        where = torch.relu(self.where(location) + self.which(scale))
        g = torch.relu(self.glimpse(what * where))
        r1 = torch.relu(self.layer1(_join(g, r1)))
        r2 = torch.relu(self.layer2(_join(r1, r2)))
        return State(r1, r2)

    def classify(self, state: State) -> Tensor:
        """Label logits ``[..., B, classes]``, from r1 alone."""
        logits: Tensor = self.label(state.r1)
        return logits


def _join(new: Tensor, old: Tensor) -> Tensor:
    """Concatenates features; the state before the first glimpse has no particle dimension yet."""
    return torch.cat([new, old.expand_as(new)], -1)
