"""The inference network of the captioner: looks where it helps, knowing the sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.models.captioner import SITES, GlimpseCaptioner, counting
from wsram_ppl.models.captioner_network import SentenceBaselines
from wsram_ppl.models.classifier_network import ProposalNetwork


class CaptionInferenceNetwork(PyroModule):
    """Proposes where to look for each word, from the captioner's state and the sentence (WS-RAM+q).

    q(a_t | a_<t, y, I): a layer on [r2_t, one_hot(word)] and a policy of the captioner's form. The
    recurrence is the captioner's own, without gradients from this network.

    Args:
        model: the :class:`~wsram_ppl.models.captioner.GlimpseCaptioner` to propose for. It does not
            become a submodule.
        word: which word the guide sees before step t: the preceding one (as in the paper), or the one
            to be predicted.
    """

    #: The recurrent state, and with it everything sampled before, is a constant for the guide.
    constant_samples = True

    def __init__(
        self, model: GlimpseCaptioner, *, word: Literal["preceding", "current"] = "current"
    ) -> None:
        # The name keeps its parameters apart from the model's in Pyro's global parameter store.
        super().__init__("guide")
        if not isinstance(model, GlimpseCaptioner):
            raise InputError(
                f"guide 'caption-inference' proposes for 'glimpse-captioner', not for "
                f"{type(model).__name__}: use guide 'prior', or name your own guide"
            )
        network, hidden = model.network, model.network.hidden
        self._model = (model,)  # in a tuple, so that nn.Module does not register it
        self.shift = 1 if word == "preceding" else 0
        policy = network.make_policy()
        self.network = ProposalNetwork(hidden, hidden, model.vocabulary, policy)
        self.baselines = SentenceBaselines(hidden, model.vocabulary, SITES)

    @property
    def model(self) -> GlimpseCaptioner:
        """The model that it proposes for."""
        return self._model[0]

    def forward(
        self,
        words: Tensor,
        mask: Tensor,
        *maps: Tensor,
        observations: Mapping[str, Tensor] | None = None,
    ) -> None:
        """The Pyro program, on a batch of captions, or on a fantasy's own words."""
        proposal, baselines = self.network, self.baselines
        to_come = baselines.to_come(words, mask)
        counted = mask.unbind(-1)
        last = len(counted) - 1
        if observations is not None:
            dreamt = [observations[f"word_{t}"] for t in range(1, last + 1)]
            words = torch.stack(torch.broadcast_tensors(words[:, 0], *dreamt), -1)
        model, network = self.model, self.model.network
        view = network.start(*maps)
        heard = network.hear_all(view, words)
        labels = proposal.label(words.movedim(-1, 0)).unbind(0)
        r1, r2 = view.first, view.second
        with pyro.plate("captions", mask.shape[0], dim=-1):
            for t in range(1, last + 1):
                with counting(counted[t]):
                    r2 = network.decide(heard[t - 1], r1, r2)
                    state = r2.output.detach()
                    choice = proposal(state, labels[t - self.shift], view.cells)
                    infer = baselines.declare(range(SITES), state, to_come[t])
                    layer, location = model.sample_look(t, choice, view.cells, infer)
                if t < last:  # nothing is chosen after the last look
                    r1 = network.look(view, layer, location, heard[t - 1], r1)
