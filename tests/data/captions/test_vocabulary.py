"""Words: normalised once and for all, counted, numbered, and back."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.data.captions.vocabulary import END, START, UNKNOWN, Vocabulary, normalize
from wsram_ppl.errors import InputError


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("A child in a pink dress .", "a child in a pink dress"),
        ("The man 's T-shirt , no. 7 !", "the man s tshirt no 7"),
        ('  "Two"\tdogs\r\n', "two dogs"),
        ("Un CAFÉ à Zürich…", "un café à zürich"),
        ("cafe\u0301", "café"),
        ("$5 + tax", "5 tax"),
        ("<end>", "end"),
        (". , !", ""),
    ],
)
def test_words_of_a_sentence(written: str, words: str) -> None:
    assert normalize(written) == words


@given(st.text())
def test_normalised_is_normalised(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert once == once.lower() == " ".join(once.split())
    assert all(c.isalnum() or c == " " or not c.isascii() for c in once)


words = st.text("abcde", min_size=1, max_size=3)
corpora = st.lists(st.lists(words, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=20)


@given(corpora, st.integers(1, 4))
def test_the_frequent_words_most_frequent_first(captions: list[str], minimum: int) -> None:
    counts = Counter(word for caption in captions for word in caption.split())
    kept = [word for word, count in counts.items() if count >= minimum]
    if not kept:
        with pytest.raises(InputError, match=f"no word occurs {minimum} times .* lower minimum_count"):
            Vocabulary.of_captions(captions, minimum)
        return
    vocabulary = Vocabulary.of_captions(captions, minimum)
    assert vocabulary.words[:3] == ("<start>", "<end>", "<unknown>")
    assert list(vocabulary.words[3:]) == sorted(kept, key=lambda word: (-counts[word], word))
    assert len(vocabulary) == 3 + len(kept)


@given(corpora)
def test_there_and_back(captions: list[str]) -> None:
    vocabulary = Vocabulary.of_captions(captions, 2 if len(captions) > 10 else 1)
    known = set(vocabulary.words)
    for caption in captions:
        numbers = vocabulary.encode(caption)
        assert (numbers[0], numbers[-1]) == (START, END) and END not in numbers[:-1]
        expected = [word if word in known else "<unknown>" for word in caption.split()]
        assert vocabulary.decode(numbers) == " ".join(expected)
        assert numbers.count(UNKNOWN) == expected.count("<unknown>")
        assert vocabulary.decode([*numbers, 3, 3, END]) == " ".join(expected)


@given(corpora)
def test_through_json(captions: list[str]) -> None:
    vocabulary = Vocabulary.of_captions(captions, 1)
    again = Vocabulary(json.loads(json.dumps(vocabulary.to_data()))["words"])
    assert again == vocabulary and hash(again) == hash(vocabulary)
    assert again != Vocabulary([*vocabulary.words[3:], "another"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "a"], "the vocabulary holds 'a' twice"),
        (["A"], "'A' cannot be a word of a vocabulary"),
        (["a b"], "'a b' cannot be a word"),
        ([""], "'' cannot be a word"),
    ],
)
def test_what_is_no_vocabulary(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Vocabulary(words)


def test_numbers_of_no_word() -> None:
    vocabulary = Vocabulary(["dog"])
    with pytest.raises(InputError, match="4 is not a word of this vocabulary of 4"):
        vocabulary.decode([START, 3, 4])
    with pytest.raises(InputError, match="-1 is not a word"):
        vocabulary.decode([-1])
