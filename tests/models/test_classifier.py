"""The glimpse classifier and the guides, as Pyro programs and as the paper's equations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.config import parse_config
from wsram_ppl.errors import InputError
from wsram_ppl.guides import InferenceNetwork
from wsram_ppl.models import GlimpseClassifier
from wsram_ppl.models.classifier import GlimpseSequence
from wsram_ppl.models.classifier_network import RecurrentLayer
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, VariationalBound, WakeSleep
from wsram_ppl.objectives.wake_sleep import ControlVariate
from wsram_ppl.primitives.glimpses import build_pyramid, extract
from wsram_ppl.testing import ForceSamples

BATCH, SIDE, HIDDEN, PATCH, SCALES = 5, 24, 8, 4, (1, 2)


def make_model(num_glimpses: int = 3, seed: int = 0, **options: Any) -> GlimpseClassifier:
    torch.manual_seed(seed)
    options = {"hidden": HIDDEN, "patch": PATCH, "scales": SCALES, **options}
    return GlimpseClassifier(num_glimpses=num_glimpses, **options)


def make_batch(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, SIDE, SIDE, generator=generator, dtype=dtype)
    return images, torch.randint(10, (BATCH,), generator=generator)


def trace_of(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
    return poutine.trace(program).get_trace(*args, **kwargs)


def latents(trace: Trace) -> list[str]:
    return [name for name in trace.stochastic_nodes if name != "images"]


def force(locations: Tensor, scales: Tensor) -> ForceSamples:
    """The glimpses of a run: ``[..., N, 2]`` and ``[..., N]``."""
    values = {f"location_{n + 1}": locations[..., n, :] for n in range(locations.shape[-2])}
    values |= {f"scale_{n + 1}": scales[..., n] for n in range(scales.shape[-1])}
    return ForceSamples(values)


def randomize(module: nn.Module, seed: int = 3) -> None:
    """Weights of order one everywhere, so that nothing is zero by its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)


# The classifier as a Pyro program.


@pytest.mark.parametrize("num_glimpses", [1, 3])
def test_sites_come_in_order_inside_plate_images(num_glimpses: int) -> None:
    trace = trace_of(make_model(num_glimpses), *make_batch())
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
    expected = [f"{kind}_{n + 1}" for n in range(num_glimpses) for kind in ("location", "scale")]
    assert sites == ["images", *expected, "label"]
    assert latents(trace) == expected
    for name in [*expected, "label"]:
        (frame,) = trace.nodes[name]["cond_indep_stack"]
        assert (frame.name, frame.dim, frame.size) == ("images", -1, BATCH)


def test_distributions_are_those_of_the_paper() -> None:
    trace = trace_of(make_model(), *make_batch())
    location, scale, label = (trace.nodes[name]["fn"] for name in ("location_2", "scale_2", "label"))
    assert location.event_shape == (2,)
    assert isinstance(location.base_dist, torch.distributions.Normal)
    assert location.base_dist.loc.abs().max() < 1
    assert isinstance(scale, torch.distributions.Categorical)
    assert scale.logits.shape[-1] == len(SCALES)
    assert isinstance(label, torch.distributions.Categorical)
    assert label.logits.shape[-1] == 10
    assert trace.nodes["label"]["is_observed"]


@pytest.mark.parametrize("particles", [None, 1, 4])
def test_shapes(particles: int | None) -> None:
    model, (images, labels) = make_model(), make_batch()
    batch: tuple[int, ...] = (BATCH,)
    if particles is not None:
        model = pyro.plate("particles", particles, dim=-2)(model)
        batch = (particles, BATCH)
    trace = trace_of(model, images, labels)
    trace.compute_log_prob()
    for n in (1, 2, 3):
        assert trace.nodes[f"location_{n}"]["value"].shape == (*batch, 2)
        assert trace.nodes[f"scale_{n}"]["value"].shape == batch
        assert trace.nodes[f"scale_{n}"]["value"].dtype == torch.int64
    for name in [*latents(trace), "label"]:
        assert trace.nodes[name]["log_prob"].shape == batch
    looks = trace.nodes["_RETURN"]["value"]
    # One particle's leading dimension is a broadcast's business.
    assert looks.locations.expand(*batch, 3, 2).shape == (*batch, 3, 2)
    assert looks.logits.expand(*batch, 10).shape == (*batch, 10)
    assert looks.scales.expand(*batch, 3).shape == (*batch, 3)


def test_particles_are_the_same_program_with_and_without_vectorisation() -> None:
    """Two particles at once give the log-densities of two runs."""
    model, (images, labels) = make_model(), make_batch()
    with pyro.plate("particles", 2, dim=-2):
        both = trace_of(model, images, labels)
    both.compute_log_prob()
    for particle in range(2):
        values = {name: both.nodes[name]["value"][particle] for name in latents(both)}
        with ForceSamples(values):
            one = trace_of(model, images, labels)
        one.compute_log_prob()
        for name in [*values, "label"]:
            torch.testing.assert_close(
                one.nodes[name]["log_prob"], both.nodes[name]["log_prob"][particle]
            )


def test_without_labels_the_label_is_sampled() -> None:
    images, _ = make_batch()
    trace = trace_of(make_model(), images)
    assert latents(trace)[-1] == "label"
    assert trace.nodes["label"]["value"].shape == (BATCH,)
    assert not any("baseline" in trace.nodes[name]["infer"] for name in latents(trace))


