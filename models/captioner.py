"""The captioner: a prediction network that samples where to look for each word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Final, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.runtime import InferDict
from torch import Tensor

from wsram_ppl.captions.decoding import Looks, follow
from wsram_ppl.data.captions.vocabulary import END
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import Measure
from wsram_ppl.models.captioner_network import (
    CaptionNetwork,
    Cells,
    Choice,
    SentenceBaselines,
    State,
    View,
)
from wsram_ppl.primitives.distributions import Categorical
from wsram_ppl.primitives.handlers import Mode
from wsram_ppl.primitives.layers import wide

#: Latent sites per word.
SITES = 2
_STD: Final = 0.15


class Script(NamedTuple):
    """The choices of one run of the captioner for the words 1..T, each ``[..., B, T]`` (and ``2``).

    Attributes:
        words: sampled or given.
        layers: the layers looked at.
        locations: cells, or (x, y).
    """

    words: Tensor
    layers: Tensor
    locations: Tensor


class GlimpseCaptioner(PyroModule):
    """Writes a sentence about a picture, looking at a sampled place and layer for each word (WS-RAM).

    The prediction network of Ba et al. (2015), section 5.2, as a Pyro model. In plate ``captions`` it
    samples for each word t = 1..T, masked beyond a sentence's end,

    * ``layer_t`` ~ Categorical(logits(r2)), a layer of the conv net;
    * ``location_t``, where to look in it. With ``location = "grid"`` ~ Categorical over the layer's
      cells, scored by their content (its value is the cell's number among those of all layers); with
      ``"gaussian"`` ~ Normal(mean(r2), location_std), (x, y) in units where the picture spans [-1, 1]^2,
      read bilinearly;
    * ``word_t`` ~ Categorical(logits(r1)).

    Every latent site declares a baseline on the recurrent state and the words to come, for objectives
    that use one.

    Args:
        vocabulary: number of words; by default the data's.
        channels: of each layer of the conv net; by default the data's.
        hidden: units of every layer.
        location: how a location is chosen.
        location_std: standard deviation of a Gaussian location; a scalar buffer, so that it can be
            scheduled.
        dropout: of words, what is seen, and the state that words are predicted from; the same units for
            all particles of a sentence.
    """

    #: Batch dimensions used by plates, for objectives.
    max_plate_nesting = 1

    location_std: Tensor

    def __init__(
        self,
        *,
        vocabulary: PositiveInt | None = None,
        channels: tuple[PositiveInt, ...] | None = None,
        hidden: PositiveInt = 256,
        location: Literal["grid", "gaussian"] = "grid",
        location_std: Annotated[float, Field(gt=0)] = _STD,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
    ) -> None:
        super().__init__()
        if vocabulary is None or not channels:
            raise InputError(
                "the captioner needs the number of words (vocabulary) and the channels of each layer, "
                "which a source of captions provides: choose one as [data], or set both"
            )
        if location == "grid" and location_std != _STD:
            raise InputError(
                f"location_std = {location_std:g} has no effect with location = 'grid': leave it out, "
                "or choose location = 'gaussian'"
            )
        self.vocabulary, self.location = vocabulary, location
        self.network = CaptionNetwork(hidden, vocabulary, tuple(channels), location == "grid", dropout)
        self.baselines = SentenceBaselines(hidden, vocabulary, SITES)
        self.register_buffer("location_std", torch.tensor(float(location_std)))

    def forward(self, words: Tensor, mask: Tensor, *maps: Tensor) -> Script:
        """The Pyro program, on a batch of :mod:`wsram_ppl.data.captions`.

        ``words [B, T + 1]`` from the start mark on, ``mask [B, T + 1]``, and for each layer
        ``[B, channels, height, width]``.
        """
        network = self.network
        given, counted = words.unbind(-1), mask.unbind(-1)
        view = network.start(*maps)
        heard = network.hear_all(view, words)
        baselines = self.baselines
        to_come = baselines.to_come(words, mask)
        drive, r1, r2 = heard[0], view.first, view.second
        said, layers, locations = [], [], []
        with pyro.plate("captions", words.shape[0], dim=-1):
            for t in range(1, len(given)):
                with counting(counted[t]):
                    r2 = network.decide(drive, r1, r2)
                    choice = network.policy(r2.output, view.cells)
                    infer = baselines.declare(range(SITES), r2.output, to_come[t])
                    layer, location = self.sample_look(t, choice, view.cells, infer)
                    r1 = network.look(view, layer, location, drive, r1)
                    logits = network.say(r1).to(self.location_std)
                    word = pyro.sample(f"word_{t}", Categorical(logits), obs=given[t])
                # A sampled word is the next step's input, like a given one.
                drive = heard[t] if word is given[t] else network.hear(view, word)
                said.append(word)
                layers.append(layer)
                locations.append(location)
        return Script(
            torch.stack(torch.broadcast_tensors(*said), -1),
            torch.stack(layers, -1),
            torch.stack(locations, -1 if self.network.by_cell else -2),
        )

    def sample_look(
        self, t: int, choice: Choice, cells: Cells, infer: Sequence[InferDict] = ({}, {})
    ) -> tuple[Tensor, Tensor]:
        """Samples sites ``layer_t`` and ``location_t``, for both guide and model."""
        layers, place = (parameter.to(self.location_std) for parameter in choice)
        layer = pyro.sample(f"layer_{t}", Categorical(layers), infer=infer[0])
        where: dist.TorchDistribution
        if self.location == "grid":
            elsewhere = cells.layer != layer.unsqueeze(-1)
            where = Categorical(place.masked_fill(elsewhere, -torch.inf))
        else:
            where = dist.Normal(place, self.location_std).to_event(1)
        return layer, pyro.sample(f"location_{t}", where, infer=infer[1])

    # Hooks for training, evaluation and decoding.

    def check_batch(self, words: Tensor, mask: Tensor, *maps: Tensor) -> None:
        """Makes sure that sentences and maps suit this model.

        Raises:
            InputError: a dtype, shape or value does not.
        """
        if words.dtype != torch.long or mask.dtype != torch.bool or words.shape != mask.shape:
            raise InputError(
                "words should be whole numbers (int64) with a boolean mask of the same shape, not "
                f"{words.dtype} {list(words.shape)} and {mask.dtype} {list(mask.shape)}"
            )
        low, high = int(words.min()), int(words.max())
        if low < 0 or high >= self.vocabulary:
            raise InputError(
                f"words are numbered {low} to {high}, but the model has {self.vocabulary}, 0 to "
                f"{self.vocabulary - 1}"
            )
        self.network.check_maps(*maps)

    def speaker(self, paths: int | None = None) -> GlimpseSpeaker:
        """Produces sentences word by word, on ``paths`` sampled paths of looks; None: the modes."""
        return GlimpseSpeaker(self, paths)

    @torch.no_grad()
    def metrics(self, words: Tensor, mask: Tensor, *others: Any) -> dict[str, Measure]:
        """Measures of a batch ``(words, mask, *maps, samples)``, from sampled paths of looks.

        * ``nll_per_word``: -log of the mean probability of the sentence over paths, per word;
        * ``words``: number of words predicted per sentence, including the end mark;
        * ``entropy``: of the choices of layer and location, in nats per word;
        * ``layer_l``: the fraction of looks at layer l.
        """
        *maps, samples = others
        with poutine.trace() as tracer, pyro.plate("samples", samples, dim=-2):
            script = self(words, mask, *maps)
        steps = range(1, words.shape[1])
        nodes: Any = tracer.trace.nodes
        sites = [nodes[f"word_{t}"] for t in steps]
        probabilities = [site["fn"].log_prob(site["value"]) * site["mask"] for site in sites]
        each = torch.stack(torch.broadcast_tensors(*probabilities)).sum(0)
        each = each.expand(samples, len(words)).logsumexp(0) - math.log(samples)
        counted = mask[:, 1:]
        count = counted.sum(-1)
        found: dict[str, Measure] = {
            "nll_per_word": Measure(-each / count, count),
            "words": Measure(count),
        }
        entropies = [
            nodes[f"{kind}_{t}"]["fn"].entropy().expand(samples, len(words)).mean(0)
            for t in steps
            for kind in ("layer", "location")
        ]
        undecided = torch.stack(entropies, -1).unflatten(-1, (-1, SITES)).sum(-1)
        found["entropy"] = Measure((undecided * counted).sum(-1) / count, count)
        for layer in range(len(self.network.channels)):
            share = (script.layers == layer).expand(samples, *counted.shape).to(each.dtype).mean(0)
            found[f"layer_{layer}"] = Measure((share * counted).sum(-1) / count, count)
        return found


def counting(mask: Tensor) -> AbstractContextManager[Any]:
    """Sites count only where the mask ``[B]`` is true (Pyro's annotation is too narrow)."""
    return MaskMessenger(mask)  # type: ignore[arg-type]


class Telling(NamedTuple):
    """S paths of looks for each of K hypotheses about B pictures: ``[S, K, B, ...]``.

    Attributes:
        view: the pictures, shared by all.
        first, second: the recurrent state.
        layers, locations: the looks so far, one more than there are words: ``[S, K, B, t]`` (and 2).
        path: log-probability of the words so far on each path, without the end mark, ``[S, K, B]``.
        coming: log-probabilities of the next word, ``[S, K, B, vocabulary]``; None before the first.
    """

    view: View
    first: State
    second: State
    layers: Tensor
    locations: Tensor
    path: Tensor
    coming: Tensor | None


class GlimpseSpeaker:
    """Decodes the captioner, with looks sampled from the prior or at the prior's modes.

    With S sampled paths per hypothesis the probability of a sentence is its mean over the paths, so all
    paths predict the next word, each weighted by how well it predicted the previous words.

    Args:
        model: the captioner.
        paths: S; None: the single path of most probable looks.
    """

    def __init__(self, model: GlimpseCaptioner, paths: int | None = None) -> None:
        self.model, self.paths = model, paths

    def begin(self, *maps: Tensor) -> Telling:
        """The state before the first word, with one sentence per picture."""
        view = self.model.network.start(*maps)
        shape = (self.paths or 1, 1, len(maps[0]))
        states = [State(*(x.expand(*shape, -1) for x in s)) for s in (view.first, view.second)]
        path = states[0].output.new_zeros(shape)
        place = () if self.model.network.by_cell else (2,)
        nowhere = torch.zeros(*shape, 0, *place, device=path.device)
        layers = torch.zeros(*shape, 0, dtype=torch.long, device=path.device)
        return Telling(view, states[0], states[1], layers, nowhere, path, None)

    def step(self, state: Telling, parents: Tensor, words: Tensor) -> tuple[Telling, Tensor]:
        """Extends the sentences ``parents``, each by a word of ``words``."""
        network, view = self.model.network, state.view
        path = follow(state.path, parents, dim=1)
        if state.coming is not None:
            said = words.expand(len(path), *words.shape).unsqueeze(-1)
            found = follow(state.coming, parents, dim=1).gather(-1, said).squeeze(-1)
            # What extends a finished sentence says nothing about its paths.
            path = path + found.masked_fill(words == END, 0.0)
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
        """The looks for each word of the ``chosen`` sentence of each picture."""
        pick = chosen.unsqueeze(0)
        layers = follow(state.layers, pick, dim=1)[:, 0]
        locations = follow(state.locations, pick, dim=1)[:, 0]
        cells = state.view.cells
        centres = cells.centres[locations] if self.model.network.by_cell else locations
        sides = centres.new_tensor([[2 / width, 2 / height] for height, width in cells.sizes])
        weights = torch.softmax(follow(state.path, pick, dim=1)[:, 0], 0)
        return Looks(layers, centres, sides[layers], weights)
