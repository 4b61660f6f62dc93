"""rank, infill, score, filters, windows and streams, compared with plain PyTorch on a real and a byte-level model."""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_infer import FillResult, InputError, MaskFiller, TextError
from mlm_infer.shared.samples import movie_reviews
from tests.helpers.reference import Reference


@pytest.fixture(scope="module")
def real(bundles: dict[str, Path]) -> MaskFiller:
    """The real model in fp32."""
    return MaskFiller(bundles["base"], precision="fp32")


def sentences(count: int, longest: int = 12) -> list[str]:
    """Unseen sentences, truncated."""
    return [" ".join(text.split()[:longest]) for text in movie_reviews("validation")[:count]]


@pytest.mark.parametrize("method", ["pll", "pll_word_l2r"])
def test_score_is_the_references(pair: tuple[MaskFiller, Reference], method: Any) -> None:
    """The log-probability and the character span of every token, and the sum."""
    filler, reference = pair
    texts = [*sentences(8), "Unbelievably, underwhelmingly unwatchable!", "a"]
    for result, text in zip(filler.score(texts, method=method), texts, strict=True):
        expected = reference.pll(text, within_words=method == "pll_word_l2r")
        np.testing.assert_allclose([each.logprob for each in result.tokens], expected, atol=2e-4)
        assert result.logprob == pytest.approx(sum(expected), abs=1e-3)
        assert result.pseudo_perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-3)
        for token in result.tokens:
            assert text[slice(*token.span)].strip().lower() in token.token.lower() or not token.token.isascii()


def test_word_l2r_is_below_pll_where_words_have_pieces(real: MaskFiller) -> None:
    """Without the end of its word, a piece is less probable, in sum over many texts."""
    plain, within = (real.score(sentences(30), method=each) for each in ("pll", "pll_word_l2r"))
    assert sum(r.logprob for r in within) < sum(r.logprob for r in plain)


