"""Pyro's baseline schema in full: what each option predicts, and what its network is fitted to.

That every baseline leaves the gradient unbiased is proven in ``test_unbiased``; here are the fits
(against least squares written out from the tables) and the running averages.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.cases import cases, examples
from wsram_ppl.objectives import Objective, VariationalBound, WakeSleep
from wsram_ppl.testing import ForceSamples
from wsram_ppl.testing.enumeration import (
    Problem,
    StateNetwork,
    TableGuide,
    TableModel,
    Tuples,
    arbitrary_running_state,
    assert_equal,
    chain,
    force,
    random_problem,
    state_of,
    weights,
)

Case = tuple[Problem, int]


def steps(problem: Problem, which: str) -> list[Tensor]:
    """Each latent's own log-density at all joint values, in the model's order: ``[A]`` each."""
    tables = problem.prior if which == "prior" else problem.proposal
    sizes, found = problem.sizes, []
    for n, table in enumerate(tables):
        term = table.log_softmax(-1).reshape(sizes[: n + 1] + (1,) * (len(sizes) - n - 1))
        found.append(term.expand(sizes).flatten())
    return found


def observed_terms(problem: Problem) -> dict[int, Tensor]:
    """k -> log p(y_k | the first k latents) at all joint values, ``[A]``."""
    sizes = problem.sizes
    return {
        k: table.log_softmax(-1)[..., 0]
        .reshape(sizes[:k] + (1,) * (len(sizes) - k))
        .expand(sizes)
        .flatten()
        for k, table in problem.likelihood.items()
    }


def predictions(network: StateNetwork, tuples: Tuples, n: int, in_guide: bool = False) -> Tensor:
    """What the network of site n says at every tuple's particles, ``[T, M]``."""
    order = tuples.problem.order
    before = order[: order.index(n)] if in_guide else range(n)
    history = [tuples.values[f"a{k}"] for k in before]
    state = state_of(history, torch.zeros(tuples.rows, dtype=torch.float64))
    return network.at(f"a{n}", state).expand(tuples.particles, tuples.rows).T


def loss_of(objective: Objective, tuples: Tuples, *declare: Any) -> Tensor:
    model = TableModel(tuples.problem, tuples.rows, declare[0])
    guide = TableGuide(tuples.problem, tuples.rows, declare[1])
    with force(tuples.values, objective.vectorize_particles):
        return objective(model, guide)()  # type: ignore[no-any-return]


