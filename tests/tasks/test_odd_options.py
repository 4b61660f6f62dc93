"""Unusual option values: numpy numbers, objects without a repr, patterns, extreme sizes."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mlm_infer import InputError, MaskFiller, TextError
from mlm_infer.results import FillResult
from mlm_infer.tasks import infill

LARGE = pytest.param(10**5000, id="huge")
"""A number that Python refuses to write out, and so does pytest."""


TEXT = "A [MASK] film."


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.array])
def test_whole_numbers_of_numpy(shipped: MaskFiller, kind: Any) -> None:
    """Accepted wherever a Python int is, with the same meaning."""
    assert shipped.fill(TEXT, top_k=kind(3)) == shipped.fill(TEXT, top_k=3)
    assert shipped(TEXT, top_k=kind(2)) == shipped(TEXT, top_k=2)
    assert shipped.fill_batch([TEXT], top_k=kind(3)) == shipped.fill_batch([TEXT], top_k=3)
    assert list(shipped.fill_stream([TEXT], top_k=kind(1))) == list(shipped.fill_stream([TEXT], top_k=1))
    assert shipped.infill(TEXT, top_k=kind(2), beam_size=kind(3)) == shipped.infill(TEXT, top_k=2, beam_size=3)
    assert MaskFiller(threads=kind(1)).fill(TEXT) == shipped.fill(TEXT)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_probabilities_of_numpy(shipped: MaskFiller, kind: Any) -> None:
    """The same as the Python float of that value."""
    for value in (0, 0.0625, 1):
        assert shipped.fill(TEXT, min_score=kind(value)) == shipped.fill(TEXT, min_score=float(kind(value)))


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float64(2), math.nan, np.inf, "5", None, LARGE, [5]])
def test_no_whole_numbers(shipped: MaskFiller, value: Any) -> None:
    """Bools, fractions, NaN, infinities, and integers that Python refuses to print."""
    message = "must be from 1 to"
    for ask in (
        lambda: shipped.fill(TEXT, top_k=value),
        lambda: shipped(TEXT, top_k=value),
        lambda: shipped.infill(TEXT, top_k=value),
        lambda: shipped.infill(TEXT, beam_size=value),
        lambda: MaskFiller(threads=value if value is not None else 0),
    ):
        with pytest.raises(InputError, match=message):
            ask()


def test_words_in_an_array_of_numpy(shipped: MaskFiller) -> None:
    """Accepted for each list of words of `fill`."""
    words = ["good", "the", "bad"]
    ask: Any = shipped.fill
    for name in ("targets", "allow", "deny"):
        assert ask(TEXT, **{name: np.array(words)}) == ask(TEXT, **{name: words})


@pytest.mark.parametrize("value", [False, np.False_, math.nan, np.float32("nan"), math.inf, -0.1, np.float32(2), LARGE])
def test_no_probabilities(shipped: MaskFiller, value: Any) -> None:
    """Bools, and values outside 0 to 1."""
    with pytest.raises(InputError, match="must be a probability from 0 to 1"):
        shipped.fill(TEXT, min_score=value)


class Unwritable:
    """An object whose `repr` fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [LARGE, Unwritable(), np.array(["error", "window"]), ["x" * 10_000], {"x" * 10_000}])
def test_values_that_cannot_be_shown(shipped: MaskFiller, value: Any) -> None:
    """As any argument: a short one-line InputError instead of the exception of `repr`."""
    for name in ("words_only", "pattern", "min_score", "renormalize", "long_text", "top_k"):
        with pytest.raises(InputError) as caught:
            shipped.fill(TEXT, **{name: value})
        assert len(str(caught.value)) < 200
    for ask in (
        lambda: shipped.fill(TEXT, targets=[value]),
        lambda: shipped.fill(TEXT, allow=[value]),
        lambda: shipped.fill(TEXT, deny=[value]),
        lambda: shipped(TEXT, targets=[value]),
        lambda: shipped.fill_batch([value]),
        lambda: shipped.rank(TEXT, ["a", value]),
        lambda: shipped.rank(TEXT, ["a"], others=value),
        lambda: shipped.rank(TEXT, ["a"], normalize=value),
        lambda: shipped.infill(TEXT, order=value),
        lambda: shipped.score(["a"], method=value),
        lambda: shipped.fill_stream([TEXT], on_error=value),
        lambda: MaskFiller(device=value),
        lambda: MaskFiller(precision=value),
        lambda: MaskFiller(backend=value),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is no regular expression"),
        ("(" * 20_000, "is no regular expression"),
        ("a{99999999999999999999}", "is no regular expression"),
        (b"a", "give a string"),
        ("a|" * 100_000, "pattern has 200,000 characters, and may have at most 100,000; allow takes a list"),
    ],
)
def test_patterns_that_are_none(shipped: MaskFiller, pattern: Any, message: str) -> None:
    """Invalid, of bytes, or so long that compiling takes minutes."""
    with pytest.raises(InputError, match=message) as caught:
        shipped.fill(TEXT, pattern=pattern)
    assert len(str(caught.value)) < 250


