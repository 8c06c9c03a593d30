"""The captioner and its inference network, as Pyro programs and as equations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.errors import InputError
from wsram_ppl.guides import CaptionInferenceNetwork
from wsram_ppl.models import GlimpseCaptioner, GlimpseClassifier
from wsram_ppl.models.captioner_network import LSTMLayer, State, make_cells, read_cell, read_place
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, VariationalBound, WakeSleep
from wsram_ppl.objectives.diagnostics import importance_sample
from wsram_ppl.objectives.exploration import Exploration
from wsram_ppl.objectives.wake_sleep import ControlVariate
from wsram_ppl.testing import ForceSamples

WORDS, CHANNELS, HIDDEN = 7, (3, 2), 5
SIZES = ((2, 3), (1, 2))
CELLS = 8
#: Sentences of 3 and 2 words (the end mark, 1, included).
LENGTHS = (3, 2)


@pytest.fixture(autouse=True)
def module_local() -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        yield


def make_model(location: str = "grid", seed: int = 0, **options: Any) -> GlimpseCaptioner:
    torch.manual_seed(seed)
    options = {"vocabulary": WORDS, "channels": CHANNELS, "hidden": HIDDEN, "dropout": 0.0, **options}
    return GlimpseCaptioner(location=location, **options)  # type: ignore[arg-type]


def make_batch(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.tensor([[0, 3, 5, 1], [0, 4, 1, 1]])
    mask = torch.tensor([[False, True, True, True], [False, True, True, False]])
    maps = (
        torch.randn(2, channels, *size, generator=generator, dtype=dtype)
        for channels, size in zip(CHANNELS, SIZES, strict=True)
    )
    return words, mask, *maps


def randomize(module: nn.Module, seed: int = 3, size: float = 1.0) -> None:
    """Weights of order one everywhere, so that nothing is zero by its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(size * noise / parameter.shape[-1] ** 0.5)