def network_gradient(loss: Tensor, network: StateNetwork) -> list[Tensor]:
    parameters = list(network.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@given(cases(any_order=False), st.booleans(), st.booleans())
@examples(40)
def test_site_baselines_are_fitted_to_the_downstream_signal(
    case: Case, vectorized: bool, average: bool
) -> None:
    """VariationalBound("site"): the loss contains sum (signal_n - b_n)^2 / M, signal_n what follows n.

    signal_n leaves out every log-density known before a_n: those of earlier latents and observations.
    """
    problem, particles = case
    tuples = Tuples(problem, particles)
    network = StateNetwork(problem.names, seed=1)

    def declare(name: str, state: Tensor) -> dict[str, Any]:
        infer = network.declare(name, state)
        infer["baseline"]["use_decaying_avg_baseline"] = average
        return infer

    objective = VariationalBound("site", num_particles=particles, vectorize_particles=vectorized)
    arbitrary_running_state(objective, lambda: loss_of(objective, tuples, None, declare), seed=2)
    state = objective.state_dict()
    found = network_gradient(loss_of(objective, tuples, None, declare), network)
    prior, proposal, observed = (
        steps(problem, "prior"),
        steps(problem, "proposal"),
        observed_terms(problem),
    )
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(len(prior)):
        signal = sum(prior[n:]) - sum(proposal[n:]) + sum(t for k, t in observed.items() if k > n)
        baseline = predictions(network, tuples, n)
        if average:
            baseline = baseline + state[f"baseline/a{n}"]
            mean = tuples.of(signal).mean()
            expected_mean = 0.1 * mean + 0.9 * state[f"baseline/a{n}"]
            torch.testing.assert_close(objective.state_dict()[f"baseline/a{n}"], expected_mean)
        expected = expected + (tuples.of(signal) - baseline).square().sum() / particles
    assert_equal(found, network_gradient(expected, network))


def partial_log_ratio(problem: Problem, n: int) -> Tensor:
    """log p - log q of the smallest set with a_0 ... a_n that comes first in both programs, ``[A]``."""
    sizes, count = problem.sizes, n + 1
    while set(problem.order[:count]) != set(range(count)):
        count += 1
    back = [problem.order.index(k) for k in range(count)]
    log_r = chain(problem.prior[:count]) - chain(problem.proposal[:count]).permute(back)
    return log_r.reshape(sizes[:count] + (1,) * (len(sizes) - count)).expand(sizes).flatten()


@given(cases(least=2), st.booleans(), st.integers(0, 99))
@examples(60)
def test_learned_coefficients_are_fitted_by_least_squares(
    case: Case, vectorized: bool, seed: int
) -> None:
    """WakeSleep("learned"): sum (M w - (c_n + net) r_{1:n})^2 / M for theta, net declared in the model.

    For eta, with the guide's net: sum (M w - 1 - net)^2 / M. The running constants are E[M w r_{1:n}]
    and E[r_{1:n}^2], mixed in after the minibatch. Where the guide's order differs, the ratio reaches
    to the end of the smallest common beginning: a shorter one would leave the expectation alone too,
    but is noisier.
    """
    problem, particles = case
    tuples = Tuples(problem, particles)
    on_model, on_guide = StateNetwork(problem.names, 1), StateNetwork(problem.names, 2)
    objective = WakeSleep("learned", num_particles=particles, vectorize_particles=vectorized, decay=0.75)

    def loss() -> Tensor:
        return loss_of(objective, tuples, on_model.declare, on_guide.declare)

    arbitrary_running_state(objective, loss, seed)
    state = objective.state_dict()
    value = loss()
    found = [
        *torch.autograd.grad(value, list(on_model.parameters()), retain_graph=True),
        *torch.autograd.grad(value, list(on_guide.parameters())),
    ]
    w = particles * weights(tuples)
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(len(problem.sizes)):
        r = tuples.of(partial_log_ratio(problem, n)).exp()
        constant = state[f"c/a{n}/numerator"] / state[f"c/a{n}/denominator"]
        residual = w - (constant + predictions(on_model, tuples, n)) * r
        expected = expected + residual.square().sum() / particles
        residual = w - 1 - predictions(on_guide, tuples, n, in_guide=True)
        expected = expected + residual.square().sum() / particles
        for part, seen in (("numerator", (w * r).mean()), ("denominator", r.square().mean())):
            name = f"c/a{n}/{part}"
            mixed = 0.25 * seen + 0.75 * state[name]
            torch.testing.assert_close(objective.state_dict()[name], mixed)
    networks = [*on_model.parameters(), *on_guide.parameters()]
    assert_equal(found, list(torch.autograd.grad(expected, networks)))


def test_adaptive_coefficient_is_the_ratio_of_earlier_means() -> None:
    """c = E[w r/M] / E[(r/M)^2] over earlier minibatches; none (c = 0) before the first."""
    tuples = Tuples(random_problem([3, 2], share=0.5, seed=4), 2)
    problem = tuples.problem
    objective = WakeSleep("adaptive", num_particles=2, decay=0.5)
    plain = WakeSleep("none", num_particles=2)

    def theta(objective: Objective) -> Tensor:
        model = TableModel(problem, tuples.rows)
        with force(tuples.values, False):
            loss = objective(model, TableGuide(problem, tuples.rows))()
        return torch.autograd.grad(loss, model.tables[0])[0]

    assert torch.equal(theta(objective), theta(plain))
    log_r = problem.log_prior(problem.theta) - problem.log_proposal(problem.eta)
    r, w = tuples.of(log_r.exp()) / 2, weights(tuples)
    state = objective.state_dict()
    torch.testing.assert_close(state["c/numerator"], (w * r).mean())
    torch.testing.assert_close(state["c/denominator"], r.square().mean())
    assert not torch.equal(theta(objective), theta(plain))


KINDS: dict[str, Any] = {
    "nn_baseline": {"nn_baseline": lambda x: x.sum(-1), "nn_baseline_input": torch.ones(1, 3)},
    "baseline_value": {"baseline_value": torch.tensor(0.5)},
    "decaying average": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_smaller_last_batch_works(kind: str, vectorized: bool) -> None:
    """Running averages are one number per site, whatever the batch's size (Pyro's are per datum)."""

    def program(is_guide: bool) -> Any:
        def run(y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                infer = {"baseline": dict(KINDS[kind])}
                z = pyro.sample("z", dist.Bernoulli(0.5), infer=infer)
                if not is_guide:
                    pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        return run

    for objective in (
        VariationalBound("site", num_particles=2, vectorize_particles=vectorized),
        WakeSleep("learned", num_particles=2, vectorize_particles=vectorized),
    ):
        for size in (6, 2, 1):
            loss = objective.differentiable_loss(program(False), program(True), torch.zeros(size))
            assert loss.isfinite()


def test_gradients_into_the_networks_input_are_cut() -> None:
    """The fit trains the baseline network, not what its input was computed from."""
    state = torch.tensor([0.3, -0.2], requires_grad=True)
    weight = torch.tensor(0.5, requires_grad=True)

    def program(is_guide: bool) -> None:
        infer = {"baseline": {"nn_baseline": lambda x: weight * x, "nn_baseline_input": state.exp()}}
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer=infer)
            if not is_guide:
                pyro.sample("y", dist.Normal(z, 1.0), obs=torch.ones(2))

    for objective in (VariationalBound("site", num_particles=2), WakeSleep("learned", num_particles=2)):
        loss = objective.differentiable_loss(lambda: program(False), lambda: program(True))
        of_weight, of_state = torch.autograd.grad(loss, [weight, state], allow_unused=True)
        assert of_weight.abs() > 0 and of_state is None


def test_without_a_declaration_nothing_is_subtracted() -> None:
    """A site that declares no baseline has none, and adds no term to the loss."""
    z = torch.tensor([1.0, 0.0])
    logit = torch.tensor(0.3, requires_grad=True)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    def model() -> None:
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=torch.ones(2))

    found = []
    for baseline in ("none", "site"):
        with ForceSamples({"z": z}):
            loss = VariationalBound(baseline).differentiable_loss(model, guide)  # type: ignore[arg-type]
        found.append(torch.autograd.grad(loss, logit)[0])
    torch.testing.assert_close(found[0], found[1])
