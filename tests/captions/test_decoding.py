"""Beam search and sampling against exhaustive search, and the captioner as a speaker."""

from __future__ import annotations

import itertools
import math
from inspect import signature
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.models.test_captioner import make_batch, make_model, randomize
from wsram_ppl.captions.decoding import Looks, beam_search, follow, sample
from wsram_ppl.captions.evaluation import Decoding, can_speak, describe
from wsram_ppl.commands.pictures import caption
from wsram_ppl.data.captions.scenes import SceneCaptions
from wsram_ppl.data.captions.vocabulary import END, START, UNKNOWN
from wsram_ppl.data.digits.source import SampleDigits
from wsram_ppl.errors import InputError
from wsram_ppl.models.captioner import Telling
from wsram_ppl.primitives.handlers import Mode
from wsram_ppl.testing import ForceSamples

VOCABULARY = 5
WORDS = [END, 3, 4]


class Parrot:
    """Next-word probabilities that depend on every word before, by a table of random numbers.

    Its state is all that was said, so a hypothesis that got the wrong parent is found out.
    """

    def __init__(self, seed: int, batch: int, spread: float = 2.0) -> None:
        self.seed, self.batch, self.spread = seed, batch, spread

    def log_probs(self, said: tuple[int, ...], picture: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, picture, *said)) % 2**31)
        logits = self.spread * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
        return logits.log_softmax(-1)

    def begin(self, *maps: Tensor) -> list[list[tuple[int, ...]]]:
        return [[() for _ in range(self.batch)]]

    def step(self, state: Any, parents: Tensor, words: Tensor) -> tuple[Any, Tensor]:
        said = [
            [(*state[int(parents[k, b])][b], int(words[k, b])) for b in range(self.batch)]
            for k in range(len(parents))
        ]
        found = [
            torch.stack([self.log_probs(prefix, b) for b, prefix in enumerate(row)]) for row in said
        ]
        return said, torch.stack(found)

    def looks(self, state: Any, chosen: Tensor) -> Looks | None:
        return None


