"""Captions of held-out pictures, and their BLEU."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from wsram_ppl.captions.bleu import Bleu, corpus_bleu
from wsram_ppl.captions.decoding import Sentences, Speaker, beam_search, sample
from wsram_ppl.data.captions.batches import CaptionSource, Examples
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import DataSource, HeldOut, Speaks, check_finite
from wsram_ppl.primitives.handlers import evaluating


class Decoding(NamedTuple):
    """How sentences are decoded.

    Attributes:
        beam: hypotheses per picture; 0 samples sentences instead.
        paths: sampled paths of looks per hypothesis, averaged; 0 takes the most probable looks.
        longest: words per sentence, end mark included.
        length_penalty: see :func:`~wsram_ppl.captions.decoding.beam_search`.
    """

    beam: int = 3
    paths: int = 0
    longest: int = 20
    length_penalty: float = 0.7


def can_speak(model: nn.Module, source: DataSource) -> bool:
    """Whether a model writes captions and the source has pictures to describe."""
    return isinstance(model, Speaks) and isinstance(source, CaptionSource)


class Counts(NamedTuple):
    """How much is drawn for each datum of an evaluation.

    Attributes:
        samples: samples of the latent variables behind each prediction.
        particles: M of the bound.
    """

    samples: int
    particles: int


def default_counts(model: nn.Module, source: DataSource) -> Counts:
    """The default sizes of an evaluation: smaller for captions, where every word has a look."""
    return Counts(10, 10) if can_speak(model, source) else Counts(20, 100)


def describe(model: nn.Module, pictures: Examples, how: Decoding) -> Sentences:
    """Sentences about pictures.

    Raises:
        InputError: the model has no method ``speaker``.
    """
    if not isinstance(model, Speaks):
        raise InputError(f"{type(model).__name__} has no method 'speaker' to write captions with")
    with evaluating(model):
        speaker: Speaker = model.speaker(how.paths or None)
        if not how.beam:
            return sample(speaker, pictures.maps, longest=how.longest)
        return beam_search(
            speaker,
            pictures.maps,
            beam=how.beam,
            longest=how.longest,
            length_penalty=how.length_penalty,
        )


def score_held_out(
    model: nn.Module,
    source: DataSource,
    how: Decoding,
    *,
    split: HeldOut = "validation",
    examples: int | None = None,
    batch_size: int = 100,
) -> Bleu | None:
    """Corpus BLEU with a caption for each held-out picture (or of a fixed subset of ``examples``).

    None for a model that writes no captions, or a source without pictures.

    Raises:
        InputError: maps that are not finite.
    """
    if not (can_speak(model, source) and isinstance(source, CaptionSource)):
        return None
    said: list[str] = []
    references: list[list[str]] = []
    for number, part in enumerate(source.examples(batch_size, examples, split), start=1):
        check_finite(part.maps, f"the maps of held-out batch {number}")
        said += map(source.vocabulary.decode, describe(model, part, how).words.tolist())
        references += part.references
    return corpus_bleu(said, references, tokenisation="captions")
