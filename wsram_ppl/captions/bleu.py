"""Corpus BLEU, by sacrebleu, with everything that affects the number recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsram_ppl.data.captions.vocabulary import TOKENISATION, normalize
from wsram_ppl.errors import InputError, one_line
from wsram_ppl.files import read_text

__all__ = ["TOKENISATIONS", "Bleu", "corpus_bleu", "score_files"]

#: How text is split into words: "none" leaves it unchanged, "captions" normalises it first.
TOKENISATIONS = {"none": "split at white space", "captions": TOKENISATION}

_LARGEST_ORDER = 4


@dataclass(frozen=True)
class Bleu:
    """BLEU-1 to BLEU-4 of a corpus (Papineni et al., 2002), in percent.

    BLEU-n is the brevity penalty times the geometric mean of the corpus's clipped precisions of 1-grams
    to n-grams, without smoothing. The reference length of a sentence is that of the reference closest
    in length; of two equally close ones, the shorter.

    Attributes:
        scores: BLEU-1..4, 0 to 100.
        unpenalised: the same without the brevity penalty.
        precisions: the n-gram precisions, n = 1..4, 0 to 100.
        brevity_penalty: 0 to 1; 1 if the hypotheses are not shorter than the references.
        hypothesis_words, reference_words: total lengths.
        sentences: number of hypotheses.
        tokenisation: how text was split into words.
        scorer: the program that computed the scores, with its version and settings.
    """

    scores: tuple[float, ...]
    unpenalised: tuple[float, ...]
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_words: int
    reference_words: int
    sentences: int
    tokenisation: str
    scorer: str

    def to_data(self) -> dict[str, Any]:
        """Plain data, for JSON, with a key for each BLEU: bleu1, ..., bleu1_unpenalised, ..."""
        data: dict[str, Any] = {}
        for suffix, values in ("", self.scores), ("_unpenalised", self.unpenalised):
            data |= {f"bleu{n}{suffix}": value for n, value in enumerate(values, start=1)}
        data["precisions"] = list(self.precisions)
        for key in ("brevity_penalty", "hypothesis_words", "reference_words", "sentences"):
            data[key] = getattr(self, key)
        return data | {"tokenisation": self.tokenisation, "scorer": self.scorer}

    def lines(self) -> list[str]:
        """The result in a few lines of text."""
        rows = [
            f"{name:<24} " + " / ".join(f"{value:.2f}" for value in values)
            for name, values in (
                ("BLEU-1..4", self.scores),
                ("without brevity penalty", self.unpenalised),
            )
        ]
        lengths = f"{self.hypothesis_words:,} words, references {self.reference_words:,}"
        return [
            *rows,
            f"{'brevity penalty':<24} {self.brevity_penalty:.4f} ({lengths})",
            f"{'sentences':<24} {self.sentences:,}",
            f"{'tokenisation':<24} {self.tokenisation}",
            f"{'scorer':<24} {self.scorer}",
        ]


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenisation: str = "none"
) -> Bleu:
    """Scores sentences against their references.

    Args:
        hypotheses: one sentence each; an empty one is a sentence without words.
        references: one or more sentences for each hypothesis; their number may differ. One without a
            word is no reference.
        tokenisation: a key of ``TOKENISATIONS``, for hypotheses and references alike.

    Raises:
        InputError: no hypotheses, different numbers of hypotheses and references, one without reference,
            an unknown tokenisation, or sacrebleu is not installed.
    """
    words = _words_of(tokenisation)
    if len(hypotheses) != len(references):
        raise InputError(
            f"{len(hypotheses):,} hypotheses cannot be scored against the references of "
            f"{len(references):,}"
        )
    if not hypotheses:
        raise InputError("there are no hypotheses to score")
    spoken = [[text for text in map(words, own) if text.strip()] for own in references]
    if [] in spoken:
        raise InputError(f"hypothesis {spoken.index([]) + 1} has no reference with a word")
    try:
        import sacrebleu
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError(
            f"sacrebleu is needed ({one_line(error)}): pip install 'wsram_ppl[captions]'"
        ) from error

    said = [words(text) for text in hypotheses]
    # sacrebleu takes streams: the first reference of every sentence, the second of every sentence, ...
    streams: Any = [
        [own[k] if k < len(own) else None for own in spoken] for k in range(max(map(len, spoken)))
    ]
    found = [
        # force: no warning about text that looks tokenised; here it should be.
        BLEU(tokenize="none", smooth_method="none", max_ngram_order=n, force=True).corpus_score(
            said, streams
        )
        for n in range(1, _LARGEST_ORDER + 1)
    ]
    longest = found[-1]
    precisions = tuple(float(p) for p in longest.precisions)
    return Bleu(
        scores=tuple(float(result.score) for result in found),
        unpenalised=tuple(_geometric_mean(precisions[:n]) for n in range(1, _LARGEST_ORDER + 1)),
        precisions=precisions,
        brevity_penalty=float(longest.bp),
        hypothesis_words=int(longest.sys_len),
        reference_words=int(longest.ref_len),
        sentences=len(said),
        tokenisation=TOKENISATIONS[tokenisation],
        scorer=(
            f"sacrebleu {sacrebleu.__version__}, tokenize none, smooth_method none, max_ngram_order n"
        ),
    )


def score_files(hypotheses: Path, references: Sequence[Path], *, tokenisation: str = "none") -> Bleu:
    """Scores a text file, line by line, against one or more reference files.

    A line without a word in a reference file is a missing reference, so that sentences may have
    different numbers of them; among the hypotheses it is a sentence without words.

    Raises:
        InputError: no reference file; a file cannot be read, is not UTF-8 or has a different number of
            lines from the hypotheses; a line has no reference at all; an unknown tokenisation.
    """
    words = _words_of(tokenisation)
    if not references:
        raise InputError("give at least one file of references after the hypotheses")
    said = _read_lines(hypotheses)
    columns = []
    for path in references:
        lines = _read_lines(path)
        if len(lines) != len(said):
            raise InputError(
                f"{path} has {len(lines):,} lines, but {hypotheses} has {len(said):,}: "
                "line n of a reference file should be about the same picture as line n of the hypotheses"
            )
        columns.append(lines)
    if not said:
        raise InputError(f"{hypotheses} is empty")
    rows = [[line for line in row if words(line).strip()] for row in zip(*columns, strict=True)]
    if [] in rows:
        raise InputError(
            f"line {rows.index([]) + 1} has no word in any reference file: nothing to score against"
        )
    return corpus_bleu(said, rows, tokenisation=tokenisation)


def _words_of(tokenisation: str) -> Callable[[str], str]:
    if tokenisation not in TOKENISATIONS:
        known = ", ".join(TOKENISATIONS)
        raise InputError(f"unknown tokenisation {tokenisation!r}; there are {known}")
    return normalize if tokenisation == "captions" else str


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file; only line feeds end a line (a carriage return before it is dropped)."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _geometric_mean(percents: Sequence[float]) -> float:
    if not all(percents):
        return 0.0
    return math.exp(sum(math.log(p) for p in percents) / len(percents))
