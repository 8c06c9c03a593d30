"""Captions of held-out pictures, and their BLEU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from wsram_ppl.captions.bleu import Bleu, corpus_bleu
from wsram_ppl.captions.decoding import Sentences, Speaker, beam_search, sample
from wsram_ppl.data import DataSource
from wsram_ppl.data.captions.batches import CaptionSource, Examples, HeldOut
from wsram_ppl.errors import InputError
from wsram_ppl.training.evaluation import evaluating


class Decoding(NamedTuple):
    """How sentences are decoded.

    Attributes:
        beam: hypotheses per picture; 0: sentences are sampled.
        paths: sampled paths of looks per hypothesis, whose mean counts; 0: the most probable looks.
        longest: words per sentence, end mark included.
        length_penalty: see :func:`~wsram_ppl.captions.decoding.beam_search`.
    """

    beam: int = 3
    paths: int = 0
    longest: int = 20
    length_penalty: float = 0.7


def can_speak(model: nn.Module, source: DataSource) -> bool:
    """Whether a model writes captions (it has a method ``speaker``) and the source has pictures."""
    return hasattr(model, "speaker") and isinstance(source, CaptionSource)


def describe(model: nn.Module, pictures: Examples, how: Decoding) -> Sentences:
    """Sentences about pictures.

    Raises:
        InputError: the model has no method ``speaker``.
    """
    speak: Any = getattr(model, "speaker", None)
    if speak is None:
        raise InputError(f"{type(model).__name__} has no method 'speaker' to write captions with")
    with evaluating(model):
        speaker: Speaker = speak(how.paths or None)
        if not how.beam:
            return sample(speaker, pictures.maps, longest=how.longest)
        return beam_search(
            speaker,
            pictures.maps,
            beam=how.beam,
            longest=how.longest,
            length_penalty=how.length_penalty,
        )


class Caption(NamedTuple):
    """What was said about a picture, beside what people said."""

    name: str
    text: str
    references: list[str]


def captions(
    model: nn.Module,
    source: CaptionSource,
    how: Decoding,
    *,
    split: HeldOut = "dev",
    examples: int | None = None,
    batch_size: int = 100,
) -> Iterator[Caption]:
    """A caption of each held-out picture (or of a fixed subset of ``examples``)."""
    for part in source.examples(batch_size, examples, split):
        sentences = describe(model, part, how)
        for name, words, references in zip(
            part.names, sentences.words.tolist(), part.references, strict=True
        ):
            yield Caption(name, source.vocabulary.decode(words), references)


def score(found: list[Caption]) -> Bleu:
    """Corpus BLEU of captions (both they and their references are normalised already)."""
    return corpus_bleu(
        [caption.text for caption in found],
        [caption.references for caption in found],
        tokenisation="captions",
    )


def split_of(source: DataSource, split: str | None) -> dict[str, Any]:
    """The keyword that chooses a held-out split of a source; nothing for the default.

    Raises:
        InputError: the source has no splits to choose from.
    """
    if split is None:
        return {}
    if not isinstance(source, CaptionSource):
        raise InputError(f"{type(source).__name__} has one held-out set: leave out --split")
    return {"split": split}