def trace_of(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


def looks(trace: Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if name.startswith(("layer_", "location_"))
    }


def make_guide(name: str, model: GlimpseCaptioner) -> nn.Module:
    if name == "prior":
        return Prior(model)
    guide = CaptionInferenceNetwork(model, word=name)  # type: ignore[arg-type]
    randomize(guide, 5)
    return guide


# The captioner as a Pyro program.


@pytest.mark.parametrize("location", ["grid", "gaussian"])
def test_sites_come_word_by_word_inside_plate_captions(location: str) -> None:
    trace = trace_of(make_model(location), *make_batch())
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
    expected = [f"{kind}_{t}" for t in (1, 2, 3) for kind in ("layer", "location", "word")]
    assert sites == ["captions", *expected]
    for name in expected:
        site = trace.nodes[name]
        (frame,) = site["cond_indep_stack"]
        assert (frame.name, frame.dim, frame.size) == ("captions", -1, 2)
        assert site["is_observed"] == name.startswith("word")
        assert site["log_prob"].shape == (2,)
    assert trace.nodes["word_1"]["fn"].logits.shape == (2, WORDS)
    where = trace.nodes["location_1"]["fn"]
    assert where.event_shape == (() if location == "grid" else (2,))


@pytest.mark.parametrize("guide_name", ["model", "preceding", "current"])
@pytest.mark.parametrize("location", ["grid", "gaussian"])
def test_nothing_counts_beyond_the_end_of_a_sentence(location: str, guide_name: str) -> None:
    model = make_model(location)
    program = model if guide_name == "model" else make_guide(guide_name, model)
    trace = trace_of(program, *make_batch())
    for name, site in trace.nodes.items():
        if name.endswith("_3"):
            assert site["log_prob"][0] != 0
            assert site["log_prob"][1] == 0
        elif name.endswith("_2"):
            assert (site["log_prob"] != 0).all()


@pytest.mark.parametrize("location", ["grid", "gaussian"])
def test_a_sentence_weighs_the_same_in_any_company(location: str) -> None:
    """The shorter sentence alone, without its padding, has the log-densities that it has here."""
    model = make_model(location).double()
    guide = CaptionInferenceNetwork(model).double()
    randomize(model)
    words, mask, *maps = make_batch(dtype=torch.float64)
    for program in (model, guide):
        together = trace_of(program, words, mask, *maps)
        values = {name: value[1:] for name, value in looks(together).items() if not name.endswith("_3")}
        with ForceSamples(values):
            alone = trace_of(program, words[1:, :3], mask[1:, :3], *(part[1:] for part in maps))
        for name in [*values, *(["word_1", "word_2"] if program is model else [])]:
            torch.testing.assert_close(
                alone.nodes[name]["log_prob"], together.nodes[name]["log_prob"][1:]
            )


@pytest.mark.parametrize("location", ["grid", "gaussian"])
def test_particles_at_once_and_one_by_one_agree(location: str) -> None:
    model, batch = make_model(location).double(), make_batch(dtype=torch.float64)
    randomize(model)
    with pyro.plate("particles", 3, dim=-2):
        together = trace_of(model, *batch)
    for particle in range(3):
        values = {name: value[particle] for name, value in looks(together).items()}
        with ForceSamples(values):
            alone = trace_of(model, *batch)
        for name in [*values, "word_1", "word_2", "word_3"]:
            torch.testing.assert_close(
                alone.nodes[name]["log_prob"], together.nodes[name]["log_prob"][particle]
            )


@pytest.mark.parametrize("guide_name", ["model", "preceding", "current"])
def test_every_look_declares_a_baseline_of_its_own(guide_name: str) -> None:
    model = make_model()
    program: Any = model if guide_name == "model" else make_guide(guide_name, model)
    trace = trace_of(program, *make_batch())
    for name in looks(trace):
        declared = trace.nodes[name]["infer"]["baseline"]
        predicted = declared["nn_baseline"](declared["nn_baseline_input"].detach())
        assert predicted.shape == (2,)
        (gradient,) = torch.autograd.grad(predicted.sum(), [program.baselines.out.weight])
        rows = gradient.abs().sum(-1).nonzero().flatten().tolist()
        assert rows == [0 if name.startswith("layer") else 1]


def test_a_baseline_knows_the_words_to_come_and_no_others() -> None:
    model = make_model()
    words, mask, *_ = make_batch()
    embedded = model.baselines.label.weight
    to_come = model.baselines.to_come(words, mask)
    torch.testing.assert_close(to_come[2][0], embedded[5] + embedded[1])
    torch.testing.assert_close(to_come[2][1], embedded[1])
    torch.testing.assert_close(to_come[3][1], torch.zeros(HIDDEN))
    torch.testing.assert_close(to_come[0], to_come[1])  # the start mark is not to come


# Looking.


def test_cells_hold_the_scaled_features_and_their_places() -> None:
    *_, fine, coarse = make_batch()
    cells = make_cells((100 * fine, coarse))
    assert cells.starts == [0, 6]
    assert cells.layer.tolist() == [0] * 6 + [1] * 2
    for features, original in zip(cells.maps, (fine, coarse), strict=True):
        torch.testing.assert_close(
            features[..., :-3].square().mean((1, 2)), torch.ones(2), atol=1e-5, rtol=0
        )
        ratio = features[..., :-3] / original.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
        assert (features[..., -1] == 1).all()
    # Row by row, x to the right, y downwards.
    assert cells.centres[1].tolist() == pytest.approx([0.0, -0.5])
    assert cells.centres[5].tolist() == pytest.approx([2 / 3, 0.5])
    assert cells.centres[6].tolist() == pytest.approx([-0.5, 0.0])
    torch.testing.assert_close(cells.maps[0][0, :, -3:-1], cells.centres[:6])


def test_a_cell_is_read_alone_and_in_the_part_of_its_layer() -> None:
    *_, fine, coarse = make_batch()
    cells = make_cells((fine, coarse))
    read = read_cell(cells, torch.tensor([[0, 1], [1, 0]]), torch.tensor([[4, 6], [7, 0]]))
    assert read.shape == (2, 2, 3 + 3 + 2 + 3)
    torch.testing.assert_close(read[0, 0], torch.cat([cells.maps[0][0, 4], torch.zeros(5)]))
    torch.testing.assert_close(read[0, 1], torch.cat([torch.zeros(6), cells.maps[1][1, 0]]))
    torch.testing.assert_close(read[1, 0], torch.cat([torch.zeros(6), cells.maps[1][0, 1]]))
    torch.testing.assert_close(read[1, 1], torch.cat([cells.maps[0][1, 0], torch.zeros(5)]))


@given(x=st.floats(-2, 2), y=st.floats(-2, 2), layer=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_place_is_read_as_grid_sample_reads_it(x: float, y: float, layer: int) -> None:
    """Features, by torch's own bilinear reader; a layer of one row and one of one column too."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 2, 3), (2, 1, 4), (2, 3, 1))
    maps = tuple(torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    cells = make_cells(maps)
    at = torch.tensor([[x, y], [-x, y]], dtype=torch.float64)
    read = read_place(cells, torch.tensor([layer, layer]), at)
    widths = [features.shape[-1] for features in cells.maps]
    parts = read.split(widths, -1)
    scaled = cells.maps[layer].transpose(1, 2).unflatten(-1, shapes[layer][1:])
    expected = F.grid_sample(
        scaled, at.view(2, 1, 1, 2), mode="bilinear", padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(parts[layer], expected[..., 0, 0])
    assert all(not part.any() for index, part in enumerate(parts) if index != layer)


def test_choosing_layer_and_cell_is_choosing_among_all_cells() -> None:
    """Were all layers of one size; a small layer's cells count for more, lest nobody looks there."""
    model = make_model()
    randomize(model, size=2.0)
    *_, fine, coarse = make_batch()
    cells = make_cells((fine, coarse))
    state = torch.randn(2, HIDDEN)
    choice = model.network.policy(state, cells)
    counts = torch.tensor([6.0, 2.0])[cells.layer]
    joint = torch.softmax(choice.place - counts.log(), -1)
    layers = torch.softmax(choice.layers, -1)
    for layer in (0, 1):
        inside = cells.layer == layer
        torch.testing.assert_close(joint[:, inside].sum(-1), layers[:, layer])
    # The score: a query from the state times all that the cell holds, its place included.
    queries = model.network.policy.query(state).split([6, 5], -1)
    for query, features, part in zip(queries, cells.maps, choice.place.split([6, 2], -1), strict=True):
        expected = (features @ query.unsqueeze(-1)).squeeze(-1) / features.shape[-1] ** 0.5
        torch.testing.assert_close(part, expected)


def test_a_cell_outside_of_the_chosen_layer_is_never_looked_at() -> None:
    model, batch = make_model(), make_batch()
    with pyro.plate("particles", 200, dim=-2):
        trace = trace_of(model, *batch)
    layer, cell = trace.nodes["layer_2"]["value"], trace.nodes["location_2"]["value"]
    assert set(layer.unique().tolist()) == {0, 1}
    assert ((cell >= 6) == (layer == 1)).all()
    assert len(cell.unique()) == CELLS
    assert trace.nodes["location_2"]["log_prob"].isfinite().all()


# The captioner as equations.


def lstm(layer: LSTMLayer, new: Tensor, drive: Tensor, state: State) -> State:
    """Torch's own cell, its gates in torch's order."""
    cell = nn.LSTMCell(new.shape[-1], HIDDEN).to(new)
    write, keep, show, candidate = layer.gates.weight.split(HIDDEN)
    weight = torch.cat([write, keep, candidate, show])
    with torch.no_grad():
        cell.weight_ih.copy_(weight[:, : new.shape[-1]])
        cell.weight_hh.copy_(weight[:, new.shape[-1] :])
        cell.bias_ih.zero_()
        cell.bias_hh.zero_()
        # The further contribution as a bias of its own for each datum.
        rows = []
        for index in range(len(new)):
            b = layer.gates.bias + drive[index]
            write, keep, show, candidate = b.split(HIDDEN)
            cell.bias_ih.copy_(torch.cat([write, keep, candidate, show]))
            one = slice(index, index + 1)
            rows.append(cell(new[one], (state.output[one], state.memory[one])))
    return State(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


@torch.no_grad()
def reference(
    model: GlimpseCaptioner, batch: tuple[Tensor, ...], values: dict[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Section 5.2 written down once more, one word after the other: (r2, word logits) of each."""
    net = model.network
    words, _, *maps = batch
    cells = make_cells(tuple(maps))
    whole = F.relu(net.whole(torch.cat([m[..., :-3].mean(1) for m in cells.maps], -1)))
    nothing = whole.new_zeros(2, HIDDEN)
    r1 = r2 = State(nothing, nothing)
    found = []
    for t in range(1, words.shape[1]):
        before = net.word(words[:, t - 1])
        drive1, drive2 = (net.drive.weight @ before.T).T.split(4 * HIDDEN, -1)
        r2 = lstm(net.layer2, r1.output, drive2 + net.picture(whole), r2)
        layer, place = values[f"layer_{t}"], values[f"location_{t}"]
        read = read_cell if model.location == "grid" else read_place
        seen = F.relu(net.see(read(cells, layer, place)))
        r1 = lstm(net.layer1, seen, drive1, r1)
        found.append((r2.output, F.linear(r1.output, net.readout.weight, net.readout.bias)))
    return found


@pytest.mark.parametrize("location", ["grid", "gaussian"])
@pytest.mark.parametrize("seed", range(3))
def test_the_equations(location: str, seed: int) -> None:
    model = make_model(location).double()
    randomize(model, seed)
    batch = make_batch(seed, torch.float64)
    trace = trace_of(model, *batch)
    cells = make_cells(batch[2:])
    for t, (r2, logits) in enumerate(reference(model, batch, looks(trace)), start=1):
        torch.testing.assert_close(trace.nodes[f"word_{t}"]["fn"].logits, logits.log_softmax(-1))
        choice = model.network.policy(r2, cells)
        torch.testing.assert_close(trace.nodes[f"layer_{t}"]["fn"].logits, choice.layers.log_softmax(-1))


def test_the_picture_reaches_the_words_only_where_it_was_looked_at() -> None:
    """Change every cell but one, and look only there: not a word changes, though the policy does."""
    model = make_model().double()
    randomize(model)
    words, mask, fine, coarse = make_batch(dtype=torch.float64)
    other = make_batch(9, torch.float64)[2]
    # All of one mean square, so that scaling leaves the cell alone.
    fine, other = (m / m.square().mean((1, 2, 3), keepdim=True).sqrt() for m in (fine, other))
    kept = torch.zeros(2, 3, dtype=torch.bool)
    kept[1, 0] = True
    other = torch.where(kept, fine, other)
    scale = (
        (
            (6 - fine[:, :, 1, 0].square().sum(-1) / 3)
            / ((other.square().sum((1, 2, 3)) - fine[:, :, 1, 0].square().sum(-1)) / 3)
        )
        .sqrt()
        .view(2, 1, 1, 1)
    )
    other = torch.where(kept, fine, other * scale)
    values = {f"layer_{t}": torch.zeros(2, dtype=torch.long) for t in (1, 2, 3)}
    values |= {f"location_{t}": torch.full((2,), 3) for t in (1, 2, 3)}
    traces = []
    for features in (fine, other):
        with ForceSamples(values):
            traces.append(trace_of(model, words, mask, features, coarse))
    for t in (1, 2, 3):
        before, after = (trace.nodes[f"word_{t}"]["fn"].logits for trace in traces)
        torch.testing.assert_close(before, after)
        before, after = (trace.nodes[f"location_{t}"]["log_prob"] for trace in traces)
        assert not torch.isclose(before, after)[: 2 if t < 3 else 1].any()


def test_words_have_no_gradient_in_what_decides_where_to_look() -> None:
    model = make_model()
    randomize(model)
    trace = trace_of(model, *make_batch())
    net = model.network
    deciding = [
        *net.layer2.parameters(),
        *net.policy.parameters(),
        *net.whole.parameters(),
        *net.picture.parameters(),
    ]
    words = sum(trace.nodes[f"word_{t}"]["log_prob"].sum() for t in (1, 2, 3))
    found = torch.autograd.grad(words, deciding, retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in found)
    choices = sum(trace.nodes[name]["log_prob"].sum() for name in looks(trace))
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(choices, deciding))


# The inference network.


@pytest.mark.parametrize(("word", "shown"), [("preceding", 1), ("current", 2)])
def test_the_guide_is_shown_the_word_that_it_is_said_to(word: str, shown: int) -> None:
    """The look for word 2 depends on the words up to the one shown, and on no later one."""
    model = make_model()
    guide = make_guide(word, model)
    words, *rest = make_batch()
    values = {f"layer_{t}": torch.zeros(2, dtype=torch.long) for t in (1, 2, 3)}
    values |= {f"location_{t}": torch.full((2,), 3) for t in (1, 2, 3)}

    def look(words: Tensor) -> Tensor:
        with ForceSamples(values):
            found: Tensor = trace_of(guide, words, *rest).nodes["location_2"]["log_prob"]
        return found

    for t in (1, 2, 3):
        other = words.clone()
        other[:, t] = 6
        assert torch.equal(look(words), look(other)) == (t > shown)


def test_the_guides_gradient_stays_out_of_the_captioner() -> None:
    model = make_model()
    trace = trace_of(make_guide("current", model), *make_batch())
    total = sum(trace.nodes[name]["log_prob"].sum() for name in looks(trace))
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in found)


def test_the_guide_infers_from_a_fantasys_own_words() -> None:
    model = make_model()
    guide = make_guide("current", model)
    words, *rest = make_batch()
    dreamt = {f"word_{t}": torch.tensor([6, 2]) for t in (1, 2, 3)}
    told = words.clone()
    told[:, 1:] = torch.tensor([6, 2]).unsqueeze(-1)
    values = {f"layer_{t}": torch.ones(2, dtype=torch.long) for t in (1, 2, 3)}
    values |= {f"location_{t}": torch.full((2,), 7) for t in (1, 2, 3)}
    with ForceSamples(values):
        one = trace_of(guide, words, *rest, observations=dreamt)
        two = trace_of(guide, told, *rest)
    for name in values:
        torch.testing.assert_close(one.nodes[name]["log_prob"], two.nodes[name]["log_prob"])


def test_sampled_words_are_heard() -> None:
    """Without its observations the program goes on from the words that it says."""
    model = make_model()
    randomize(model, size=2.0)
    words, mask, *maps = make_batch()
    dream = trace_of(poutine.uncondition(model), words, mask, *maps)
    said = torch.stack([words[:, 0], *(dream.nodes[f"word_{t}"]["value"] for t in (1, 2, 3))], -1)
    assert not torch.equal(said, words)
    with ForceSamples(looks(dream)):
        again = trace_of(model, said, mask, *maps)
    for t in (1, 2, 3):
        torch.testing.assert_close(
            again.nodes[f"word_{t}"]["fn"].logits, dream.nodes[f"word_{t}"]["fn"].logits
        )


# Objectives.


def all_paths(model: GlimpseCaptioner, batch: tuple[Tensor, ...]) -> Trace:
    """One run on every path of looks, 8^3 particles."""
    layers = make_cells(batch[2:]).layer
    paths = torch.cartesian_prod(*[torch.arange(CELLS)] * (batch[0].shape[1] - 1))
    values = {}
    for t, cells in enumerate(paths.unbind(-1), start=1):
        values[f"location_{t}"] = cells.unsqueeze(-1).expand(-1, 2)
        values[f"layer_{t}"] = layers[cells].unsqueeze(-1).expand(-1, 2)
    with ForceSamples(values), pyro.plate("paths", len(paths), dim=-2):
        return trace_of(model, *batch)


@torch.no_grad()
def test_the_bound_rises_to_the_exact_likelihood() -> None:
    """log p(y | I) by the sum over all 8^3 paths of looks; L_M of each guide comes near."""
    model, batch = make_model().double(), make_batch(dtype=torch.float64)
    randomize(model)
    nodes = all_paths(model, batch).nodes.values()
    total = torch.stack(
        torch.broadcast_tensors(*(node["log_prob"] for node in nodes if "log_prob" in node))
    ).sum(0)
    # The shorter sentence has a third look that counts nothing: 8 paths for one.
    exact = total.logsumexp(0) - torch.tensor([0.0, math.log(CELLS)], dtype=torch.float64)
    for name in ("prior", "preceding", "current"):
        torch.manual_seed(0)
        guide = make_guide(name, model).double()
        sample = importance_sample(model, guide, *batch, num_particles=20_000, max_plate_nesting=1)
        weights = (sample.log_weights - exact).exp()
        error = weights.std(0) / 20_000**0.5
        assert ((weights.mean(0) - 1).abs() < 4 * error).all()
        assert error.max() < 0.05  # else the above says little


def objectives() -> Iterator[Any]:
    yield "importance", lambda **o: ImportanceBound(3, **o)
    for baseline in ("none", "leave-one-out", "site"):
        yield (
            f"variational-{baseline}",
            lambda b=baseline, **o: VariationalBound(b, num_particles=3, **o),
        )
    for choice in get_args(ControlVariate):
        yield f"wake-sleep-{choice}", lambda c=choice, **o: WakeSleep(c, num_particles=3, **o)
    yield "sleep", lambda **o: WakeSleep(insomnia=0.5, num_particles=3, **o)


EXPLORATIONS = {
    "plain": Exploration(),
    "explored": Exploration(entropy=0.1, temperature=2.0, coverage=0.1),
}


@pytest.mark.parametrize("exploration", EXPLORATIONS)
@pytest.mark.parametrize("location", ["grid", "gaussian"])
@pytest.mark.parametrize("guide_name", ["prior", "current"])
@pytest.mark.parametrize("make", [pytest.param(m, id=n) for n, m in objectives()])
def test_every_objective_guide_and_heuristic_applies(
    make: Callable[..., Objective], guide_name: str, location: str, exploration: str
) -> None:
    model = make_model(location, dropout=0.2)
    guide = make_guide(guide_name, model)
    objective = make(
        vectorize_particles=True, max_plate_nesting=1, regularizer=EXPLORATIONS[exploration]
    )
    if guide_name == "prior" and getattr(objective, "insomnia", 1.0) < 1.0:
        pytest.skip("sleep-q has nothing to train in the prior")
    loss = objective(model, guide)(*make_batch())
    loss.backward()
    assert loss.isfinite()
    for part in (model.network, getattr(guide, "network", nn.Module())):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("guide_name", ["prior", "current"])
def test_particles_with_the_same_looks_weigh_the_same_with_dropout(guide_name: str) -> None:
    model = make_model(dropout=0.4)
    guide = make_guide(guide_name, model)
    same = {name: value.expand(5, -1) for name, value in looks(trace_of(model, *make_batch())).items()}
    bound = ImportanceBound(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    with ForceSamples(same):
        weights = bound.particles(model, guide, *make_batch()).log_weights
        other = bound.particles(model, guide, *make_batch()).log_weights
    assert weights.shape == (5, 2)
    torch.testing.assert_close(weights, weights[:1].expand(5, -1))
    assert not torch.allclose(weights[0], other[0])  # units are dropped, others each time


def test_guide_and_model_share_their_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per word and layer, not twice; whatever is chosen by the guide alone included."""
    model = make_model()
    guide = make_guide("current", model)
    objective = WakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    objective.loss(model, guide, *make_batch())  # a first run finds out about the program
    calls = {"layer1": 0, "layer2": 0, "whole": 0}
    for name in calls:
        module = getattr(model.network, name)

        def counted(*args: Any, name: str = name, forward: Any = module.forward) -> Any:
            calls[name] += 1
            return forward(*args)

        monkeypatch.setattr(module, "forward", counted)
    objective(model, guide)(*make_batch()).backward()
    assert calls == {"layer1": 3, "layer2": 3, "whole": 1}


# Measures and errors.


def test_metrics_are_per_word_from_the_prior() -> None:
    model, batch = make_model().double(), make_batch(dtype=torch.float64)
    randomize(model)
    torch.manual_seed(0)
    found = model.metrics(*batch, 20_000)
    assert set(found) == {"nll_per_word", "words", "entropy", "layer_0", "layer_1"}
    total = found["nll_per_word"].values * torch.tensor(LENGTHS)
    sample = importance_sample(model, Prior(model), *batch, num_particles=20_000, max_plate_nesting=1)
    torch.testing.assert_close(total, -sample.bound, atol=0.05, rtol=0)
    assert found["words"].values.tolist() == list(LENGTHS)
    torch.testing.assert_close(
        found["layer_0"].values + found["layer_1"].values, torch.ones(2, dtype=torch.float64)
    )
    weighted = found["nll_per_word"].total()
    assert float(weighted[1]) == sum(LENGTHS)
    torch.testing.assert_close(weighted[0], total.sum())


def test_without_data_the_captioner_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="needs the number of words"):
        GlimpseCaptioner()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": torch.full((2, 4), 7)}, "words are numbered 7 to 7, but the model has 7, 0 to 6"),
        ({"words": torch.zeros(2, 4)}, "words should be whole numbers"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, "with a boolean mask of the same shape, not"),
        ({"fine": torch.zeros(2, 4, 2, 3)}, "reads maps of [3, 2] channels, but the data have [4, 2]"),
    ],
)
def test_batches_are_checked(change: dict[str, Tensor], message: str) -> None:
    batch = dict(zip(("words", "mask", "fine", "coarse"), make_batch(), strict=True))
    make_model().check_batch(*batch.values())
    with pytest.raises(InputError, match=re.escape(message)):
        make_model().check_batch(*{**batch, **change}.values())


def test_the_guide_proposes_for_the_captioner_only() -> None:
    with pytest.raises(InputError, match="proposes for 'glimpse-captioner', not for GlimpseClass"):
        CaptionInferenceNetwork(GlimpseClassifier(hidden=4))  # type: ignore[arg-type]