@pytest.mark.parametrize("program", ["model", "guide"])
def test_every_latent_declares_a_baseline_of_its_own(program: str) -> None:
    model, (images, labels) = make_model(), make_batch()
    owner = model if program == "model" else InferenceNetwork(model)
    randomize(owner.baselines)
    trace = trace_of(owner, images, labels)
    predictions = []
    for name in latents(trace):
        declared = trace.nodes[name]["infer"]["baseline"]
        prediction = declared["nn_baseline"](declared["nn_baseline_input"].detach())
        assert prediction.shape == (BATCH,)
        weights = [owner.baselines.out.weight, owner.baselines.label.weight]
        used = [
            gradient.abs().sum(-1).nonzero().flatten().tolist()
            for gradient in torch.autograd.grad(prediction.sum(), weights, retain_graph=True)
        ]
        assert used == [[len(predictions)], sorted(set(labels.tolist()))]
        predictions.append(prediction)
    assert len(predictions) == 6


def test_baselines_in_double_precision_are_not_rounded() -> None:
    model, (images, labels) = make_model().double(), make_batch(dtype=torch.float64)
    trace = trace_of(model, images, labels)
    for name in latents(trace):
        declared = trace.nodes[name]["infer"]["baseline"]
        assert declared["nn_baseline"](declared["nn_baseline_input"]).dtype == torch.float64


# The classifier as equations.


def recurrent(layer: RecurrentLayer, new: Tensor, old: Tensor) -> Tensor:
    """relu(W [new, old])."""
    weight = torch.cat([layer.input.weight, layer.recurrent.weight], -1)
    return F.relu(F.linear(torch.cat([new, old], -1), weight, layer.input.bias))


