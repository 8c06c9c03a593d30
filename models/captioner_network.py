"""The plain ``torch.nn`` part of the captioner: cells of feature maps, recurrence, policies, words.

``[..., B]`` stands for any number of particle dimensions left of the batch. Anything that does not
depend on where the model looked is computed once, per picture or per word, never per particle. Features
are not projected before reading, only what is read of them, which avoids a gradient of all maps at
every word.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsram_ppl.errors import InputError
from wsram_ppl.models.classifier_network import Policy, SiteBaselines
from wsram_ppl.primitives.handlers import memoize
from wsram_ppl.primitives.layers import Linear, SharedDropout, wide

#: Channels of every cell besides its features: x, y and a constant.
_PLACE = 3


class State(NamedTuple):
    """The state of an LSTM layer: output and memory, ``[..., B, hidden]``."""

    output: Tensor
    memory: Tensor


class Drive(NamedTuple):
    """What a word contributes to the gates of both layers, ``[..., B, 4 hidden]``."""

    first: Tensor
    second: Tensor


class Choice(NamedTuple):
    """Where a policy would look: layer logits ``[..., B, layers]``, and the place in each layer.

    ``place`` holds a score for every cell of every layer ``[..., B, cells]``, or the mean (x, y) of a
    location ``[..., B, 2]``.
    """

    layers: Tensor
    place: Tensor


class Cells(NamedTuple):
    """The cells of all layers of B pictures, for reading.

    Attributes:
        maps: for each layer ``[B, height * width, channels + 3]``, scaled to a mean square of 1 per
            picture; the last channels are x and y of the cell's centre, and 1.
        sizes: (height, width) of each layer.
        centres: ``[cells, 2]``, (x, y) of all cells, layer after layer.
        layer: ``[cells]``, the layer of each.
    """

    maps: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]
    centres: Tensor
    layer: Tensor

    @property
    def starts(self) -> list[int]:
        """The number of each layer's first cell."""
        counts = [height * width for height, width in self.sizes]
        return [sum(counts[:layer]) for layer in range(len(counts))]


class View(NamedTuple):
    """Everything known of B pictures before the first word."""

    cells: Cells
    drive: Tensor
    first: State
    second: State


def make_cells(maps: tuple[Tensor, ...]) -> Cells:
    """Maps ``[B, channels, height, width]`` as cells, scaled, with positions as additional channels."""
    laid_out, sizes, centres, layers = [], [], [], []
    for layer, features in enumerate(maps):
        height, width = features.shape[-2:]
        y = (2 * torch.arange(height, device=features.device) + 1) / height - 1
        x = (2 * torch.arange(width, device=features.device) + 1) / width - 1
        place = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        place = place.reshape(-1, 2).to(features.dtype)
        size = features.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
        flat = (features / size).flatten(2).transpose(1, 2)
        known = torch.cat([place, torch.ones_like(place[:, :1])], -1)
        laid_out.append(torch.cat([flat, known.expand(len(flat), -1, -1)], -1))
        sizes.append((height, width))
        centres.append(place)
        layers.append(torch.full_like(place[:, 0], layer, dtype=torch.long))
    return Cells(tuple(laid_out), tuple(sizes), torch.cat(centres), torch.cat(layers))


def read_cell(cells: Cells, layer: Tensor, cell: Tensor) -> Tensor:
    """The features of the chosen cell, ``[..., B, sum of channels]``, zero for all other layers.

    Args:
        layer: ``[..., B]``.
        cell: ``[..., B]``, its number among the cells of all layers.
    """
    seen = []
    for index, (features, start) in enumerate(zip(cells.maps, cells.starts, strict=True)):
        pictures, count, _ = features.shape
        inside = (cell - start).clamp(0, count - 1)
        row = inside + count * torch.arange(pictures, device=cell.device)
        found = features.flatten(0, 1).index_select(0, row.flatten())
        found = found.view(*row.shape, -1)
        seen.append(found * (layer == index).unsqueeze(-1).to(found.dtype))
    return torch.cat(seen, -1)