@pytest.mark.parametrize("before", [(), (4,)])
@pytest.mark.parametrize("after", [(), (0,), (5,), (2, 3)])
def test_hypotheses_take_over_what_is_their_parents(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """By an index for each, with more, fewer and as many children as parents."""
    x = torch.arange(math.prod((*before, 3, 2, *after))).view(*before, 3, 2, *after)
    for rows in [[2, 0]], [[1, 1], [0, 2], [2, 2]], [[1, 1]] * 4:
        parents = torch.tensor(rows)
        expected = x[(slice(None),) * len(before) + (parents, torch.arange(2).expand_as(parents))]
        assert torch.equal(follow(x, parents, dim=len(before)), expected)


def sentences(longest: int) -> list[tuple[int, ...]]:
    """All that end within so many words, and all that were cut there."""
    found: list[tuple[int, ...]] = []
    for length in range(1, longest + 1):
        for words in itertools.product(WORDS[1:], repeat=length - 1):
            found.append((*words, END))
    found += itertools.product(WORDS[1:], repeat=longest)
    return found


def probability(parrot: Parrot, sentence: tuple[int, ...], picture: int) -> float:
    said: tuple[int, ...] = (START,)
    total = 0.0
    for word in sentence:
        total += float(parrot.log_probs(said, picture)[word])
        said = (*said, word)
    return total


def trimmed(words: Tensor) -> tuple[int, ...]:
    found = words.tolist()
    return tuple(found[: found.index(END) + 1] if END in found else found)


@given(
    seed=st.integers(0, 10_000),
    penalty=st.sampled_from([0.0, 0.7, 1.0, 40.0]),
    longest=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_beam_that_holds_everything_finds_the_best(seed: int, penalty: float, longest: int) -> None:
    parrot = Parrot(seed, batch=2)
    found = beam_search(parrot, (torch.zeros(2, 1),), beam=100, longest=longest, length_penalty=penalty)
    for picture in (0, 1):
        whole = [sentence for sentence in sentences(longest) if sentence[-1] == END]
        best = max(whole, key=lambda s: probability(parrot, s, picture) / len(s) ** penalty)
        assert trimmed(found.words[picture]) == best
        assert float(found.log_probability[picture]) == pytest.approx(probability(parrot, best, picture))


@given(seed=st.integers(0, 10_000), beam=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_score_is_that_of_the_sentence(seed: int, beam: int) -> None:
    parrot = Parrot(seed, batch=3)
    found = beam_search(parrot, (torch.zeros(3, 1),), beam=beam, longest=6)
    for picture in range(3):
        said = trimmed(found.words[picture])
        assert not {START, UNKNOWN} & set(said)
        assert float(found.log_probability[picture]) == pytest.approx(probability(parrot, said, picture))


def test_a_beam_of_one_is_greedy() -> None:
    parrot = Parrot(7, batch=2)
    found = beam_search(parrot, (torch.zeros(2, 1),), beam=1, longest=8)
    for picture in (0, 1):
        said: tuple[int, ...] = (START,)
        while len(said) < 9 and said[-1] != END:
            known = parrot.log_probs(said, picture)
            said = (*said, max(WORDS, key=lambda word: float(known[word])))
        assert trimmed(found.words[picture]) == said[1:]


def test_a_length_penalty_that_overflows_still_compares() -> None:
    """The longest whole sentence has the least -score / length ** 400, whatever its score."""
    found = beam_search(
        Parrot(3, batch=4), (torch.zeros(4, 1),), beam=100, longest=4, length_penalty=400.0
    )
    assert [len(trimmed(words)) for words in found.words] == [4] * 4


def test_commands_decode_as_the_library_does() -> None:
    options = {option.name: option.default for option in caption.params}
    assert {name: options[name] for name in Decoding._fields} == Decoding()._asdict()
    assert signature(beam_search).parameters["length_penalty"].default == Decoding().length_penalty


def test_the_length_penalty_makes_sentences_longer() -> None:
    parrot = Parrot(3, batch=50, spread=0.5)
    lengths = []
    for penalty in (0.0, 1.0):
        found = beam_search(parrot, (torch.zeros(50, 1),), beam=30, longest=4, length_penalty=penalty)
        lengths.append(sum(len(trimmed(words)) for words in found.words))
    assert lengths[1] > lengths[0] + 20


def test_samples_have_the_models_probabilities() -> None:
    """Of 20,000 sentences about one picture, each as often as it should be."""
    count = 20_000

    class Same(Parrot):
        def __init__(self) -> None:
            super().__init__(11, count, spread=1.0)
            self.known: dict[tuple[int, ...], Tensor] = {}

        def log_probs(self, said: tuple[int, ...], picture: int) -> Tensor:
            if said not in self.known:
                self.known[said] = super().log_probs(said, 0)
            return self.known[said]

    torch.manual_seed(0)
    parrot = Same()
    found = sample(parrot, (torch.zeros(count, 1),), longest=2)
    said = [trimmed(words) for words in found.words]
    for sentence in sentences(2):
        expected, before = 1.0, (START,)
        for word in sentence:
            p = torch.softmax(parrot.log_probs(before, 0)[WORDS], -1)
            expected *= float(p[WORDS.index(word)])
            before = (*before, word)
        error = math.sqrt(expected * (1 - expected) / count)
        assert abs(said.count(sentence) / count - expected) < 4 * error
    place = said.index((3, 4))
    assert float(found.log_probability[place]) == pytest.approx(probability(parrot, (3, 4), 0))


@pytest.mark.parametrize("options", [{"beam": 0}, {"longest": 0}, {"length_penalty": -1.0}])
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="should be at least 1"):
        beam_search(Parrot(0, 1), (torch.zeros(1, 1),), **{"beam": 1, "longest": 1, **options})
    with pytest.raises(InputError, match="longest should be at least 1, not 0"):
        sample(Parrot(0, 1), (torch.zeros(1, 1),), longest=0)


def test_a_model_that_cannot_speak() -> None:
    source = SceneCaptions(held_out=2)
    assert not can_speak(nn.Linear(1, 1), source)
    assert can_speak(make_model(), source)
    assert not can_speak(make_model(), SampleDigits(canvas=64))
    with pytest.raises(InputError, match="Linear has no method 'speaker' to write captions with"):
        describe(nn.Linear(1, 1), source.look_up(["0"]), Decoding())


# The captioner.


def say(model: Any, paths: int | None, sentence: list[int], maps: tuple[Tensor, ...]) -> Any:
    """Makes it say a sentence about both pictures: log-probability of each word, and the state."""
    speaker = model.speaker(paths)
    state: Telling = speaker.begin(*maps)
    found = []
    for before, word in itertools.pairwise([START, *sentence]):
        said = torch.full((1, 2), before)
        state, log_probs = speaker.step(state, torch.zeros(1, 2, dtype=torch.long), said)
        found.append(log_probs[0, :, word])
    return torch.stack(found, -1), speaker.looks(state, torch.zeros(2, dtype=torch.long)), state


@pytest.mark.parametrize("location", ["grid", "gaussian"])
@torch.no_grad()
def test_the_probability_of_a_sentence_is_its_mean_over_the_paths(location: str) -> None:
    model = make_model(location).double()
    randomize(model)
    _, _, *maps = make_batch(dtype=torch.float64)
    torch.manual_seed(0)
    sentence = [3, 5, 1]
    each, looks, state = say(model, 6, sentence, tuple(maps))
    values = {}
    for t in range(3):
        values[f"layer_{t + 1}"] = state.layers[:, 0, :, t]
        values[f"location_{t + 1}"] = state.locations[:, 0, :, t]
    words = torch.tensor([[START, *sentence]]).expand(2, -1)
    with ForceSamples(values), pyro.plate("paths", 6, dim=-2):
        trace = pyro.poutine.trace(model).get_trace(words, torch.ones(2, 4).bool(), *maps)
    trace.compute_log_prob()
    by_path = torch.stack([trace.nodes[f"word_{t}"]["log_prob"] for t in (1, 2, 3)]).cumsum(0)
    mean = by_path.logsumexp(1) - math.log(6)
    torch.testing.assert_close(each.cumsum(-1), mean.T)
    torch.testing.assert_close(looks.weights, torch.softmax(by_path[1], 0))
    assert looks.layers.shape == (6, 2, 3)
    assert looks.centres.shape == looks.sizes.shape == (6, 2, 3, 2)
    if location == "gaussian":
        torch.testing.assert_close(looks.centres, state.locations[:, 0])
    coarse = looks.layers == 1
    assert (looks.sizes[coarse] == torch.tensor([1.0, 2.0])).all()
    torch.testing.assert_close(
        looks.sizes[~coarse], torch.tensor([2 / 3, 1.0]).double().expand(int((~coarse).sum()), 2)
    )


@pytest.mark.parametrize("location", ["grid", "gaussian"])
@torch.no_grad()
def test_without_paths_it_looks_where_it_most_probably_would(location: str) -> None:
    model = make_model(location)
    randomize(model)
    _, _, *maps = make_batch()
    sentence = [4, 6, 1]
    each, looks, _ = say(model, None, sentence, tuple(maps))
    words = torch.tensor([[START, *sentence]]).expand(2, -1)
    with Mode():
        trace = pyro.poutine.trace(model).get_trace(words, torch.ones(2, 4).bool(), *maps)
    trace.compute_log_prob()
    expected = torch.stack([trace.nodes[f"word_{t}"]["log_prob"] for t in (1, 2, 3)], -1)
    torch.testing.assert_close(each, expected)
    script = trace.nodes["_RETURN"]["value"]
    assert torch.equal(looks.layers[0], script.layers)
    assert (looks.weights == 1).all()


@pytest.mark.parametrize("paths", [None, 3])
def test_a_picture_is_described_the_same_in_any_company(paths: int | None) -> None:
    """Beam search over both pictures at once, and over one (sampled paths differ, modes do not)."""
    model = make_model(seed=4).double()
    randomize(model, size=2.0)
    _, _, *maps = make_batch(dtype=torch.float64)
    both = beam_search(model.speaker(paths), tuple(maps), beam=3, longest=5)
    one = beam_search(model.speaker(paths), tuple(m[:1] for m in maps), beam=3, longest=5)
    assert both.looks is not None
    assert both.looks.layers.shape == (paths or 1, 2, both.words.shape[1])
    if paths is None:
        assert trimmed(one.words[0]) == trimmed(both.words[0])
        torch.testing.assert_close(one.log_probability[0], both.log_probability[0])


@torch.no_grad()
def test_a_finished_sentence_says_nothing_more_about_its_paths() -> None:
    model = make_model(seed=4)
    randomize(model, size=2.0)
    _, _, *maps = make_batch()
    speaker = model.speaker(6)
    state, parents = speaker.begin(*maps), torch.zeros(1, 2, dtype=torch.long)
    paths = []
    for word in (START, 4, 6, END, END):
        state, _ = speaker.step(state, parents, torch.full_like(parents, word))
        paths.append(state.path)
    assert not torch.equal(paths[1], paths[2])  # each word weighs the paths
    assert torch.equal(paths[3], paths[2])
    assert torch.equal(paths[4], paths[2])