def reference(
    model: GlimpseClassifier, images: Tensor, locations: Tensor, scales: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Sections 3 and 5.1 written down once more, in plain torch: label logits and policies."""
    net = model.network
    small = images.reshape(BATCH, 12, 2, 12, 2).mean((2, 4)).flatten(1)
    first, second = net.context_layers
    r2 = F.relu(F.linear(F.relu(F.linear(small, first.weight, first.bias)), second.weight, second.bias))
    r1 = torch.zeros_like(r2)
    pyramid = build_pyramid(images, SCALES, PATCH)
    policies = []
    for n in range(model.num_glimpses):
        policy = F.linear(r2, net.policy.linear.weight, net.policy.linear.bias)
        policies.append(torch.cat([torch.tanh(policy[:, :2]), policy[:, 2:].log_softmax(-1)], -1))
        patch = extract(pyramid, locations[:, n], scales[:, n])
        what = F.relu(patch @ net.encoder.what.weight.T + net.encoder.what.bias)
        one_hot = F.one_hot(scales[:, n], len(SCALES)).to(images)
        where = F.relu(
            torch.cat([locations[:, n], one_hot], -1)
            @ torch.cat([net.encoder.where.weight, net.encoder.which.weight.T], -1).T
            + net.encoder.where.bias
        )
        g = F.relu(F.linear(what * where, net.encoder.glimpse.weight, net.encoder.glimpse.bias))
        r1 = recurrent(net.layer1, g, r1)
        r2 = recurrent(net.layer2, r1, r2)
    return F.linear(r1, net.label.weight, net.label.bias), policies


@given(seed=st.integers(0, 2**16), reach=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=15, deadline=None)
def test_the_equations(seed: int, reach: float) -> None:
    model = make_model(seed=seed).double()
    randomize(model, seed)
    images, labels = make_batch(seed, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    locations = (2 * torch.rand(BATCH, 3, 2, generator=generator, dtype=torch.float64) - 1) * reach
    scales = torch.randint(len(SCALES), (BATCH, 3), generator=generator)
    with force(locations, scales):
        trace = trace_of(model, images, labels)
    logits, policies = reference(model, images, locations, scales)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"].logits, logits)
    for n, policy in enumerate(policies):
        torch.testing.assert_close(trace.nodes[f"location_{n + 1}"]["fn"].base_dist.loc, policy[:, :2])
        torch.testing.assert_close(trace.nodes[f"scale_{n + 1}"]["fn"].logits, policy[:, 2:])


def test_the_predicting_layer_starts_at_zero() -> None:
    _, r1, r2 = make_model().network.start(make_batch()[0])
    assert not r1.any()
    assert not r1.requires_grad
    assert r2.any()


def test_recurrent_weights_start_at_nine_tenths_of_the_identity() -> None:
    net = make_model().network
    for layer in (net.layer1, net.layer2):
        torch.testing.assert_close(layer.recurrent.weight, 0.9 * torch.eye(HIDDEN))
        assert layer.input.weight.std() > 0.05


def fixed_glimpses() -> tuple[Tensor, Tensor]:
    """Three glimpses near the image's centre; their windows lie within the middle 12 x 12 pixels."""
    locations = torch.tensor([[0.1, -0.1], [0.0, 0.0], [-0.12, 0.2]]).expand(BATCH, 3, 2)
    return locations, torch.tensor([0, 1, 0]).expand(BATCH, 3)


@pytest.mark.parametrize("context", ["pooled", "conv"])
def test_what_lies_outside_of_the_glimpses_does_not_reach_the_label(context: str) -> None:
    model, (images, labels) = make_model(context=context), make_batch()
    randomize(model)
    other = make_batch(seed=9)[0]
    other[:, 6:18, 6:18] = images[:, 6:18, 6:18]
    runs = []
    for seen in (images, other):
        with force(*fixed_glimpses()):
            runs.append(trace_of(model, seen, labels))
    before, after = (run.nodes["_RETURN"]["value"].logits for run in runs)
    assert torch.equal(before, after)
    # The surroundings do reach the policy, from the first glimpse on; else the above says nothing.
    for n in (1, 2, 3):
        here, there = (run.nodes[f"location_{n}"]["fn"].base_dist.loc for run in runs)
        assert (here - there).abs().amax(-1).min() > 1e-4
    # And what lies inside does reach the label.
    inside = images.clone()
    inside[:, 10:14, 10:14] = 1 - images[:, 10:14, 10:14]
    with force(*fixed_glimpses()):
        changed = model(inside, labels).logits
    assert (changed - before).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("context", ["pooled", "conv"])
def test_the_label_has_no_gradient_in_context_or_policy(context: str) -> None:
    model, (images, labels) = make_model(context=context), make_batch()
    randomize(model)
    with force(*fixed_glimpses()):
        trace = trace_of(model, images, labels)
    net = model.network
    logits = trace.nodes["_RETURN"]["value"].logits
    where_to_look = [
        *net.context_layers.parameters(),
        *net.policy.parameters(),
        *net.layer2.parameters(),
    ]
    found = torch.autograd.grad(logits.sum(), where_to_look, retain_graph=True, allow_unused=True)
    assert found == (None,) * len(where_to_look)
    policy = trace.nodes["location_3"]["fn"].base_dist.loc.sum()
    for gradient in torch.autograd.grad(policy, where_to_look):
        assert gradient.abs().max() > 0


def test_locations_are_x_then_y() -> None:
    """At (.5, -.5) a glimpse shows the upper right: x grows to the right, y downwards."""
    model, (_, labels) = make_model(num_glimpses=1), make_batch()
    randomize(model)
    black = torch.zeros(BATCH, SIDE, SIDE)
    upper_right, lower_left = black.clone(), black.clone()
    upper_right[:, :12, 12:] = 1
    lower_left[:, 12:, :12] = 1
    glimpse = force(torch.tensor([[[0.5, -0.5]]]).expand(BATCH, 1, 2), torch.zeros(BATCH, 1).long())

    def logits(images: Tensor) -> Tensor:
        with glimpse:
            found: Tensor = model(images, labels).logits
        return found

    assert torch.equal(logits(lower_left), logits(black))
    assert (logits(upper_right) - logits(black)).abs().amax(-1).min() > 1e-4


def test_a_glimpse_is_what_times_where() -> None:
    """Either factor at zero silences the other; at one it passes it on."""
    images, _ = make_batch()
    locations, scales = torch.rand(BATCH, 2) - 0.5, torch.tensor([0, 1, 0, 1, 0])

    def state(silent: str, images: Tensor, locations: Tensor, scales: Tensor) -> Tensor:
        model = make_model(num_glimpses=1)
        randomize(model)
        layers = {
            "what": [model.network.encoder.what],
            "where": [model.network.encoder.where, model.network.encoder.which],
        }
        with torch.no_grad():
            for layer in layers.get(silent, []):
                for parameter in layer.parameters():
                    parameter.zero_()
        pyramid, r1, _ = model.network.start(images)
        found: Tensor = model.network.look(pyramid, locations, scales, r1)
        return found

    elsewhere, other_scale, other_images = -locations, 1 - scales, 1 - images
    changes = {
        "image": (other_images, locations, scales),
        "location": (images, elsewhere, scales),
        "scale": (images, locations, other_scale),
    }
    for silent in ("nothing", "what", "where"):
        before = state(silent, images, locations, scales)
        for change in changes.values():
            assert torch.equal(state(silent, *change), before) == (silent != "nothing")


def test_location_std_is_a_buffer_that_can_be_scheduled() -> None:
    model, batch = make_model(location_std=0.3), make_batch()
    assert dict(model.named_buffers())["location_std"].shape == ()
    assert "location_std" in model.state_dict()
    guide = InferenceNetwork(model)
    for width in (0.3, 0.07):
        model.location_std.fill_(width)
        for program in (model, guide):
            fn = trace_of(program, *batch).nodes["location_2"]["fn"]
            torch.testing.assert_close(fn.base_dist.scale, torch.full((BATCH, 2), width))


# What evaluation and pictures ask of it.


def test_look_gives_sampled_sequences_and_those_of_the_mode() -> None:
    model, (images, _) = make_model(), make_batch()
    randomize(model)
    torch.manual_seed(0)
    looks = model.look(images, 7)
    assert looks.logits.shape == (7, BATCH, 10)
    assert looks.locations.shape == (7, BATCH, 3, 2)
    assert looks.scales.shape == (7, BATCH, 3)
    assert len(looks.locations.flatten(1).unique(dim=0)) == 7
    mode = model.look(images)
    assert all(torch.equal(x, y) for x, y in zip(mode, model.look(images), strict=True))
    assert mode.logits.shape == (1, BATCH, 10)
    with force(mode.locations[0], mode.scales[0]):
        trace = trace_of(model, images)
    for n in (1, 2, 3):
        location, scale = (trace.nodes[f"{kind}_{n}"]["fn"] for kind in ("location", "scale"))
        assert torch.equal(location.base_dist.loc, mode.locations[0, :, n - 1])
        assert torch.equal(scale.logits.argmax(-1), mode.scales[0, :, n - 1])
    assert not mode.logits.requires_grad


def test_look_does_not_depend_on_the_number_of_samples_in_shape() -> None:
    looks = make_model(num_glimpses=1).look(make_batch()[0], 1)
    assert (looks.logits.shape, looks.scales.shape) == ((1, BATCH, 10), (1, BATCH, 1))


def test_the_prediction_is_the_mean_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the mean logit: one sequence that is very sure does not outvote three that are sure."""
    logits = torch.tensor([[20.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 3.0]]).reshape(4, 1, 2)
    assert logits.mean(0).argmax() == 0

    def look(self: GlimpseClassifier, images: Tensor, samples: int | None = None) -> GlimpseSequence:
        chosen = logits if samples else logits[:1]
        count = len(chosen)
        return GlimpseSequence(chosen, torch.zeros(count, 1, 1, 2), torch.zeros(count, 1, 1).long())

    monkeypatch.setattr(GlimpseClassifier, "look", look)
    measures = make_model(num_glimpses=1).metrics(torch.rand(1, SIDE, SIDE), torch.tensor([1]), 4)
    assert (measures["error"].item(), measures["mode_error"].item()) == (0.0, 1.0)


def test_metrics() -> None:
    model, (images, labels) = make_model(), make_batch()
    torch.manual_seed(5)
    measures = model.metrics(images, labels, 6)
    assert list(measures) == ["error", "mode_error", "distance", "scale_1", "scale_2"]
    assert all(values.shape == (BATCH,) for values in measures.values())
    torch.manual_seed(5)
    looks = model.look(images, 6)
    torch.testing.assert_close(measures["scale_1"] + measures["scale_2"], torch.ones(BATCH))
    torch.testing.assert_close(measures["scale_2"], looks.scales.float().mean((0, 2)))
    guess = looks.logits.softmax(-1).mean(0).argmax(-1)
    assert torch.equal(measures["error"], (guess != labels).float())


def test_the_distance_is_in_pixels_from_the_bright_spot() -> None:
    model = make_model(num_glimpses=2, location_std=1e-6)
    with torch.no_grad():
        model.network.policy.linear.weight.zero_()
        model.network.policy.linear.bias.copy_(torch.tensor([0.5, -0.25, 0.0, 0.0]).atanh())
    images = torch.zeros(2, SIDE, SIDE)
    images[0, 3, 20] = 0.7  # its centre is at x = 20.5, y = 3.5; the glimpses at x = 18, y = 9
    measures = model.metrics(images, torch.zeros(2).long(), 3)
    black_image = (6**2 + 3**2) ** 0.5  # from the centre
    expected = torch.tensor([(2.5**2 + 5.5**2) ** 0.5, black_image])
    torch.testing.assert_close(measures["distance"], expected, rtol=1e-4, atol=1e-3)


def test_gaze_tells_what_was_seen() -> None:
    model, (images, labels) = make_model(), make_batch()
    gaze = model.gaze(images, labels)
    mode = model.look(images)
    assert gaze.windows.shape == (BATCH, 3, 3)
    assert gaze.patches.shape == (BATCH, 3, PATCH, PATCH)
    sides = PATCH * torch.tensor(SCALES)[mode.scales[0]].float()
    centres = gaze.windows[..., :2] + gaze.windows[..., 2:] / 2
    torch.testing.assert_close(gaze.windows[..., 2], sides)
    torch.testing.assert_close(centres, (mode.locations[0] + 1) * SIDE / 2)
    guesses = mode.logits[0].argmax(-1)
    assert gaze.correct == (guesses == labels).tolist()
    for caption, label, guess in zip(gaze.captions, labels.tolist(), guesses.tolist(), strict=True):
        assert caption.startswith(f"a {label}, read as {guess} (")


def test_one_channel_is_grey_to_the_bit() -> None:
    """Images with and without a dimension for their channel, through every hook."""
    model, (images, labels) = make_model(), make_batch()
    with_channel = images.unsqueeze(1)
    one, other = (model.prepare(x, labels)[0] for x in (images, with_channel))
    assert one.context.equal(other.context)
    assert one.pyramid.buffer.equal(other.pyramid.buffer) and not other.pyramid.colour
    found = []
    for each in (images, with_channel):
        torch.manual_seed(0)
        found.append(model.metrics(each, labels, 3))
    assert all(value.equal(found[1][name]) for name, value in found[0].items())
    assert model.gaze(with_channel, labels).patches.squeeze(2).equal(model.gaze(images, labels).patches)


def test_what_is_seen_in_colour() -> None:
    """Every channel of a glimpse and of the context reaches its weights; equal channels are as one."""
    colour, grey = make_model(image_channels=3), make_model()
    images, labels = make_batch()
    with torch.no_grad():
        for name, weights in (
            ("encoder.what", grey.network.encoder.what.weight),
            ("context_layers.0", grey.network.context_layers[0].weight),
        ):
            colour.network.get_submodule(name).weight.copy_(weights.repeat(1, 3) / 3)
        theirs = dict(colour.named_parameters())
        for name, weights in grey.named_parameters():
            if theirs[name].shape == weights.shape:
                theirs[name].copy_(weights)
    alike = images.unsqueeze(1).expand(-1, 3, -1, -1)
    one, other = grey.look(images), colour.look(alike)
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.locations, other.locations)
    metrics = [model.metrics(x, labels, 3)["distance"] for model, x in ((grey, images), (colour, alike))]
    assert metrics[0].shape == metrics[1].shape == (BATCH,)
    gaze = colour.gaze(alike, labels)
    assert gaze.patches.shape == (BATCH, 3, 3, PATCH, PATCH)
    torch.testing.assert_close(gaze.patches[:, :, 0], grey.gaze(images, labels).patches)
    for channel in range(3):
        changed = alike.clone()
        changed[:, channel] += 0.5
        assert not torch.allclose(colour.look(changed).logits, other.logits)


@pytest.mark.parametrize("guide", [Prior, InferenceNetwork])
def test_colour_can_be_trained(guide: Any) -> None:
    model, (_, labels) = make_model(image_channels=3, classes=4), make_batch()
    images, labels = torch.rand(BATCH, 3, SIDE, SIDE + 5), labels % 4
    objective = WakeSleep("self-normalized", num_particles=3, vectorize_particles=True)
    objective(model, guide(model))(*model.prepare(images, labels)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.network.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 9, 9, dtype=torch.uint8),
            "the images are torch.uint8: divide them by 255, as float32",
        ),
        (
            torch.zeros(2, 9, 9, dtype=torch.int16),
            "the images are torch.int16: make them floating point, in",
        ),
        (
            torch.zeros(9, 9),
            r"of shape \(9, 9\): they should be \[B, height, width\] or \[B, channels, height, w",
        ),
        (
            torch.zeros(2, 9, 9),
            r"with 1 channel\(s\), but the model's are 3: set model.image_channels = 1",
        ),
        (
            torch.zeros(2, 4, 9, 9),
            r"with 4 channel\(s\), but the model's are 3: set model.image_channels = 4",
        ),
        (torch.zeros(2, 9, 9, 3), r"channels last: move them with images.permute\(0, 3, 1, 2\)"),
    ],
)
def test_images_of_another_kind_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(image_channels=3)(images)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.rand(3, 9, 9) * 255,
            torch.zeros(3).long(),
            "the images go from .* to 25.*: divide them by",
        ),
        (
            torch.full((3, 9, 9), 300.0),
            torch.zeros(3).long(),
            r"from 300 to 300: scale them to \[0, 1\]",
        ),
        (torch.rand(3, 9, 9) - 1, torch.zeros(3).long(), r"from -.* scale them to \[0, 1\]"),
        (
            torch.rand(3, 9, 9).byte(),
            torch.zeros(3).long(),
            "the images are torch.uint8: divide them by 255",
        ),
        (
            torch.rand(3, 9, 9),
            torch.zeros(3),
            r"labels are torch.float32 of shape \(3,\): they should be",
        ),
        (torch.rand(3, 9, 9), torch.zeros(2).long(), r"of shape \(2,\): .* one for each of 3 images"),
        (
            torch.rand(3, 9, 9),
            torch.tensor([0, -1, 2]),
            "a label is -1: labels are whole numbers from 0",
        ),
        (
            torch.rand(3, 9, 9),
            torch.tensor([0, 12, 2]),
            "a label is 12, but the model has 10 classes, 0 to 9: set model.classes = 13 or ",
        ),
    ],
)
def test_batches_that_it_cannot_work_on(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_model().check_batch(images, labels)
    assert "\n" not in str(caught.value)
    make_model().check_batch(torch.rand(3, 9, 9), torch.tensor([0, 9, 5]))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_context_of_convolutions_sees_more(channels: int) -> None:
    """What cells of 12 x 12 do not tell apart reaches the first choice; it is 32 x 32 at any size."""
    shape = (BATCH, channels, 96, 96)
    fine = torch.zeros(shape)
    fine[..., 3:33:8, :] = 1.0
    moved = fine.roll(4, -2)  # the same mean in each cell of 8 x 8
    found = {}
    for context in ("pooled", "conv"):
        model = make_model(context=context, image_channels=channels)
        randomize(model)
        chosen = [model.look(images).locations[0, :, 0] for images in (fine, moved)]
        found[context] = (chosen[0] - chosen[1]).abs().max().item()
        assert model.look(torch.rand(2, channels, 40, 70)).logits.shape == (1, 2, 10)
    assert found["pooled"] < 1e-6 < 1e-4 < found["conv"]


def test_the_context_is_pooled_by_default() -> None:
    for name, weights in make_model().state_dict().items():
        assert weights.equal(make_model(context="pooled").state_dict()[name])


def test_labels_have_names() -> None:
    images, labels = make_batch()
    names = [f"{n} cats" for n in range(10)]
    model = make_model(class_names=tuple(names))
    for caption, label in zip(model.gaze(images, labels).captions, labels.tolist(), strict=True):
        assert caption.startswith(f"a {names[label]}, read as ")
    assert make_model(class_names=("a", "b", "c")).classes == 3
    with pytest.raises(InputError, match=r"there are 2 class_names .* for classes = 3: leave out"):
        make_model(class_names=("a", "b"), classes=3)


def test_gaze_of_sampled_sequences() -> None:
    """Those of an image in a row, as look draws them; without labels nothing is right or wrong."""
    model, (images, labels) = make_model(), make_batch()
    randomize(model)
    torch.manual_seed(0)
    gaze = model.gaze(images, labels, samples=3)
    torch.manual_seed(0)
    looks = model.look(images, 3)
    assert gaze.windows.shape == (3 * BATCH, 3, 3) and gaze.patches.shape == (3 * BATCH, 3, PATCH, PATCH)
    assert gaze.images.equal(images.repeat_interleave(3, 0))
    centre = (gaze.windows[..., :2] + gaze.windows[..., 2:] / 2) / (SIDE / 2) - 1
    torch.testing.assert_close(centre, looks.locations.transpose(0, 1).flatten(0, 1), rtol=0, atol=1e-5)
    predicted = looks.logits.argmax(-1).T.flatten()
    assert gaze.correct == (predicted == labels.repeat_interleave(3)).tolist()
    unknown = model.gaze(images)
    assert unknown.correct == [None] * BATCH
    assert all(re.fullmatch(r"\d \(\d+%\)", caption) for caption in unknown.captions)
    for samples, sequences in ((None, model.look(images).logits), (3, looks.logits)):
        torch.manual_seed(0)
        found = model.probabilities(images, samples)
        torch.testing.assert_close(found, sequences.softmax(-1).mean(0))


def test_a_scale_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"scales \[2, 4, 2\] contains a scale twice: each is one"):
        make_model(scales=(2, 4, 2))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("hidden", 0, "model.hidden = 0: should be greater than 0"),
        ("num_glimpses", 0, "model.num_glimpses = 0: should be greater than 0"),
        ("scales", [], r"model.scales = \[\]: .*at least 1 item"),
        ("scales", [1, 0], r"model.scales\[1\] = 0: should be greater than 0"),
        ("location_std", 0.0, "model.location_std = 0.0: should be greater than 0"),
        ("classes", 1, "model.classes = 1: should be greater than or equal to 2"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, message: str) -> None:
    tables = {
        "data": {"source": "sample"},
        "model": {"name": "glimpse-classifier", option: value},
        "guide": {"name": "inference"},
        "objective": {"name": "wake-sleep"},
    }
    with pytest.raises(InputError, match=message) as caught:
        parse_config(tables)
    assert "\n" not in str(caught.value)


# The inference network.


@pytest.mark.parametrize("particles", [None, 3])
def test_the_inference_network_proposes_the_models_latents(particles: int | None) -> None:
    model, batch = make_model(), make_batch()
    guide: Any = InferenceNetwork(model)
    if particles is not None:
        guide = pyro.plate("particles", particles, dim=-2)(guide)
    trace = trace_of(guide, *batch)
    assert latents(trace) == latents(trace_of(model, *batch))
    assert not trace.observation_nodes
    for name in latents(trace):
        assert trace.nodes[name]["fn"].batch_shape == ((BATCH,) if particles is None else (3, BATCH))


def test_the_inference_network_sees_the_label() -> None:
    model, (images, labels) = make_model(), make_batch()
    guide = InferenceNetwork(model)
    assert guide.network.state.out_features == HIDDEN
    with force(*fixed_glimpses()):
        runs = [trace_of(guide, images, y) for y in (labels, (labels + 1) % 10)]
    for name in latents(runs[0]):
        a, b = (run.nodes[name]["fn"] for run in runs)
        where = (lambda fn: fn.base_dist.loc) if "location" in name else (lambda fn: fn.logits)
        assert (where(a) - where(b)).abs().amax(-1).min() > 1e-5


def test_the_inference_network_is_the_paper_s() -> None:
    """A layer on [r2, one_hot(y)] and a policy of the model's form."""
    model, (images, labels) = make_model(), make_batch()
    guide = InferenceNetwork(model, hidden=6)
    randomize(model)
    randomize(guide)
    with force(*fixed_glimpses()):
        trace = trace_of(guide, images, labels)
    pyramid, r1, r2 = model.network.start(images)
    net = guide.network
    weight = torch.cat([net.state.weight, net.label.weight.T], -1)
    locations, scales = fixed_glimpses()
    for n in range(3):
        both = torch.cat([r2, F.one_hot(labels, 10).float()], -1)
        hidden = F.relu(F.linear(both, weight, net.state.bias))
        out = F.linear(hidden, net.policy.linear.weight, net.policy.linear.bias)
        location, scale = (trace.nodes[f"{kind}_{n + 1}"]["fn"] for kind in ("location", "scale"))
        torch.testing.assert_close(location.base_dist.loc, out[:, :2].tanh())
        torch.testing.assert_close(scale.logits, out[:, 2:].log_softmax(-1))
        r1 = model.network.look(pyramid, locations[:, n], scales[:, n], r1)
        r2 = model.network.decide(r1, r2)


def test_no_gradient_passes_from_the_guide_into_the_model() -> None:
    """log q is a function of the guide's own parameters; the model's recurrence is a constant to it."""
    model, batch = make_model(), make_batch()
    guide = InferenceNetwork(model)
    randomize(model)
    randomize(guide)
    trace = trace_of(guide, *batch)
    log_q = trace.log_prob_sum()
    theta, eta = list(model.parameters()), list(guide.network.parameters())
    assert not {id(p) for p in theta} & {id(p) for p in guide.parameters()}
    found = torch.autograd.grad(log_q, theta, retain_graph=True, allow_unused=True)
    assert found == (None,) * len(theta)
    for gradient in torch.autograd.grad(log_q, eta):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("objective", [WakeSleep, ImportanceBound, VariationalBound])
def test_training_the_guide_leaves_the_models_gradient_alone(objective: type[Objective]) -> None:
    """With the glimpses given, the model's gradient is the same whether or not the guide learns."""
    model, batch = make_model(), make_batch()
    guide = InferenceNetwork(model)
    randomize(model)
    gradients = []
    for learns in (True, False):
        guide.requires_grad_(learns).train(learns)
        torch.manual_seed(2)
        loss = objective(num_particles=3, vectorize_particles=True)(model, guide)(*batch)
        parameters = list(model.network.parameters())
        gradients.append(torch.autograd.grad(loss, parameters))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_inference_network_needs_labels() -> None:
    model, (images, labels) = make_model(), make_batch()
    guide = InferenceNetwork(model)
    with pytest.raises(InputError, match="guide 'inference' needs labels: to look without them, run"):
        guide(images)
    torch.manual_seed(0)
    by_position = trace_of(guide, images, labels)
    torch.manual_seed(0)
    fantasy = trace_of(guide, images, observations={"label": labels})
    torch.manual_seed(0)
    # A fantasy's label comes before the true one.
    both = trace_of(guide, images, (labels + 1) % 10, observations={"label": labels})
    for name in latents(by_position):
        assert torch.equal(by_position.nodes[name]["value"], fantasy.nodes[name]["value"])
        assert torch.equal(by_position.nodes[name]["value"], both.nodes[name]["value"])


def test_the_inference_network_refuses_other_models() -> None:
    message = "guide 'inference' proposes for 'glimpse-classifier', not for Linear: use guide 'prior'"
    with pytest.raises(InputError, match=message):
        InferenceNetwork(nn.Linear(1, 1))  # type: ignore[arg-type]


# The prior as proposal.


def weather(rain: Tensor | None = None) -> str:
    """A model that is a plain function, with a latent after an observed site."""
    cloudy = pyro.sample("cloudy", dist.Bernoulli(torch.tensor(0.3)))
    pyro.sample("rain", dist.Bernoulli(0.1 + 0.6 * cloudy), obs=rain)
    pyro.sample("umbrella", dist.Bernoulli(0.2 + 0.5 * cloudy))
    return "done"


@pytest.mark.parametrize("observed", [True, False])
def test_the_prior_runs_any_model_with_observed_sites_hidden(observed: bool) -> None:
    guide = Prior(weather)
    rain = torch.tensor(1.0) if observed else None
    trace = trace_of(guide, rain)
    assert latents(trace) == ["cloudy", "umbrella"] if observed else ["cloudy", "rain", "umbrella"]
    assert not trace.observation_nodes
    assert guide(rain) == "done"
    assert list(guide.parameters()) == []
    assert guide.state_dict() == {}


def test_the_prior_of_the_classifier_is_its_policy() -> None:
    model, batch = make_model(), make_batch()
    torch.manual_seed(4)
    ours = trace_of(Prior(model), *batch)
    torch.manual_seed(4)
    theirs = trace_of(model, *batch)
    assert latents(ours) == latents(theirs)
    for name in latents(ours):
        assert torch.equal(ours.nodes[name]["value"], theirs.nodes[name]["value"])
    assert "label" not in ours.nodes
    assert Prior(model).model is model


def test_the_prior_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the guide is the prior of another model"):
        ImportanceBound(2).loss(make_model(), Prior(make_model()), *make_batch())


# All of them together, under torch.optim and under SVI.

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    **{f"variational-{b}": VariationalBound for b in ("none", "leave-one-out", "site")},
    "importance": ImportanceBound,
    **{f"wake-sleep-{c}": WakeSleep for c in get_args(ControlVariate)},
    "sleep": WakeSleep,
}


