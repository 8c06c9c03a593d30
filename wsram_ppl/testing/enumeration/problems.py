"""A chain of discrete latents with observations, given by tables of logits, and a proposal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Logits, one tensor per factor of a joint distribution.
Tables = Sequence[Tensor]


def chain(tables: Tables) -> Tensor:
    """Joint log-probabilities ``[K_1, ..., K_N]`` of a chain given by logits ``[K_1, ..., K_n]``."""
    joint = tables[0].new_zeros(())
    for table in tables:
        joint = joint.unsqueeze(-1) + torch.log_softmax(table, -1)
    return joint


def conditionals(joint: Tensor) -> tuple[Tensor, ...]:
    """The tables whose :func:`chain` is the given joint (log-probabilities)."""
    tables = []
    for n in range(1, joint.dim() + 1):
        rest = tuple(range(n, joint.dim()))
        tables.append(torch.logsumexp(joint, rest) if rest else joint)
    return tuple(tables)


@dataclass(frozen=True)
class Problem:
    """A chain of latents a_0, a_1, ..., observations y_k made after the first k latents, and a guide.

    Args:
        prior: logits of a_n given all before it, ``[K_0, ..., K_n]``.
        likelihood: k -> logits of y_k given the first k latents, ``[K_0, ..., K_{k-1}, Y]``; y_k = 0.
        order: the guide draws a_{order[0]} first, then a_{order[1]}, ...
        proposal: its logits in that order.
    """

    prior: tuple[Tensor, ...]
    likelihood: Mapping[int, Tensor]
    order: tuple[int, ...]
    proposal: tuple[Tensor, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_0, ..., K_{N-1}: how many values each latent has."""
        return tuple(self.prior[-1].shape)

    @property
    def names(self) -> list[str]:
        """The names of the latent sites, in the model's order."""
        return [f"a{n}" for n in range(len(self.prior))]

    @property
    def theta(self) -> list[Tensor]:
        """All tables of the model: those of the prior, then those of the likelihood."""
        return [*self.prior, *self.likelihood.values()]

    @property
    def eta(self) -> list[Tensor]:
        """All tables of the guide."""
        return list(self.proposal)

    @property
    def count(self) -> int:
        """A, the number of joint values."""
        return self.prior[-1].numel()

    def values(self, index: Tensor) -> dict[str, Tensor]:
        """The value of each latent at flat joint values: ``[M, T] -> [M, T]`` per site."""
        parts = torch.unravel_index(index.contiguous(), self.sizes)
        return dict(zip(self.names, parts, strict=True))

    @property
    def orders_agree(self) -> bool:
        """Whether the guide draws in the model's order."""
        return self.order == tuple(sorted(self.order))

    # Over all joint values of the latents, flat, in the model's order: ``[A]``.

    def log_prior(self, theta: Tables) -> Tensor:
        """log p(a)."""
        return chain(theta[: len(self.prior)]).flatten()

    def log_likelihood(self, theta: Tables) -> Tensor:
        """log p(y | a)."""
        sizes = self.sizes
        total = theta[0].new_zeros(sizes)
        for k, table in zip(self.likelihood, theta[len(self.prior) :], strict=True):
            term = torch.log_softmax(table, -1)[..., 0]
            total = total + term.reshape(sizes[:k] + (1,) * (len(sizes) - k))
        return total.flatten()

    def log_proposal(self, eta: Tables) -> Tensor:
        """log q(a)."""
        back = sorted(range(len(self.order)), key=lambda axis: self.order[axis])
        return chain(eta).permute(back).flatten()

    def log_evidence(self) -> Tensor:
        """log p(y), a scalar."""
        return torch.logsumexp(self.log_prior(self.theta) + self.log_likelihood(self.theta), 0)

    def log_weights(self, theta: Tables, eta: Tables) -> Tensor:
        """log p(a) + log p(y | a) - log q(a)."""
        return self.log_prior(theta) + self.log_likelihood(theta) - self.log_proposal(eta)

    def with_proposal(self, log_joint: Tensor) -> Problem:
        """The same model with q(a) proportional to exp(log_joint), ``[A]``, in the model's order."""
        joint = torch.log_softmax(log_joint, 0).reshape(self.sizes)
        tables = conditionals(joint.permute(self.order))
        return Problem(self.prior, self.likelihood, self.order, tables)

    def towards_posterior(self, share: float, noise: Tensor | float = 0.0) -> Problem:
        """q = (1 - share) prior + share posterior, times exp(noise)."""
        prior = self.log_prior(self.theta).exp()
        posterior = (self.log_weights(self.theta, self.eta) + self.log_proposal(self.eta)).softmax(0)
        return self.with_proposal(((1 - share) * prior + share * posterior).log() + noise)


def random_problem(
    sizes: Sequence[int],
    order: Sequence[int] | None = None,
    observed: Iterable[int] | None = None,
    share: float = 0.5,
    noise: float = 0.0,
    spread: float = 1.0,
    seed: int = 0,
    contrast: float | None = None,
    outcomes: int = 2,
) -> Problem:
    """A problem with normal logits.

    Args:
        sizes: values of each latent.
        order: of the guide; by default the model's.
        observed: after how many latents there is an observation; by default after all.
        share: of the posterior in the proposal; the rest is prior.
        noise: standard deviation of a random factor (in logs) on the proposal.
        spread: standard deviation of the logits.
        seed: of all random numbers.
        contrast: standard deviation of the observations' logits, if it is not ``spread``.
        outcomes: number of values of each observation.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    contrast = spread if contrast is None else contrast
    sizes = tuple(sizes)
    prior = tuple(spread * normal(*sizes[: n + 1]) for n in range(len(sizes)))
    after = [len(sizes)] if observed is None else sorted(set(observed))
    likelihood = {k: contrast * normal(*sizes[:k], outcomes) for k in after}
    order = tuple(range(len(sizes))) if order is None else tuple(order)
    problem = Problem(prior, likelihood, order, conditionals(torch.zeros([sizes[n] for n in order])))
    return problem.towards_posterior(share, noise * normal(problem.log_prior(problem.theta).numel()))
