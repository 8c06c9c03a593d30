"""The inference network of the glimpse classifier: looks where it helps, knowing the label."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
from pydantic import PositiveInt
from pyro.nn import PyroModule
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.models.classifier import GlimpseClassifier
from wsram_ppl.models.classifier_network import (
    ImageFeatures,
    Policy,
    ProposalNetwork,
    SiteBaselines,
)


class InferenceNetwork(PyroModule):
    """Proposes glimpses from the classifier's recurrent state and the true label (WS-RAM+q).

    q(a_n | a_<n, y, I): a layer on [r2_{n-1}, one_hot(y)] and a policy of the classifier's form. The
    recurrence is the classifier's own, without gradients from this network.

    Args:
        model: the :class:`~wsram_ppl.models.GlimpseClassifier` to propose for. It does not become a
            submodule.
        hidden: units of the layer; by default the classifier's number.
    """

    #: The recurrent state, and with it everything sampled before, is a constant for the guide.
    constant_samples = True

    def __init__(self, model: GlimpseClassifier, *, hidden: PositiveInt | None = None) -> None:
        # The name keeps its parameters apart from the model's in Pyro's global parameter store.
        super().__init__("guide")
        if not isinstance(model, GlimpseClassifier):
            raise InputError(
                f"guide 'inference' proposes for 'glimpse-classifier', not for {type(model).__name__}: "
                "use guide 'prior', or name your own guide"
            )
        network = model.network
        hidden = hidden or network.hidden
        self._model = (model,)  # in a tuple, so that nn.Module does not register it
        policy = Policy(hidden, len(model.scales))
        self.network = ProposalNetwork(network.hidden, hidden, model.classes, policy)
        self.baselines = SiteBaselines(network.hidden, model.classes, 2 * model.num_glimpses)

    @property
    def model(self) -> GlimpseClassifier:
        """The model that it proposes for."""
        return self._model[0]

    def forward(
        self,
        images: Tensor | ImageFeatures,
        labels: Tensor | None = None,
        observations: Mapping[str, Tensor] | None = None,
    ) -> None:
        """The Pyro program. Images as the model takes them; labels ``[B]``, or a fantasy's own.

        Raises:
            InputError: no label to infer from.
        """
        if observations is not None:
            labels = observations["label"]
        if labels is None:
            raise InputError("guide 'inference' needs labels: to look without them, run the model")
        proposal, baselines = self.network, self.baselines
        model, network = self.model, self.model.network
        label, label_of_baselines = proposal.label(labels), baselines.label(labels)
        pyramid, r1, r2 = network.start(images)
        with pyro.plate("images", r2.shape[0], dim=-1):
            for n in range(model.num_glimpses):
                infer = model.declare_baseline(baselines, n, r2.detach(), label_of_baselines)
                location, scale = model.sample_glimpse(n, proposal(r2.detach(), label), infer)
                if n + 1 < model.num_glimpses:  # nothing is chosen after the last glimpse
                    r1 = network.look(pyramid, location, scale, r1)
                    r2 = network.decide(r1, r2)