def make_objective(name: str) -> Objective:
    options: dict[str, Any] = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    kind, _, choice = name.rpartition("-") if "wake" in name else name.partition("-")
    if "leave" in name:
        kind, choice = "variational", "leave-one-out"
    if name == "sleep":
        options["insomnia"] = 0.5
    elif kind == "variational":
        options["baseline"] = choice
    elif kind == "wake-sleep":
        options["control_variate"] = choice
    return OBJECTIVES[name](**options)


def trained_parts(name: str, model: GlimpseClassifier, guide: nn.Module) -> dict[str, Tensor]:
    """The parameters that a step of this objective has to move."""
    moved = {f"model.{k}": p for k, p in model.network.named_parameters()}
    inference = isinstance(guide, InferenceNetwork)
    if inference:
        moved |= {f"guide.{k}": p for k, p in guide.network.named_parameters()}
    # The regression's last layer; those before it follow once that one is not zero any more.
    if name == "wake-sleep-learned" or (name == "variational-site" and not inference):
        moved["model.baselines"] = model.baselines.out.weight
    if name in ("wake-sleep-learned", "variational-site") and inference:
        moved["guide.baselines"] = guide.baselines.out.weight
    return moved


@pytest.fixture
def batch_and_parts(guide_name: str) -> tuple[tuple[Tensor, Tensor], GlimpseClassifier, nn.Module]:
    model = make_model(num_glimpses=2)
    guide: nn.Module = InferenceNetwork(model) if guide_name == "inference" else Prior(model)
    return make_batch(), model, guide