def read_place(cells: Cells, layer: Tensor, location: Tensor) -> Tensor:
    """The chosen layer's features at a location, by bilinear interpolation; see :func:`read_cell`.

    Beyond the centres of the outermost cells the map is constant.

    Args:
        layer: ``[..., B]``.
        location: ``[..., B, 2]``, (x, y), with -1 and 1 the picture's edges.
    """
    layer, x, y = torch.broadcast_tensors(layer, location[..., 0], location[..., 1])
    seen = []
    for index, (features, (height, width)) in enumerate(zip(cells.maps, cells.sizes, strict=True)):
        pictures, count, channels = features.shape
        column = (((x + 1) * width - 1) / 2).clamp(0, width - 1)
        row = (((y + 1) * height - 1) / 2).clamp(0, height - 1)
        # The upper left of four neighbours; a layer with a single row or column is its own neighbour.
        left = column.floor().clamp_max(max(width - 2, 0))
        top = row.floor().clamp_max(max(height - 2, 0))
        across, down = min(width - 1, 1), min(height - 1, 1) * width
        first = count * torch.arange(pictures, device=x.device) + (top * width + left).long()
        corners = [
            features.flatten(0, 1).index_select(0, (first + step).flatten()).view(*x.shape, channels)
            for step in (0, across, down, down + across)
        ]
        right, low = (part.unsqueeze(-1).to(features.dtype) for part in (column - left, row - top))
        upper, lower = (torch.lerp(corners[i], corners[i + 1], right) for i in (0, 2))
        found = torch.lerp(upper, lower, low)
        seen.append(found * (layer == index).unsqueeze(-1).to(found.dtype))
    return torch.cat(seen, -1)