def test_score_windows_a_long_text(pair: tuple[MaskFiller, Reference]) -> None:
    """Each token of a long text is predicted from the largest window that the model accepts."""
    filler, reference = pair
    text = " ".join(movie_reviews("validation")[:40])
    with pytest.raises(InputError, match=r"tokens, this model takes at most \d+.*window"):
        filler.score([text])
    (result,) = filler.score([text], long_text="window")
    ids = reference.encode(text)
    longest = filler.info.max_length
    assert len(result.tokens) == len(ids) - 2
    for place in (1, 2, longest // 2, len(ids) // 2, len(ids) - 3, len(ids) - 2):
        # Two of the room are for the special tokens at the ends.
        start = min(max(place - (longest - 2) // 2, 1), len(ids) - 1 - (longest - 2))
        window = [ids[0], *ids[start : start + longest - 2], ids[-1]]
        window[place - start + 1] = reference.mask
        expected = float(reference.logprobs(window, place - start + 1)[ids[place]])
        assert result.tokens[place - 1].logprob == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("others", ["left_to_right", "masked", "visible"])
def test_rank_is_the_references(pair: tuple[MaskFiller, Reference], others: Any) -> None:
    """Candidates of one to six tokens, including duplicates."""
    filler, reference = pair
    text = f"It is a {filler.info.mask_token} of the year."
    words = ["film", "movie", "motion picture", "unwatchable mess", "motion pictures", "film", "x y z"]
    result = filler.rank(text, words, others=others)
    (ranked,) = result.masks
    assert sorted(each.text for each in ranked) == sorted(words)
    for each in ranked:
        spelled = each.text if reference.tokenizer.mask_token == "[MASK]" else f" {each.text}"
        ids = reference.tokenizer(spelled, add_special_tokens=False)["input_ids"]
        assert list(each.tokens) == reference.tokenizer.convert_ids_to_tokens(ids)
        np.testing.assert_allclose(each.logprobs, reference.candidate(text, ids, others), atol=2e-4)
        assert each.sequence == f"It is a {each.text} of the year."
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)
    normalized = filler.rank(text, words, others=others, normalize=True).masks[0]
    for each in normalized:
        assert each.score == pytest.approx(sum(each.logprobs) / len(each.logprobs))


def test_rank_of_one_token_is_fill(real: MaskFiller) -> None:
    """For single tokens, the log-probability equals that of a target."""
    text = "The acting was [MASK]."
    words = ["good", "bad", "wonderful"]
    filled = {each.text: each.logprob for each in real.fill(text, targets=words).masks[0].predictions}
    for each in real.rank(text, words).masks[0]:
        assert each.logprob == pytest.approx(filled[each.text], abs=1e-5)


def test_rank_for_each_mask(real: MaskFiller) -> None:
    """One list per mask; the other masks stay masked."""
    text = "The [MASK] was [MASK]."
    first, second = real.rank(text, [["plot", "acting"], ["good", "awful", "far too long"]]).masks
    assert {each.sequence for each in first} == {"The plot was [MASK].", "The acting was [MASK]."}
    assert len(second) == 3


def test_thousands_of_candidates_share_their_questions(real: MaskFiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand single-token candidates are one query."""
    from mlm_infer.runtime import predictor as predict

    asked: list[int] = []
    original = predict.Predictor.candidates

    def counted(self: Any, queries: Any, candidates: Any) -> Any:
        asked.append(len(queries))
        return original(self, queries, candidates)

    monkeypatch.setattr(predict.Predictor, "candidates", counted)
    words = [word for word in real.model.encoder.vocabulary.words[2000:9000] if word.isalpha() and word.isascii()][
        :2000
    ]
    ranked = real.rank("A [MASK] film.", words).masks[0]
    assert len(ranked) == 2000
    several = [each for each in ranked if len(each.tokens) > 1]
    assert sum(asked) <= 1 + 2 * len(several)


@pytest.mark.parametrize("order", ["confidence", "left_to_right"])
def test_a_beam_of_one_is_greedy(pair: tuple[MaskFiller, Reference], order: Any) -> None:
    """The tokens and log-probability of greedy filling."""
    filler, reference = pair
    mask = filler.info.mask_token
    for text in (f"The {mask} was {mask} and {mask}.", f"{mask} {mask} film", f"I liked the {mask} {mask} of it."):
        (found,) = filler.infill(text, beam_size=1, order=order)
        ids, total = reference.greedy(text, confidence=order == "confidence")
        expected = [ids[place] for place, token in enumerate(reference.encode(text)) if token == reference.mask]
        tokens = [token for group in found.tokens for token in group]
        assert tokens == reference.tokenizer.convert_ids_to_tokens(expected)
        assert found.logprob == pytest.approx(total, abs=2e-4)
        assert found.score == pytest.approx(total / len(expected), abs=2e-4)


def test_a_beam_finds_the_best_pair(pair: tuple[MaskFiller, Reference]) -> None:
    """With two masks, left to right, the search is exhaustive for the first tokens in the beam."""
    filler, reference = pair
    mask = filler.info.mask_token
    text = f"One of the {mask} {mask} of the year."
    found = filler.infill(text, beam_size=10, order="left_to_right")
    assert found[0].logprob == pytest.approx(reference.best_pair(text, 10), abs=2e-4)
    assert len({each.tokens for each in found}) == len(found) == 5


def test_infill_of_one_mask_is_fill(pair: tuple[MaskFiller, Reference]) -> None:
    """The words, log-probabilities and sequences of `fill`, in the same order."""
    filler, _ = pair
    text = f"This is a great {filler.info.mask_token}."
    filled = filler.fill(text, top_k=7).masks[0].predictions
    found = filler.infill(text, top_k=7, beam_size=1)
    assert [(each.sequence, each.tokens) for each in found] == [(e.sequence, ((e.token,),)) for e in filled]
    np.testing.assert_allclose([each.logprob for each in found], [each.logprob for each in filled], atol=1e-5)


def test_spans_of_unknown_length(real: MaskFiller) -> None:
    """Every length is searched; the best mean log-probability per token comes first."""
    text = "It is [MASK:1-3] of the [MASK]."
    found = real.infill(text, top_k=15)
    assert {len(each.tokens[0]) for each in found} == {1, 2, 3}
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    by_length = [real.infill(text.replace("1-3", str(length)), top_k=5) for length in (1, 2, 3)]
    best = max((each for each in itertools.chain(*by_length)), key=lambda each: each.score)
    assert found[0] == best
    for each in found:
        assert each.sequence == f"It is {each.fillings[0]} of the {each.fillings[1]}."


def test_infill_whole_words(real: MaskFiller) -> None:
    """No punctuation, no parts of words, no denied words."""
    for each in real.infill("It was [MASK] [MASK] [MASK].", words_only=True, deny=["the"]):
        for token in itertools.chain(*each.tokens):
            assert token.isalpha()
            assert token != "the"


def test_filters(real: MaskFiller) -> None:
    """Every filter gives the full list of predictions, filtered afterwards."""
    text = "The film is [MASK] good."
    everything = real.fill(text, top_k=real.info.vocab_size).masks[0].predictions

    def check(keep: Any, **options: Any) -> None:
        expected = [each for each in everything if keep(each)][:8]
        found = real.fill(text, top_k=8, **options).masks[0].predictions
        assert [each.token_id for each in found] == [each.token_id for each in expected]
        np.testing.assert_allclose([each.logprob for each in found], [each.logprob for each in expected], atol=1e-5)

    check(lambda each: each.text in {"very", "so", "never"}, allow=["very", "so", "never", "no such word"])
    check(lambda each: each.text not in {"very", "so"}, deny=["very", "so"])
    check(lambda each: each.starts_word and each.text.replace("-", "").isalpha(), words_only=True)
    check(lambda each: re.fullmatch("[a-m]+ly", each.text), pattern="[a-m]+ly")
    check(lambda each: re.fullmatch(".*y", each.text) and each.text != "very", pattern=re.compile(".*y"), deny={"very"})
    least = everything[3].score
    found = real.fill(text, top_k=8, min_score=least * 0.999).masks[0].predictions
    assert [each.token_id for each in found] == [each.token_id for each in everything[:4]]


def test_renormalize(real: MaskFiller) -> None:
    """The scores of the targets sum to one and keep their ratios."""
    text, words = "The film is [MASK].", ["good", "bad", "long"]
    plain = real.fill(text, targets=words).masks[0].predictions
    over = real.fill(text, targets=words, renormalize=True).masks[0].predictions
    assert sum(each.score for each in over) == pytest.approx(1, abs=1e-5)
    assert over[0].score / over[1].score == pytest.approx(plain[0].score / plain[1].score, rel=1e-4)


def test_words_at_the_start_of_a_text(bundles: dict[str, Path]) -> None:
    """A byte-level vocabulary spells the first word without a marker; elsewhere that token is no word."""
    filler = MaskFiller(bundles["roberta"], precision="fp32")
    first = filler.fill("<mask> film is good.", top_k=2000, words_only=True).masks[0].predictions
    later = filler.fill("This <mask> is good.", top_k=2000, words_only=True).masks[0].predictions
    assert any(not each.starts_word for each in first)
    assert all(each.starts_word for each in later)


def test_window_around_a_mask(real: MaskFiller) -> None:
    """The reported window contains the mask and gives the same answer alone, wherever the mask is."""
    words = " ".join(movie_reviews("validation")[:60]).split()
    for place in (0, 300, len(words) - 1):
        text = " ".join([*words[:place], "<mask>", *words[place + 1 :]])
        with pytest.raises(InputError, match="at most 512"):
            real.fill(text)
        (mask,) = real.fill(text, long_text="window").masks
        assert mask.window is not None
        assert text[slice(*mask.span)] == "<mask>"
        part = text[slice(*mask.window)]
        assert "<mask>" in part
        assert real.count_tokens(part) in range(505, 513)
        (alone,) = real.fill(part).masks
        np.testing.assert_allclose(
            [each.score for each in mask.predictions], [each.score for each in alone.predictions], atol=1e-5
        )
    two = " ".join(["<mask>", *words[1:-1], "<mask>"])
    first, last = real.fill(two, long_text="window").masks
    assert first.window != last.window
    assert last.position == real.count_tokens(two) - 2


def test_stream_is_the_batch_in_order(real: MaskFiller) -> None:
    """More texts than a chunk, from a generator, equal fill_batch; read-ahead is bounded."""
    texts = [f"{text} [MASK]" for text in sentences(700)]
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for text in itertools.cycle(texts):
            taken += 1
            yield text

    stream = real.fill_stream(endless(), top_k=2)
    found = list(itertools.islice(stream, len(texts)))
    assert taken <= len(texts) + 1024
    for streamed, batched in zip(found, real.fill_batch(texts, top_k=2), strict=True):
        assert isinstance(streamed, FillResult)
        assert streamed.text == batched.text
        assert [p.token_id for p in streamed.masks[0].predictions] == [p.token_id for p in batched.masks[0].predictions]


def test_stream_and_a_wrong_text(real: MaskFiller) -> None:
    """The error has the text's number; it is raised after earlier results, or returned in place."""
    texts = ["A [MASK] film.", "no mask", "[MASK] is good.", 3]
    stream = real.fill_stream(iter(texts))  # type: ignore[arg-type]
    assert isinstance(next(stream), FillResult)
    with pytest.raises(InputError, match="text 1 has no mask"):
        next(stream)
    found = list(real.fill_stream(iter(texts), on_error="return"))  # type: ignore[call-overload]
    assert [type(each) for each in found] == [FillResult, TextError, FillResult, TextError]
    assert "text 3 is a int" in str(found[3])


def test_stream_whose_iterator_raises(real: MaskFiller) -> None:
    """Texts before the exception are answered, then it is raised."""

    def broken() -> Iterator[str]:
        yield "A [MASK] film."
        raise OSError("the disk is gone")

    stream = real.fill_stream(broken())
    assert isinstance(next(stream), FillResult)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.fill("A [MASK].", allow="good"), "allow is 'good'; give a list"),
        (lambda f: f.fill("A [MASK].", deny=3), "deny is 3"),
        (lambda f: f.fill("A [MASK].", pattern="("), "no regular expression"),
        (lambda f: f.fill("A [MASK].", pattern=3), "pattern is 3; give a string"),
        (lambda f: f.fill("A [MASK].", words_only="yes"), "words_only is 'yes'"),
        (lambda f: f.fill("A [MASK].", min_score=1.5), "min_score is 1.5"),
        (lambda f: f.fill("A [MASK].", renormalize=1), "renormalize is 1"),
        (lambda f: f.fill("A [MASK].", long_text="cut"), "long_text is 'cut'"),
        (lambda f: f.fill("A [MASK].", allow=["zzzzq"]), "no token of the vocabulary is left"),
        (lambda f: f.fill("A [MASK].", targets=3), "targets is a int"),
        (lambda f: f.fill_stream("A [MASK]."), "give an iterable"),
        (lambda f: f.fill_stream(["A [MASK]."], on_error="skip"), "on_error is 'skip'"),
        (lambda f: f.rank("A [MASK].", []), "candidates is"),
        (lambda f: f.rank("A [MASK].", "good"), "give a list"),
        (lambda f: f.rank("A [MASK].", ["good", ""]), "candidate '' is not a word"),
        (lambda f: f.rank("A [MASK].", ["good", "\u200d"]), "nothing that is a token"),
        (lambda f: f.rank("A [MASK].", [["a"], ["b"]]), "1 masks, there are candidates for 2"),
        (lambda f: f.rank("A [MASK] [MASK].", ["a", "b"]), "2 masks, there are candidates for 1"),
        (lambda f: f.rank("A [MASK].", ["x " * 600]), "600 tokens, the text leaves room for 508"),
        (lambda f: f.rank("A [MASK].", ["a"], others="none"), "others is 'none'"),
        (lambda f: f.rank("A film.", ["a"]), "no mask"),
        (lambda f: f.infill("A [MASK:0]."), "malformed"),
        (lambda f: f.infill("A [MASK:3-2]."), "malformed"),
        (lambda f: f.infill("A [MASK:]."), "malformed"),
        (lambda f: f.infill("A [MASK:1-99]."), "malformed"),
        (lambda f: f.infill("[MASK:1-9] [MASK:1-9]"), "more than 64 combinations"),
        (lambda f: f.infill("A film."), "no mask"),
        (lambda f: f.infill("A [MASK].", beam_size=0), "beam_size is 0"),
        (lambda f: f.infill("A [MASK].", order="random"), "order is 'random'"),
        (lambda f: f.score("A film."), "give a list"),
        (lambda f: f.score(["A [MASK]."]), "has a mask"),
        (lambda f: f.score(["a", " "]), "text 1 of 2 is empty"),
        (lambda f: f.score(["\u200d"]), "nothing that is a token"),
        (lambda f: f.score(["a"], method="ppl"), "method is 'ppl'"),
        (lambda f: f.fill("\ud800 [MASK]"), "half a surrogate pair"),
    ],
)
def test_wrong_arguments(real: MaskFiller, call: Any, message: str) -> None:
    """A one-line error that says what is wrong."""
    with pytest.raises(InputError, match=message) as caught:
        call(real)
    assert "\n" not in str(caught.value)
