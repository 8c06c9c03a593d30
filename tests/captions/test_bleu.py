"""Corpus BLEU: published numbers, the definition, and files line by line."""

from __future__ import annotations

import builtins
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import cli
from tests.data.captions.copies import SHARED
from wsram_ppl.captions.bleu import corpus_bleu, score_files
from wsram_ppl.errors import InputError

PUBLISHED = (57.9400, 40.4391, 27.8536, 19.0829)


def published() -> list[dict[str, Any]]:
    path = SHARED / "bleu" / "coco_fakecap_ptb_tokens.json"
    if not path.is_file():
        pytest.skip(f"no published captions in {path}")
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_the_published_numbers() -> None:
    rows = published()
    result = corpus_bleu([row["test"] for row in rows], [row["refs"] for row in rows])
    assert result.scores == pytest.approx(PUBLISHED, abs=5e-5)
    assert result.brevity_penalty == 1 and result.unpenalised == pytest.approx(result.scores)
    assert (result.hypothesis_words, result.sentences) == (9893, 1000)


def test_the_published_numbers_from_files(tmp_path: Path) -> None:
    rows = published()
    hypotheses = tmp_path / "hypotheses.txt"
    hypotheses.write_text("".join(row["test"] + "\n" for row in rows))
    references = []
    for k in range(max(len(row["refs"]) for row in rows)):
        references.append(tmp_path / f"references{k}.txt")
        lines = [row["refs"][k] if k < len(row["refs"]) else "" for row in rows]
        references[-1].write_text("".join(line + "\n" for line in lines))
    result = score(hypotheses, *references)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[0] == "BLEU-1..4 57.94 / 40.44 / 27.85 / 19.08"
    assert "tokenisation split at white space" in lines
    data = json.loads(score(hypotheses, *references, "--json").output)
    assert [data[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(PUBLISHED, abs=5e-5)


# ---------------------------------------------------------------- the definition


def bleu_by_definition(
    hypotheses: list[list[str]], references: list[list[list[str]]], order: int
) -> tuple[float, float]:
    """BLEU-n with and without brevity penalty, straight from Papineni et al. (2002)."""
    logs = []
    for n in range(1, order + 1):
        matched = total = 0
        for said, own in zip(hypotheses, references, strict=True):
            grams = Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
            allowed: Counter[tuple[str, ...]] = Counter()
            for reference in own:
                spans = range(len(reference) - n + 1)
                allowed |= Counter(tuple(reference[i : i + n]) for i in spans)
            matched += (grams & allowed).total()
            total += grams.total()
        if matched == 0:
            return 0.0, 0.0
        logs.append(math.log(matched / total))
    length = sum(map(len, hypotheses))
    nearest = sum(
        min((abs(len(r) - len(said)), len(r)) for r in own)[1]
        for said, own in zip(hypotheses, references, strict=True)
    )
    plain = 100 * math.exp(sum(logs) / order)
    return plain * min(1.0, math.exp(1 - nearest / length)), plain


sentence = st.lists(st.sampled_from("abc"), max_size=7)
corpus = st.lists(
    st.tuples(sentence, st.lists(sentence.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=5
)


@settings(deadline=None)
@given(corpus)
def test_it_is_bleu(rows: list[tuple[list[str], list[list[str]]]]) -> None:
    said = [hypothesis for hypothesis, _ in rows]
    references = [own for _, own in rows]
    result = corpus_bleu(
        [" ".join(words) for words in said], [[" ".join(r) for r in own] for own in references]
    )
    for order in range(1, 5):
        expected = bleu_by_definition(said, references, order)
        found = result.scores[order - 1], result.unpenalised[order - 1]
        assert found == pytest.approx(expected, abs=1e-9)


def test_the_brevity_penalty_is_shown_apart() -> None:
    result = corpus_bleu(["a dog runs"], [["a dog runs over the grass"]])
    assert result.unpenalised[:3] == pytest.approx((100, 100, 100))
    assert result.brevity_penalty == pytest.approx(math.exp(-1))
    assert result.scores[0] == pytest.approx(100 * math.exp(-1))
    assert any("0.3679 (3 words, references 6)" in line for line in result.lines())


def test_tokenisation_moves_the_number_and_is_named() -> None:
    said, references = ["A dog runs, fast."], [["a dog runs fast"]]
    plain = corpus_bleu(said, references)
    normalised = corpus_bleu(said, references, tokenisation="captions")
    assert (plain.scores[0], normalised.scores[0]) == pytest.approx((25, 100))
    assert plain.tokenisation == "split at white space"
    assert normalised.tokenisation == "lower case, punctuation dropped, split at white space"
    assert "sacrebleu" in plain.scorer and "smooth_method none" in plain.scorer
    assert json.loads(json.dumps(normalised.to_data()))["bleu1"] == pytest.approx(100)


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "there are no hypotheses to score"),
        (["a"], [], "1 hypotheses cannot be scored against the references of 0"),
        (["a", "b"], [["a"], []], "hypothesis 2 has no reference with a word"),
        (["a", "b"], [["a"], ["", " "]], "hypothesis 2 has no reference with a word"),
    ],
)
def test_what_cannot_be_scored(hypotheses: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        corpus_bleu(hypotheses, references)


def test_an_unknown_tokenisation() -> None:
    with pytest.raises(InputError, match="unknown tokenisation '13a'; there are none, captions"):
        corpus_bleu(["a"], [["a"]], tokenisation="13a")


def test_without_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"sacrebleu is needed .*pip install 'wsram_ppl\[captions\]'"):
        corpus_bleu(["a"], [["a"]])


# ---------------------------------------------------------------- files


def score(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["score", *map(str, arguments)])


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_lines_are_lines(tmp_path: Path) -> None:
    """Windows line ends, a missing last one, a byte order mark, and separators that end no line."""
    said = file(tmp_path, "h", "\ufeffa dog\r\na\u2028cat\x0b\r\nno bird")
    own = file(tmp_path, "r", "a dog\na cat\nno bird\n")
    result = score_files(said, [own])
    assert (result.sentences, result.scores[0]) == (3, pytest.approx(100))


def test_an_empty_line_is_a_missing_reference_or_an_empty_sentence(tmp_path: Path) -> None:
    said = file(tmp_path, "h", "a dog\n\n")
    first, second = file(tmp_path, "r0", "a cat\na bird\n"), file(tmp_path, "r1", "a dog\n \n")
    result = score_files(said, [first, second])
    assert (result.hypothesis_words, result.reference_words) == (2, 4)
    assert result.precisions[0] == pytest.approx(100)


def test_a_reference_of_punctuation_alone_is_none_where_punctuation_is_dropped(tmp_path: Path) -> None:
    """Its length of 0 would be the closest to a short sentence, and take away the brevity penalty."""
    said = file(tmp_path, "h", "dog\n")
    first, second = file(tmp_path, "r0", "A dog runs.\n"), file(tmp_path, "r1", "...\n")
    result = score_files(said, [first, second], tokenisation="captions")
    assert (result.reference_words, result.brevity_penalty) == (3, pytest.approx(math.exp(-2)))
    assert corpus_bleu(["dog"], [["A dog runs.", "..."]], tokenisation="captions") == result
    assert score_files(said, [first, second]).reference_words == 1
    with pytest.raises(InputError, match="line 1 has no word in any reference file"):
        score_files(said, [second], tokenisation="captions")
    with pytest.raises(InputError, match="hypothesis 1 has no reference with a word"):
        corpus_bleu(["dog"], [["..."]], tokenisation="captions")


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ("a\nb\n", "a\n", "r has 1 lines, but {h} has 2: line n of a reference file should be"),
        ("a\nb\n", "a\n\n", "line 2 has no word in any reference file: nothing to score against"),
        ("", "", "{h} is empty"),
        ("a\n", b"\xff\n", "cannot read '{r}': UnicodeDecodeError"),
        (b"\xff\n", "a\n", "cannot read '{h}': UnicodeDecodeError"),
        (None, "a\n", "there is no file '{h}'"),
        ("a\n", None, "there is no file '{r}'"),
    ],
)
def test_wrong_files(
    tmp_path: Path, hypotheses: str | bytes | None, references: str | bytes | None, message: str
) -> None:
    h, r = tmp_path / "h", tmp_path / "r"
    for path, text in (h, hypotheses), (r, references):
        if text is not None:
            file(tmp_path, path.name, text)
    result = score(h, r)
    assert result.exit_code == 2
    assert message.format(h=h, r=r) in result.output and len(result.output.splitlines()) == 1


def test_files_that_cannot_be_read_and_no_references(tmp_path: Path) -> None:
    said = file(tmp_path, "h", "a\n")
    assert f"cannot read '{tmp_path}': Is a directory" in score(said, tmp_path).output
    result = score(said)
    assert result.exit_code == 2 and "Missing argument 'REFERENCES...'" in result.output
    with pytest.raises(InputError, match="at least one file of references"):
        score_files(said, [])


@settings(deadline=None, max_examples=40)
@given(content=st.tuples(st.binary(max_size=60), st.binary(max_size=60)))
def test_any_files_give_a_score_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: tuple[bytes, bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    said, own = (file(folder, f"any{n}", part) for n, part in enumerate(content))
    try:
        result = score_files(said, [own])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= value <= 100 + 1e-9 for value in result.scores)
        assert builtins.max(result.scores) <= builtins.max(result.unpenalised) + 1e-9
