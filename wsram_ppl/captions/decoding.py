"""From next-word probabilities to sentences: beam search and sampling, for any captioning model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wsram_ppl.data.captions.vocabulary import END, START, UNKNOWN
from wsram_ppl.errors import InputError

__all__ = ["Looks", "Sentences", "Speaker", "beam_search", "follow", "sample"]


class Looks(NamedTuple):
    """Where a model looked for each of T words of B sentences, on each of S sampled paths.

    Attributes:
        layers: ``[S, B, T]``, layers of the conv net.
        centres: ``[S, B, T, 2]``, (x, y); the picture spans [-1, 1]^2, y downwards.
        sizes: ``[S, B, T, 2]``, width and height of the region read, in the same units.
        weights: ``[S, B]``, of the paths given all words but the last; they sum to 1.
    """

    layers: Tensor
    centres: Tensor
    sizes: Tensor
    weights: Tensor

    def of(self, sentence: int) -> Looks:
        """The looks of one sentence, B = 1."""
        one = slice(sentence, sentence + 1)
        return Looks(*(part[:, one] for part in self))


class Speaker(Protocol):
    """A model that produces one word at a time, for K hypotheses about each of B pictures at once."""

    def begin(self, *maps: Tensor) -> Any:
        """The state before the first word: one hypothesis per picture."""

    def step(self, state: Any, parents: Tensor, words: Tensor) -> tuple[Any, Tensor]:
        """Extends the hypotheses ``parents [K, B]`` of the state by ``words [K, B]``.

        Returns:
            The state of the K hypotheses, and log-probabilities of their next words, ``[K, B, words]``.
        """

    def looks(self, state: Any, chosen: Tensor) -> Looks | None:
        """Where it looked, for the hypotheses ``chosen [B]``; None for a model without attention."""


class Sentences(NamedTuple):
    """Sentences about B pictures.

    Attributes:
        words: ``[B, T]``, without the start mark, padded with end marks.
        log_probability: ``[B]``, of the sentence with its end mark, in nats.
        looks: where the model looked for each word, if it reports that.
    """

    words: Tensor
    log_probability: Tensor
    looks: Looks | None


#: From scores and ends [K, B] and log-probabilities of the next word [K, B, words] to the parents,
#: last words and scores [K', B] of the hypotheses that extend these.
_Extend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@torch.no_grad()
def beam_search(
    speaker: Speaker, maps: tuple[Tensor, ...], *, beam: int, longest: int, length_penalty: float = 0.7
) -> Sentences:
    """The most probable sentences that a beam finds.

    A finished hypothesis stays in the beam and competes with unfinished ones. With a beam of 1 this is
    greedy decoding. A sentence that has not ended after ``longest`` words is cut there, and chosen only
    where none has ended. The unknown word is never produced.

    Args:
        maps: for each layer ``[B, channels, height, width]``.
        beam: hypotheses per picture.
        longest: words per sentence, end mark included.
        length_penalty: the best of the beam has the largest log-probability /
            length ** length_penalty, words and the end mark counted: 0 prefers short sentences, 1 the
            mean per word.

    Raises:
        InputError: a number out of range.
    """
    if beam < 1 or longest < 1 or length_penalty < 0:
        raise InputError(
            "beam and longest should be at least 1 and length_penalty at least 0, not "
            f"{beam}, {longest} and {length_penalty}"
        )

    def best(scores: Tensor, ended: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # A finished hypothesis has one continuation, with log-probability 0.
        rest = torch.full_like(log_probs[0, 0], -torch.inf)
        rest[END] = 0.0
        total = scores.unsqueeze(-1) + torch.where(ended.unsqueeze(-1), rest, log_probs)
        total = total.movedim(1, 0).flatten(1)  # [B, K * vocabulary]
        scores, found = total.topk(min(beam, total.shape[1]), -1)
        return found.T // log_probs.shape[-1], found.T % log_probs.shape[-1], scores.T

    told = _tell(speaker, maps, longest, best)
    ended = told.ended
    lengths = ((told.words == END).cumsum(-1) == 0).sum(-1) + ended  # with the end mark, if there is one
    # The smallest -score / length ** penalty, as a logarithm: a power of the length can overflow.
    costs = (-told.scores).clamp_min(0.0).log()
    costs = costs - length_penalty * lengths.clamp_min(1).to(costs).log()
    chosen = costs.masked_fill(~ended & ended.any(0), torch.inf).argmin(0)
    return told.choose(speaker, chosen)


@torch.no_grad()
def sample(speaker: Speaker, maps: tuple[Tensor, ...], *, longest: int) -> Sentences:
    """Sentences drawn word by word from the model's probabilities, without the unknown word.

    Args:
        maps: for each layer ``[B, channels, height, width]``.
        longest: words per sentence, end mark included.

    Raises:
        InputError: ``longest`` is below 1.
    """
    if longest < 1:
        raise InputError(f"longest should be at least 1, not {longest}")

    def drawn(scores: Tensor, ended: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        said = torch.distributions.Categorical(logits=log_probs).sample().masked_fill(ended, END)
        found = log_probs.gather(-1, said.unsqueeze(-1)).squeeze(-1)
        return torch.zeros_like(said), said, scores + found.masked_fill(ended, 0.0)

    told = _tell(speaker, maps, longest, drawn)
    return told.choose(speaker, torch.zeros_like(told.parents[0]))


def follow(x: Tensor, parents: Tensor, dim: int = 0) -> Tensor:
    """Gathers, for hypotheses that extend others, what each inherits from its parent.

    Args:
        x: ``[*before, K, B, *after]``, a value for each of K hypotheses about each of B pictures, after
            ``dim`` leading dimensions.
        parents: ``[K', B]``, numbers of hypotheses, below K.

    Returns:
        ``[*before, K', B, *after]``: at (k, b) what ``x`` has at (parents[k, b], b).
    """
    before, after = x.shape[:dim], x.shape[dim + 2 :]
    index = parents.view(*parents.shape, *(1,) * len(after))
    return x.gather(dim, index.expand(*before, *parents.shape, *after))


class _Told(NamedTuple):
    """K hypotheses about each of B pictures, and the state before their last words."""

    state: Any
    parents: Tensor
    words: Tensor
    scores: Tensor
    ended: Tensor

    def choose(self, speaker: Speaker, chosen: Tensor) -> Sentences:
        """The ``chosen [B]`` hypotheses as sentences."""
        pick = chosen.unsqueeze(0)
        return Sentences(
            follow(self.words, pick)[0],
            follow(self.scores, pick)[0],
            speaker.looks(self.state, follow(self.parents, pick)[0]),
        )


def _tell(speaker: Speaker, maps: tuple[Tensor, ...], longest: int, extend: _Extend) -> _Told:
    """Extends hypotheses word by word until all have ended, or are as long as may be."""
    state = speaker.begin(*maps)
    parents = torch.zeros(1, maps[0].shape[0], dtype=torch.long, device=maps[0].device)
    said, scores = torch.full_like(parents, START), torch.zeros_like(parents, dtype=torch.float)
    words = parents.new_empty(*parents.shape, 0)
    ended = torch.zeros_like(parents, dtype=torch.bool)
    for _ in range(longest):
        state, log_probs = speaker.step(state, parents, said)
        parents, said, scores = extend(scores, ended, _sayable(log_probs))
        words = torch.cat([follow(words, parents), said.unsqueeze(-1)], -1)
        ended = follow(ended, parents) | (said == END)
        if bool(ended.all()):
            break
    return _Told(state, parents, words, scores, ended)


def _sayable(log_probs: Tensor) -> Tensor:
    """``[..., vocabulary]`` without the start mark and the unknown word."""
    unsaid = torch.zeros_like(log_probs[(0,) * (log_probs.dim() - 1)], dtype=torch.bool)
    unsaid[START], unsaid[UNKNOWN] = True, True
    return log_probs.masked_fill(unsaid, -torch.inf)
