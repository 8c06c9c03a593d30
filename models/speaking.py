"""The captioner as a speaker: a word at a time, for beam search and sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wsram_ppl.captions.decoding import Looks, follow
from wsram_ppl.models.captioner_network import State, View, wide
from wsram_ppl.primitives.handlers import Mode

if TYPE_CHECKING:
    from wsram_ppl.models.captioner import GlimpseCaptioner


class Telling(NamedTuple):
    """S paths of looks for each of K hypotheses about B pictures: ``[S, K, B, ...]``.

    Attributes:
        view: of the pictures, shared by all.
        first, second: the recurrent state.
        layers, locations: the looks so far, one more than words: ``[S, K, B, t]`` (and 2).
        path: log-probability of the words so far on each path, ``[S, K, B]``.
        coming: of the next word, ``[S, K, B, vocabulary]``; None before the first.
    """

    view: View
    first: State
    second: State
    layers: Tensor
    locations: Tensor
    path: Tensor
    coming: Tensor | None


class GlimpseSpeaker:
    """Says what the captioner says, its looks sampled from the prior or at the prior's modes.

    With S sampled paths per hypothesis the probability of a sentence is its mean over the paths, so the
    next word is predicted by all of them, each weighted by how well it predicted the words before.

    Args:
        model: the captioner.
        paths: S; None: the single path of most probable looks.
    """

    def __init__(self, model: GlimpseCaptioner, paths: int | None = None) -> None:
        self.model, self.paths = model, paths

    def begin(self, *maps: Tensor) -> Telling:
        view = self.model.network.start(*maps)
        shape = (self.paths or 1, 1, len(maps[0]))
        states = [State(*(x.expand(*shape, -1) for x in s)) for s in (view.first, view.second)]
        path = states[0].output.new_zeros(shape)
        place = () if self.model.network.by_cell else (2,)
        nowhere = torch.zeros(*shape, 0, *place, device=path.device)
        layers = torch.zeros(*shape, 0, dtype=torch.long, device=path.device)
        return Telling(view, states[0], states[1], layers, nowhere, path, None)

    def step(self, state: Telling, parents: Tensor, words: Tensor) -> tuple[Telling, Tensor]:
        network, view = self.model.network, state.view
        path = follow(state.path, parents, dim=1)
        if state.coming is not None:
            said = words.expand(len(path), *words.shape).unsqueeze(-1)
            path = path + follow(state.coming, parents, dim=1).gather(-1, said).squeeze(-1)
        first = State(*(follow(x, parents, dim=1) for x in state.first))
        second = State(*(follow(x, parents, dim=1) for x in state.second))
        drive = network.hear(view, words)
        second = network.decide(drive, first, second)
        choice = network.policy(second.output, view.cells)
        t = state.layers.shape[-1] + 1
        if self.paths is None:
            with Mode():
                layer, location = self.model.sample_look(t, choice, view.cells)
        else:
            layer, location = self.model.sample_look(t, choice, view.cells)
        first = network.look(view, layer, location, drive, first)
        coming = torch.log_softmax(wide(network.say(first)), -1)
        layers = torch.cat([follow(state.layers, parents, dim=1), layer.unsqueeze(-1)], -1)
        axis = -1 if network.by_cell else -2
        before = follow(state.locations, parents, dim=1).to(location.dtype)
        locations = torch.cat([before, location.unsqueeze(axis)], axis)
        telling = Telling(view, first, second, layers, locations, path, coming)
        mixed = (path.unsqueeze(-1) + coming).logsumexp(0) - path.logsumexp(0).unsqueeze(-1)
        return telling, mixed

    def looks(self, state: Telling, chosen: Tensor) -> Looks:
        pick = chosen.unsqueeze(0)
        layers = follow(state.layers, pick, dim=1)[:, 0]
        locations = follow(state.locations, pick, dim=1)[:, 0]
        cells = state.view.cells
        centres = cells.centres[locations] if self.model.network.by_cell else locations
        sides = centres.new_tensor([[2 / width, 2 / height] for height, width in cells.sizes])
        weights = torch.softmax(follow(state.path, pick, dim=1)[:, 0], 0)
        return Looks(layers, centres, sides[layers], weights)
