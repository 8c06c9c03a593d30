"""A custom model and guide: choose one of nine windows of an image, read a digit from it.

Both are ordinary Pyro programs over a batch ``(images, labels)`` of the data source. Nothing has to be
registered: own.toml names them by import path. Keyword arguments of a constructor are keys of the
TOML file, and are checked against its annotations.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional as F


class WindowClassifier(PyroModule):
    """Sees the image coarsely, chooses one of 3 x 3 windows, and reads the digit from it alone."""

    def __init__(self, *, hidden: PositiveInt = 64, side: PositiveInt = 20) -> None:
        super().__init__()
        self.side = side
        self.choose = nn.Sequential(nn.Linear(36, hidden), nn.ReLU(), nn.Linear(hidden, 9))
        self.read = nn.Sequential(nn.Linear(side * side, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        windows = self.windows(images)
        each = torch.arange(len(images), device=images.device)
        with pyro.plate("images", len(images), dim=-1):
            window = pyro.sample("window", dist.Categorical(logits=self.choose(coarse(images))))
            # `window` is [B], or [particles, B] when an objective draws all particles at once.
            logits: Tensor = self.read(windows[each, window])
            pyro.sample("label", dist.Categorical(logits=logits), obs=labels)
        return logits

    def windows(self, images: Tensor) -> Tensor:
        """``[B, height, width] -> [B, 9, side * side]``, overlapping, from corner to corner."""
        down, right = ((size - self.side) // 2 for size in images.shape[-2:])
        return images.unfold(1, self.side, down).unfold(2, self.side, right).flatten(3).flatten(1, 2)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor, samples: int) -> dict[str, Tensor]:
        """Optional: what is reported besides the bound, one number per datum, ``[B]``, by name."""
        with pyro.plate("samples", samples, dim=-2):
            probabilities = self(images).softmax(-1)
        return {"error": (probabilities.mean(0).argmax(-1) != labels).float()}


class LabelledChoice(PyroModule):
    """Proposes the window, knowing the label. The first argument of a guide is the model."""

    def __init__(self, model: WindowClassifier, *, hidden: PositiveInt = 64) -> None:
        super().__init__("guide")  # keeps its parameters' names apart from the model's
        self.propose = nn.Sequential(nn.Linear(36 + 10, hidden), nn.ReLU(), nn.Linear(hidden, 9))

    def forward(self, images: Tensor, labels: Tensor) -> None:
        inputs = torch.cat([coarse(images), F.one_hot(labels, 10).to(images)], -1)
        with pyro.plate("images", len(images), dim=-1):
            pyro.sample("window", dist.Categorical(logits=self.propose(inputs)))


def coarse(images: Tensor) -> Tensor:
    """``[B, height, width] -> [B, 36]``: the mean brightness of 6 x 6 blocks."""
    return F.adaptive_avg_pool2d(images.unsqueeze(1), 6).flatten(1)