COMBINATIONS = pytest.mark.parametrize(
    ("name", "guide_name"),
    [(o, g) for o in OBJECTIVES for g in ("inference", "prior") if (o, g) != ("sleep", "prior")],
)


@COMBINATIONS
def test_a_step_with_torch_optim(name: str, guide_name: str, batch_and_parts: Any) -> None:
    batch, model, guide = batch_and_parts
    loss_module = make_objective(name)(model, guide)
    optimizer = torch.optim.SGD(loss_module.parameters(), lr=1e-3)
    loss = loss_module(*batch)
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    moved = trained_parts(name, model, guide)
    for key, parameter in moved.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    before = {key: p.detach().clone() for key, p in moved.items()}
    optimizer.step()
    assert not [key for key, p in moved.items() if torch.equal(before[key], p)]
    assert all(p.isfinite().all() for p in loss_module.parameters())


@COMBINATIONS
def test_a_step_with_svi(name: str, guide_name: str, batch_and_parts: Any) -> None:
    """In Pyro's global parameter store: names of model and guide must not collide there."""
    batch, model, guide = batch_and_parts
    svi = SVI(model, guide, Adam({"lr": 1e-3}), make_objective(name))
    moved = trained_parts(name, model, guide)
    before = {key: p.detach().clone() for key, p in moved.items()}
    loss = svi.step(*batch)
    assert isinstance(loss, float) and loss == loss
    assert not [key for key, p in moved.items() if torch.equal(before[key], p)]
    stored = {id(p) for p in pyro.get_param_store()._params.values()}
    assert {id(p) for p in moved.values()} <= stored


