"""Latent Dirichlet allocation, documents subsampled: global topics, local mixtures, discrete choices.

    weight_k ~ Gamma,  topic_k ~ Dirichlet                              once, for all documents
    mixture_d ~ Dirichlet(weights)                                      for each document
    choice_dn ~ Categorical(mixture_d),  word_dn ~ Categorical(topic)   for each word of it

Weights, topics and mixtures are reparameterised and carry gradients (``pathwise``); the choices cannot.
Every update sees a few documents, and the plate scales their log-density to the whole collection.

    python examples/lda.py --steps 500
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI
from pyro.nn import PyroModule
from torch import Tensor, nn

from wsram_ppl.objectives import ImportanceBound
from wsram_ppl.objectives.diagnostics import importance_sample

TOPICS, VOCABULARY, LENGTH, DOCUMENTS, BATCH = 6, 50, 40, 1000, 20
PATHWISE = ["weights", "topics", "mixture"]


class LDA(PyroModule):
    """The model. Words are [documents, words in each], numbers below 50."""

    def __init__(self) -> None:
        super().__init__("model")

    def forward(self, words: Tensor) -> None:
        with pyro.plate("topic", TOPICS):
            weights = pyro.sample("weights", dist.Gamma(1.0, 1.0))
            topics = pyro.sample("topics", dist.Dirichlet(torch.full((VOCABULARY,), 0.1)))
        self.documents(words, BATCH, weights, topics)

    def documents(self, words: Tensor, batch: int, weights: Tensor, topics: Tensor) -> None:
        with pyro.plate("documents", len(words), batch, dim=-2) as rows:
            mixture = pyro.sample("mixture", dist.Dirichlet(weights.unsqueeze(-2)))
            with pyro.plate("words", LENGTH, dim=-1):
                choice = pyro.sample("choice", dist.OneHotCategorical(mixture))
                pyro.sample("word", dist.Categorical(choice @ topics), obs=words[rows])


def positive(x: Tensor) -> Tensor:
    """A concentration that is not so small that a sample may round to 0."""
    return 0.2 + x.exp()


class Posterior(PyroModule):
    """The guide. A table says which topics each word suggests."""

    def __init__(self) -> None:
        super().__init__("guide")
        self.weights = nn.Parameter(torch.zeros(2, TOPICS))
        self.topics = nn.Parameter(torch.randn(TOPICS, VOCABULARY))
        self.table = nn.Parameter(torch.randn(VOCABULARY, TOPICS))

    def forward(self, words: Tensor) -> None:
        with pyro.plate("topic", TOPICS):
            pyro.sample("weights", dist.Gamma(*positive(self.weights)))
            pyro.sample("topics", dist.Dirichlet(positive(self.topics)))
        self.documents(words, BATCH)

    def documents(self, words: Tensor, batch: int) -> None:
        with pyro.plate("documents", len(words), batch, dim=-2) as rows:
            table = self.table[words[rows]]
            expected = table.softmax(-1).sum(-2, keepdim=True)  # how many words each topic has
            mixture = pyro.sample("mixture", dist.Dirichlet(0.2 + expected))
            with pyro.plate("words", LENGTH, dim=-1):
                logits = table + (mixture + 1e-6).log()
                pyro.sample("choice", dist.OneHotCategorical(logits=logits))

    def means(self) -> tuple[Tensor, Tensor]:
        """The parameters of the topics' weights and words."""
        (shape, rate), topics = positive(self.weights), positive(self.topics)
        return shape / rate, topics / topics.sum(-1, keepdim=True)


def collection(held_out: int = 200) -> tuple[Tensor, Tensor]:
    """Documents about six topics that share few words, for training and held out."""
    topics = dist.Dirichlet(torch.full((VOCABULARY,), 0.1)).sample((TOPICS,))
    mixtures = dist.Dirichlet(torch.full((TOPICS,), 0.3)).sample((DOCUMENTS + held_out,))
    words = dist.Categorical(mixtures @ topics).sample((LENGTH,)).T
    return words[:DOCUMENTS], words[DOCUMENTS:]


def train(objective: ELBO, steps: int, seed: int) -> tuple[LDA, Posterior]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    words, _ = collection()
    pyro.set_rng_seed(seed)
    model, guide = LDA(), Posterior()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 5e-2}), objective)
    for _ in range(steps):
        svi.step(words)
    return model, guide


@torch.no_grad()
def held_out(model: LDA, guide: Posterior) -> float:
    """L_200 in nats per document, given the means of the topics' posterior."""
    pyro.set_rng_seed(0)
    _, words = collection()
    weights, topics = guide.means()

    def given(words: Tensor) -> None:
        model.documents(words, None, weights, topics)

    def propose(words: Tensor) -> None:
        guide.documents(words, None)

    sample = importance_sample(given, propose, words, num_particles=200, max_plate_nesting=2)
    return sample.bound.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Latent Dirichlet allocation, with pathwise topics.")
    parser.add_argument("--steps", type=int, default=500, help="updates of 20 documents (default: 500)")
    options = parser.parse_args()
    objective = ImportanceBound(num_particles=5, vectorize_particles=True, pathwise=PATHWISE)
    found = held_out(*train(objective, options.steps, seed=0))
    print(f"log p(words) > {found:.1f} nats per held-out document")


if __name__ == "__main__":
    main()