@pytest.mark.timeout(120)
def test_a_pattern_that_backtracks_meets_short_words(shipped: MaskFiller) -> None:
    """Words have at most 18 characters here, so a backtracking pattern ends quickly."""
    assert max(map(len, shipped.model.encoder.vocabulary.words)) == 18
    (mask,) = shipped.fill(TEXT, pattern="(a+)+$").masks
    assert {each.text for each in mask.predictions} <= {"a", "aa", "aaa"}
    with pytest.raises(InputError, match="no token of the vocabulary is left"):
        shipped.fill(TEXT, pattern="(.+)+!!")


@pytest.mark.parametrize(
    "ask",
    [
        lambda f: f.fill("[MASK] " * 100_000, long_text="window"),
        lambda f: f.fill("[MASK] " * 500, top_k=f.info.vocab_size),
        lambda f: f.fill("a" * 900_000 + " [MASK]", top_k=2_000),
        lambda f: f.rank("a" * 900_000 + " [MASK]", ["good"] * 2_000),
        lambda f: f.infill("a" * 900_000 + " [MASK]", top_k=2_000),
    ],
)
def test_an_answer_that_fits_into_no_memory(shipped: MaskFiller, ask: Any) -> None:
    """Every prediction contains the text: the error states the size before memory is allocated."""
    with pytest.raises(InputError, match=r"its answer would hold it [\d,]+ times, which is more than 1,000,000,000"):
        ask(shipped)


def test_what_cannot_be_many_is_not_refused(shipped: MaskFiller) -> None:
    """Targets, filters and a minimum score bound an answer, regardless of `top_k`."""
    text, size = "a" * 300_000 + " [MASK]", shipped.info.vocab_size
    for options in ({"targets": ["good"]}, {"allow": ["good", "bad"]}, {"min_score": 0.01}):
        result = shipped.fill(text, top_k=size, **options)
        assert isinstance(result, FillResult)
    assert shipped.infill(text, top_k=size, allow=["good"])[0].fillings == ("good",)
    stream = shipped.fill_stream(["[MASK] " * 500, TEXT], top_k=size, on_error="return")
    assert [type(each) for each in stream] == [TextError, FillResult]


@pytest.mark.parametrize("word", ["x" * 1_000_001, "x " * 600_000])
def test_candidates_of_a_megabyte(shipped: MaskFiller, word: str) -> None:
    """Rejected before they are tokenized."""
    for ask in (
        lambda: shipped.rank(TEXT, ["good", word]),
        lambda: shipped.fill(TEXT, targets=[word]),
        lambda: shipped(TEXT, targets=["good", word]),
    ):
        with pytest.raises(InputError, match=r"characters, and may have at most 1,000,000; shorten it"):
            ask()


def test_targets_of_many_tokens_are_named_in_one_line(shipped: MaskFiller) -> None:
    """The error lists the first tokens only."""
    with pytest.raises(InputError, match=r"not one token of this model, but 50000 \(x, x.*, \.\.\.\)") as caught:
        shipped.fill(TEXT, targets="x " * 50_000)
    assert len(str(caught.value)) < 250


def test_methods_without_windows_offer_none(shipped: MaskFiller) -> None:
    """Errors do not suggest an option that the method lacks."""
    text = "good " * 600 + "[MASK]"
    for ask in (lambda: shipped.infill(text), lambda: shipped.rank(text, ["a"]), lambda: shipped(text)):
        with pytest.raises(InputError, match="at most 512; shorten it: "):
            ask()
    with pytest.raises(InputError, match=r"shorten it, or take long_text='window' \(--long-text window\): "):
        shipped.fill(text)


_WIDE = """
from contextlib import nullcontext
from pathlib import Path
from mlm_infer import MaskFiller
from mlm_infer.runtime.predictor import watch
runs = 0
def stop(texts, tokens):
    global runs
    runs += 1
    if runs > 30:
        raise StopAsyncIteration
    return nullcontext()
filler = MaskFiller()
watch.set(stop)
try:
    filler.infill("[MASK] " * 200, beam_size=100, words_only=True)
except StopAsyncIteration:
    print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def test_a_wide_beam_of_permitted_words_in_little_memory() -> None:
    """The second step, of 100 texts with 199 masks and 20,000 words each, took 1.6 GB for the log-probabilities."""
    done = subprocess.run([sys.executable, "-c", _WIDE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_200_000


def test_a_wide_beam_is_the_same_in_parts(shipped: MaskFiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the log-probabilities of all texts of the beam had been held at once."""
    options: dict[str, Any] = {"beam_size": 20, "top_k": 20, "words_only": True}
    text = "The [MASK] was [MASK] and the [MASK] too."
    expected = shipped.infill(text, **options)
    monkeypatch.setattr(infill, "_LOGPROBS_AT_ONCE", 1)
    found = shipped.infill(text, **options)
    np.testing.assert_allclose([each.score for each in found], [each.score for each in expected], rtol=1e-3)
    assert found[0].tokens == expected[0].tokens