class GridPolicy(nn.Module):
    """Scores every cell of every layer by its content: a query from the state, times its features.

    A layer's logit is the log of the mean exponential score of its cells. So if all layers had the same
    size, choosing a layer and then one of its cells would be choosing among all cells. The constant
    channel of a layer is its bias.
    """

    def __init__(self, hidden: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = [count + _PLACE for count in channels]
        self.query = Linear(hidden, sum(self.widths))

    def forward(self, state: Tensor, cells: Cells) -> Choice:
        """``[..., B, hidden] -> Choice``, scores for ``place``."""
        queries = self.query(state).split(self.widths, -1)
        scores = [
            wide(torch.einsum("...bc,bnc->...bn", query, features.to(query.dtype))) / width**0.5
            for query, features, width in zip(queries, cells.maps, self.widths, strict=True)
        ]
        layers = [score.logsumexp(-1) - math.log(score.shape[-1]) for score in scores]
        return Choice(torch.stack(layers, -1), torch.cat(scores, -1))


class PlacePolicy(Policy):
    """Predicts a mean (x, y) and layer logits from the state alone."""

    def forward(self, state: Tensor, cells: Cells) -> Choice:  # type: ignore[override]
        """``[..., B, hidden] -> Choice``, a mean for ``place``."""
        mean, layers = super().forward(state)
        return Choice(wide(layers), wide(mean))


class LSTMLayer(nn.Module):
    """An LSTM whose gates receive an additional contribution; the forget gate starts open.

    The contribution is computed elsewhere, since it is the same for all particles.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = Linear(inputs + hidden, 4 * hidden)
        with torch.no_grad():
            self.gates.bias.zero_()
            self.gates.bias[hidden : 2 * hidden] = 1.0

    def forward(self, new: Tensor, drive: Tensor, state: State) -> State:
        """``[..., B, inputs], [..., B, 4 hidden] -> [..., B, hidden]``, with broadcasting."""
        shape = torch.broadcast_shapes(new.shape[:-1], state.output.shape[:-1])
        both = torch.cat([part.expand(*shape, -1) for part in (new, state.output)], -1)
        gates = wide(self.gates(both, plus=drive))
        opened, candidate = gates.split([3 * self.hidden, self.hidden], -1)
        write, keep, show = torch.sigmoid(opened).chunk(3, -1)
        memory = keep * state.memory + write * torch.tanh(candidate)
        return State(show * torch.tanh(memory), memory)


class CaptionNetwork(nn.Module):
    """The recurrent attention network of Ba et al. (2015) for sentences (section 5.2).

    For each word, the second layer, which knows the whole picture's mean features, the previous word and
    the first layer, decides where to look. What is seen there and the previous word go into the first
    layer, from which alone the word is predicted. So the picture reaches the words only through the
    choice of where to look.

    Args:
        hidden: units of both layers, of words and of what is seen.
        words: size of the vocabulary.
        channels: of each layer of the conv net.
        by_cell: whether locations are cells.
        dropout: of words, what is seen, and the state that words are predicted from; the same units for
            all particles of a sentence.
    """

    def __init__(
        self, hidden: int, words: int, channels: tuple[int, ...], by_cell: bool, dropout: float
    ) -> None:
        super().__init__()
        self.hidden, self.channels, self.by_cell = hidden, channels, by_cell
        self.word = nn.Embedding(words, hidden)
        nn.init.normal_(self.word.weight, std=0.1)
        self.see = Linear(sum(channels) + _PLACE * len(channels), hidden, relu=True)
        self.whole = Linear(sum(channels), hidden, relu=True)
        self.drive = Linear(hidden, 8 * hidden, bias=False)
        self.picture = Linear(hidden, 4 * hidden, bias=False)
        self.layer1 = LSTMLayer(hidden, hidden)
        self.layer2 = LSTMLayer(hidden, hidden)
        self.policy = self.make_policy()
        self.dropout, self.shared_dropout = nn.Dropout(dropout), SharedDropout(dropout)
        self.readout = Linear(hidden, words)

    def make_policy(self) -> GridPolicy | PlacePolicy:
        """A policy of the chosen form; the inference network has its own."""
        if self.by_cell:
            return GridPolicy(self.hidden, self.channels)
        return PlacePolicy(self.hidden, len(self.channels))

    def check_maps(self, *maps: Tensor) -> None:
        """Raises an InputError if ``maps [B, channels, height, width]`` do not fit the network."""
        found = tuple(features.shape[1] for features in maps)
        if found != self.channels:
            raise InputError(
                f"the captioner reads maps of {list(self.channels)} channels, but the data have "
                f"{list(found)}: leave model.channels to the data"
            )

    @memoize
    def start(self, *maps: Tensor) -> View:
        """``maps [B, channels, height, width]`` -> the view that captions are predicted from.

        Raises:
            InputError: the maps do not fit the network.
        """
        self.check_maps(*maps)
        cells = make_cells(maps)
        mean = [features.mean(1)[..., :-_PLACE] for features in cells.maps]
        whole = self.whole(torch.cat(mean, -1))
        if torch.is_autocast_enabled(whole.device.type):  # once, not at every word
            cells = cells._replace(maps=tuple(features.to(whole.dtype) for features in cells.maps))
        nothing = torch.zeros_like(wide(whole))
        state = State(nothing, nothing)
        return View(cells, self.picture(whole), state, state)

    def hear(self, view: View, words: Tensor) -> Drive:
        """What ``words [..., B]`` (and the pictures) contribute to the next step."""
        first, second = self.drive(self.dropout(self.word(words))).chunk(2, -1)
        return Drive(first, second + view.drive)

    @memoize
    def hear_all(self, view: View, words: Tensor) -> list[Drive]:
        """``words [..., B, T]`` -> :meth:`hear` of each of the T, all at once."""
        both = self.hear(view, words.movedim(-1, 0))
        return [Drive(*step) for step in zip(both.first.unbind(0), both.second.unbind(0), strict=True)]

    @memoize
    def decide(self, drive: Drive, first: State, second: State) -> State:
        """The second layer before a word, which chooses where to look for it."""
        new: State = self.layer2(first.output, drive.second, second)
        return new

    @memoize
    def look(self, view: View, layer: Tensor, location: Tensor, drive: Drive, first: State) -> State:
        """The first layer after a look at ``location [..., B(, 2)]`` of ``layer [..., B]``."""
        read = read_cell if self.by_cell else read_place
        seen = self.see(read(view.cells, layer, location))
        new: State = self.layer1(self.shared_dropout(seen), drive.first, first)
        return new

    def say(self, first: State) -> Tensor:
        """Word logits ``[..., B, words]``, from the first layer alone."""
        logits: Tensor = self.readout(self.shared_dropout(first.output))
        return logits


class SentenceBaselines(SiteBaselines):
    """One prediction per latent site of a word, from a state and the words that are still to come."""

    def __init__(self, hidden: int, words: int, num_sites: int) -> None:
        super().__init__(hidden, words, num_sites)
        nn.init.normal_(self.label.weight, std=0.1)  # many are summed

    def to_come(self, words: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """``[B, T + 1]`` -> for each t the sum over words t..T, embedded, ``[B, hidden]``."""
        counted: Tensor = self.label(words.T) * mask.T.unsqueeze(-1)
        return counted.flip(0).cumsum(0).flip(0).unbind(0)
