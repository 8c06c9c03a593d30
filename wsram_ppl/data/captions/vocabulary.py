"""Words and their numbers."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

from wsram_ppl.errors import InputError

__all__ = ["END", "START", "TOKENISATION", "UNKNOWN", "Vocabulary", "normalize"]

#: Numbers of the three marks; words come after them.
START, END, UNKNOWN = range(3)
_MARKS = ("<start>", "<end>", "<unknown>")

#: What :func:`normalize` does, in words, to be shown beside a score.
TOKENISATION = "lower case, punctuation dropped, split at white space"

_ASCII_PUNCTUATION = dict.fromkeys(
    code for code in range(128) if not (chr(code).isalnum() or chr(code).isspace())
)


def normalize(text: str) -> str:
    """The words of a sentence in lower case, without punctuation, separated by single spaces.

    Keeps letters, digits and the marks that combine with them, in any script; all else except white
    space is deleted, so "T-shirt" becomes "tshirt". Normalising twice changes nothing.
    """
    if text.isascii():
        return " ".join(text.lower().translate(_ASCII_PUNCTUATION).split())
    kept = (c for c in unicodedata.normalize("NFKC", text).lower() if _is_kept(c))
    return " ".join(unicodedata.normalize("NFKC", "".join(kept)).lower().split())


def _is_kept(character: str) -> bool:
    return character.isalnum() or character.isspace() or unicodedata.category(character).startswith("M")


class Vocabulary:
    """The words that a model can produce, numbered from 3; 0, 1 and 2 are start, end and unknown.

    Args:
        words: normalised words (:func:`normalize`), each once.

    Raises:
        InputError: a word is repeated, empty, or not normalised.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = _MARKS + tuple(words)
        self._numbers = {word: number for number, word in enumerate(self._words)}
        if len(self._numbers) < len(self._words):
            twice = next(word for word, count in Counter(self._words).items() if count > 1)
            raise InputError(f"the vocabulary holds {twice!r} twice")
        for word in self._words[len(_MARKS) :]:
            if not word or normalize(word) != word or " " in word:
                raise InputError(f"{word!r} cannot be a word of a vocabulary: {TOKENISATION}")

    @classmethod
    def of_captions(cls, captions: Iterable[str], minimum_count: int = 5) -> Self:
        """The words that occur at least ``minimum_count`` times in the captions, most frequent first.

        Raises:
            InputError: no word is that frequent.
        """
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(normalize(caption).split())
        frequent = [(-count, word) for word, count in counts.items() if count >= minimum_count]
        if not frequent:
            raise InputError(
                f"no word occurs {minimum_count} times in the training captions; lower minimum_count"
            )
        return cls(word for _, word in sorted(frequent))

    def to_data(self) -> dict[str, Any]:
        """Plain data, for JSON: the words without the marks, in the order of their numbers."""
        return {"words": list(self._words[len(_MARKS) :])}

    def __len__(self) -> int:
        return len(self._words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)

    @property
    def words(self) -> tuple[str, ...]:
        """All words by number, the three marks included."""
        return self._words

    def encode(self, caption: str) -> list[int]:
        """The numbers of a caption's words, between start and end; rare words are unknown."""
        numbers = [self._numbers.get(word, UNKNOWN) for word in normalize(caption).split()]
        return [START, *numbers, END]

    def decode(self, numbers: Sequence[int]) -> str:
        """The sentence up to the first end mark, without start marks; unknown is ``<unknown>``.

        Raises:
            InputError: a number is outside the vocabulary.
        """
        said = []
        for number in numbers:
            if number == END:
                break
            if not 0 <= number < len(self._words):
                raise InputError(f"{number} is not a word of this vocabulary of {len(self._words):,}")
            if number != START:
                # One object per word, whatever the number of sentences.
                said.append(sys.intern(self._words[number]))
        return " ".join(said)