@pytest.mark.parametrize("name", ["importance", "wake-sleep-learned"])
def test_two_models_of_the_same_names_under_module_local_parameters(name: str) -> None:
    """As in the training loop: parameters belong to their module, and Pyro's store stays empty."""
    with pyro.settings.context(module_local_params=True):
        parts = [make_objective(name)(m, InferenceNetwork(m)) for m in (make_model(), make_model())]
        before = [p.detach().clone() for p in parts[1].parameters()]
        optimizer = torch.optim.SGD(parts[0].parameters(), lr=0.1)
        for _ in range(2):
            parts[0](*make_batch()).backward()
            optimizer.step()
        assert all(p.grad is None for p in parts[1].parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, parts[1].parameters(), strict=True))
        changed = zip(before, parts[0].model.network.parameters(), strict=False)
        assert not any(torch.equal(a, b) for a, b in changed)
        # Both still compute with their own: equal weights would give equal numbers.
        losses = []
        for part in parts:
            torch.manual_seed(0)
            losses.append(part(*make_batch()).item())
        assert losses[0] != losses[1]
    assert list(pyro.get_param_store().keys()) == []


# Locations that are differentiated through.


@pytest.mark.parametrize("objective", ["variational", "importance"])
def test_pathwise_locations_give_the_derivative_of_the_bound(objective: str) -> None:
    """With one scale, and given the noise, the bound is smooth in the weights: finite differences."""
    with pyro.validation_enabled(False):
        model = make_model(2, scales=(2,)).double()
        randomize(model)
        images, labels = make_batch(dtype=torch.float64)
        noise = torch.randn(
            2, 3, BATCH, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        make = VariationalBound if objective == "variational" else ImportanceBound

        def loss() -> Tensor:
            bound = make(
                num_particles=3, vectorize_particles=True, max_plate_nesting=1, pathwise=["location_*"]
            )
            forced = {
                f"location_{n + 1}": lambda fn, n=n: fn.base_dist.loc + fn.base_dist.scale * noise[n]
                for n in range(2)
            }
            with ForceSamples(forced):
                return bound.differentiable_loss(model, Prior(model), images, labels)

        weight = model.network.policy.linear.weight
        gradient = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
        found = dict(zip([name for name, _ in model.named_parameters()], gradient, strict=True))
        names = [name for name, p in model.named_parameters() if p is weight]
        change = torch.randn_like(weight)
        with torch.no_grad():
            values = []
            for step in (1e-6, -2e-6):
                weight += step * change
                values.append(loss().item())
            weight += 1e-6 * change
        expected = (values[0] - values[1]) / 2e-6
        assert (found[names[0]] * change).sum().item() == pytest.approx(expected, rel=1e-4)


def test_an_inference_network_refuses_pathwise_locations() -> None:
    model = make_model(2)
    objective = ImportanceBound(2, pathwise=["location_*"])
    with pytest.raises(
        InputError, match="the guide InferenceNetwork takes earlier samples as constants"
    ):
        objective.differentiable_loss(model, InferenceNetwork(model), *make_batch())
