"""Generated texts and arguments for all methods, compared with plain PyTorch, on a real and a byte-level model.

Each test counts the answered requests, since rejecting all of them would prove nothing. A comment gives the counts of
some runs; hypothesis generates different requests each time, so the required count is far lower.
"""

import inspect
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlm_infer import InputError, MaskFiller, MlmInferError
from tests.helpers.reference import Reference


def test_any_unicode_anywhere(pair: tuple[MaskFiller, Reference]) -> None:
    """Any text with masks gives a complete answer or a one-line error; the text around a mask is kept."""
    filler, _ = pair
    answered = 0

    @settings(max_examples=150, deadline=None)
    @given(
        parts=st.lists(st.text(max_size=30), min_size=1, max_size=4),
        top_k=st.integers(1, 20),
        words_only=st.booleans(),
        min_score=st.floats(0, 1),
    )
    def ask(parts: list[str], top_k: int, words_only: bool, min_score: float) -> None:
        nonlocal answered
        text = "[MASK]".join(parts)
        try:
            result = filler.fill(text, top_k=top_k, words_only=words_only, min_score=min_score)
        except MlmInferError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        assert len(result.masks) == text.count("[MASK]") + text.count("<mask>")
        for mask in result.masks:
            assert text[slice(*mask.span)] in ("[MASK]", "<mask>")
            assert len(mask.predictions) <= top_k
            for each in mask.predictions:
                assert each.score >= min_score - 1e-6
                assert each.sequence.endswith(text[mask.span[1] :])
        answered += 1

    ask()
    assert answered > 30  # 85 to 125 of 150


def test_scores_of_any_text_do_not_depend_on_company(pair: tuple[MaskFiller, Reference]) -> None:
    """The log-probability of a token is the same alone and in a batch."""
    filler, _ = pair
    answered = 0

    @settings(max_examples=60, deadline=None)
    @given(
        texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5),
        method=st.sampled_from(["pll", "pll_word_l2r"]),
        long_text=st.sampled_from(["error", "window"]),
    )
    def ask(texts: list[str], method: Any, long_text: Any) -> None:
        nonlocal answered
        try:
            together = filler.score(texts, method=method, long_text=long_text)
        except MlmInferError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        for result, text in zip(together, texts, strict=True):
            (alone,) = filler.score([text], method=method, long_text=long_text)
            np.testing.assert_allclose(
                [each.logprob for each in result.tokens], [each.logprob for each in alone.tokens], atol=2e-4
            )
        answered += 1

    ask()
    assert answered > 20  # 53 to 60 of 60


OPTIONS = [
    *("top_k", "targets", "allow", "deny", "words_only", "pattern", "min_score", "renormalize", "long_text"),
    *("candidates", "others", "normalize", "beam_size", "order", "method", "column"),
]
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4),
    st.sampled_from([np.int64, np.uint8, np.float32, np.float64, np.bool_]).flatmap(
        lambda kind: st.integers(0, 100).map(kind)
    ),
    st.sampled_from(
        [10**5000, np.array(["good", "bad"]), np.array(3), np.float32("nan"), object(), {}, re.compile(b"a")]
    ),
    st.sampled_from(
        ["error", "window", "visible", "pll", "[UNK]", "[MASK]", "😀", "nice 😀", "\ud800", "\0", "x" * 10**6]
    ),
    st.text(st.characters(), max_size=4),
    st.lists(st.text(st.characters(), max_size=4) | st.sampled_from(["good", "😀", "\udfff", 5, None]), max_size=3),
)


def test_arguments_of_any_kind(pair: tuple[MaskFiller, Reference]) -> None:
    """Numbers of numpy, emoji, lone surrogates, huge words and objects: an answer, or a short one-line error."""
    filler, _ = pair
    answered = 0

    @settings(max_examples=300, deadline=None)
    @given(
        method=st.sampled_from(["fill", "fill_batch", "map_batch", "__call__", "rank", "infill", "score"]),
        options=st.dictionaries(st.sampled_from(OPTIONS), ANYTHING, max_size=3),
        first=st.just("A [MASK] film.") | ANYTHING,
    )
    def call(method: str, options: dict[str, Any], first: Any) -> None:
        nonlocal answered
        ask = getattr(filler, method)
        named = {name: value for name, value in options.items() if name in inspect.signature(ask).parameters}
        if method == "rank":
            named.setdefault("candidates", ["good", "😀"])
        several = {"fill_batch": [first], "score": [first], "map_batch": {"text": [first]}}
        try:
            ask(several.get(method, first), **named)
        except InputError as error:
            message = str(error)
            assert "\n" not in message
            assert len(message) < 400
        else:
            # A batch answers whatever is in its rows.
            answered += method != "map_batch"

    call()
    assert answered > 8  # 29 to 59 of 300


LISTS = st.none() | st.lists(
    st.sampled_from(["good", "film", "the", "a", "very", "very good", "##s", ".", "s"]), max_size=6
)


def test_every_argument_of_fill(pair: tuple[MaskFiller, Reference]) -> None:
    """Any combination of options gives PyTorch's result for the whole vocabulary, filtered afterwards."""
    filler, reference = pair
    answered = 0

    @settings(max_examples=60, deadline=None)
    @given(
        data=st.data(),
        allow=LISTS,
        deny=LISTS,
        words_only=st.booleans(),
        pattern=st.none() | st.sampled_from(["[a-m]+", ".*s", "(?i)THE", r"\W", "xyzzy"]),
        min_score=st.just(0.0) | st.floats(0, 0.1),
        renormalize=st.booleans(),
        top_k=st.integers(1, 12),
    )
    def ask(
        data: st.DataObject,
        allow: list[str] | None,
        deny: list[str] | None,
        words_only: bool,
        pattern: str | None,
        min_score: float,
        renormalize: bool,
        top_k: int,
    ) -> None:
        nonlocal answered
        text = f"It is {filler.info.mask_token}, and a {filler.info.mask_token} of the year."
        targets = data.draw(
            st.none() | st.lists(st.sampled_from(ONE_TOKEN[filler.info.architecture]), min_size=1, max_size=5)
        )
        options = {"allow": allow, "deny": deny, "words_only": words_only, "pattern": pattern, "targets": targets}
        wanted = {**options, "min_score": min_score, "renormalize": renormalize, "top_k": top_k}
        kept = filtered(filler, reference, text, wanted)
        if not any(kept) and min_score == 0.0:
            with pytest.raises(InputError, match="no token of the vocabulary is left"):
                filler.fill(text, **wanted)  # type: ignore[arg-type]
            return
        try:
            result = filler.fill(text, **wanted)  # type: ignore[arg-type]
        except InputError as error:
            assert "no token of the vocabulary is left" in str(error)  # noqa: PT017
            assert not any(kept)
            return
        for mask, expected in zip(result.masks, kept, strict=True):
            # Rounding decides about what lies at the very edge of min_score.
            edge = math.log(min_score) + 1e-3 if min_score else -math.inf
            above = [each.logprob for each in mask.predictions if each.logprob > edge]
            np.testing.assert_allclose(above, [each for each, _ in expected if each > edge], atol=2e-4)
            for each in mask.predictions:
                assert each.score == pytest.approx(math.exp(each.logprob), rel=1e-4)
        answered += 1

    ask()
    assert answered > 3  # 16 to 28 of 60


def filtered(
    filler: MaskFiller, reference: Reference, text: str, options: dict[str, Any]
) -> list[list[tuple[float, int]]]:
    """Return PyTorch's log-probabilities and tokens for each mask, filtered one by one."""
    targets, allow, pattern, min_score = (options[name] for name in ("targets", "allow", "pattern", "min_score"))
    ids = reference.encode(text)
    words = filler.model.encoder.vocabulary.words
    kept = []
    for place in (place for place, token in enumerate(ids) if token == reference.mask):
        logprobs = reference.logprobs(ids, place).numpy()
        chosen = [
            token
            for token, word in enumerate(words[: len(reference.tokenizer)])
            if (targets is None or (word in targets and starts_word(reference, token)))
            and (allow is None or word in allow)
            and word not in (options["deny"] or [])
            and (not options["words_only"] or (is_word(word) and starts_word(reference, token)))
            and (pattern is None or re.fullmatch(pattern, word))
        ]
        total = np.log(np.exp(logprobs[chosen]).sum()) if options["renormalize"] and chosen else 0.0
        found = sorted(((float(logprobs[token] - total), token) for token in chosen), reverse=True)
        kept.append([pair for pair in found if pair[0] >= math.log(min_score or 1e-300)][: options["top_k"]])
    return kept


ONE_TOKEN = {"bert": ["good", "film", "the", "a", "very"], "roberta": ["the", "a", "of", "and", "in"]}


def starts_word(reference: Reference, token: int) -> bool:
    """Return whether a token begins a word, according to its spelling."""
    spelled = reference.tokenizer.convert_ids_to_tokens(token)
    return not spelled.startswith("##") if reference.tokenizer.mask_token == "[MASK]" else spelled.startswith("Ġ")


def is_word(word: str) -> bool:
    """Return whether a text consists of letters, hyphens and apostrophes."""
    return any(map(str.isalpha, word)) and all(each.isalpha() or each in "-'\u2019" for each in word)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    candidates=st.lists(
        st.lists(
            st.sampled_from(["film", "good", "the", "unwatchable", "naïve", "x", "of"]), min_size=1, max_size=3
        ).map(" ".join),
        min_size=1,
        max_size=5,
    ),
    others=st.sampled_from(["left_to_right", "masked", "visible"]),
    normalize=st.booleans(),
)
def test_every_argument_of_rank(
    pair: tuple[MaskFiller, Reference], candidates: list[str], others: Any, normalize: bool
) -> None:
    """Any candidates in any order, including duplicates."""
    filler, reference = pair
    text = f"It is a {filler.info.mask_token} of the year."
    (ranked,) = filler.rank(text, candidates, others=others, normalize=normalize).masks
    expected = {}
    for words in candidates:
        ids = reference.tokenizer(words if "[" in filler.info.mask_token else f" {words}", add_special_tokens=False)
        logprobs = reference.candidate(text, ids["input_ids"], others)
        expected[words] = sum(logprobs) / (len(logprobs) if normalize else 1)
    assert sorted(each.text for each in ranked) == sorted(candidates)
    for each in ranked:
        assert each.score == pytest.approx(expected[each.text], abs=1e-3)
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["the film", "was", "a good", ","]), min_size=2, max_size=4),
    spans=st.lists(st.sampled_from(["{mask}", "[MASK:2]", "[MASK:1-2]"]), min_size=3, max_size=3),
    beam_size=st.integers(1, 4),
    top_k=st.integers(1, 6),
    order=st.sampled_from(["confidence", "left_to_right"]),
    words_only=st.booleans(),
)
def test_every_argument_of_infill(
    pair: tuple[MaskFiller, Reference],
    parts: list[str],
    spans: list[str],
    beam_size: int,
    top_k: int,
    order: Any,
    words_only: bool,
) -> None:
    """Fillings are in the text, best first, with the log-probability of their steps."""
    filler, reference = pair
    masks = [span.format(mask=filler.info.mask_token) for span in spans]
    text = "".join(
        f"{part} {mask} " for part, mask in itertools.zip_longest(parts, masks[: len(parts) - 1], fillvalue="")
    )
    found = filler.infill(text, beam_size=beam_size, top_k=top_k, order=order, words_only=words_only)
    assert 1 <= len(found) <= top_k
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert len({(each.tokens, each.sequence) for each in found}) == len(found)
    for each in found:
        count = sum(map(len, each.tokens))
        assert each.score == pytest.approx(each.logprob / count, abs=1e-4)
        assert each.logprob <= 0
        rest = text
        for span, tokens, filling in zip(masks, each.tokens, each.fillings, strict=False):
            low, _, high = (span[6:-1] if ":" in span else "1").partition("-")
            assert int(low) <= len(tokens) <= int(high or low)
            rest = rest.replace(span, filling, 1)
        # A piece that begins no word stands against what comes before it.
        assert "".join(each.sequence.split()) == "".join(rest.split())
    if order == "left_to_right":
        best = found[0]
        ids = reference.encode(text_of(filler, masks, parts, best))
        total, pieces = 0.0, iter(itertools.chain(*best.tokens))
        for place, token in enumerate(ids):
            if token == reference.mask:
                ids[place] = reference.tokenizer.convert_tokens_to_ids(next(pieces))
                before = [*ids[:place], reference.mask, *ids[place + 1 :]]
                total += float(reference.logprobs(before, place)[ids[place]])
        assert best.logprob == pytest.approx(total, abs=1e-3)


def text_of(filler: MaskFiller, masks: list[str], parts: list[str], found: Any) -> str:
    """Return the text with as many masks in place of each span as its filling has tokens."""
    spans = [" ".join([filler.info.mask_token] * len(tokens)) for tokens in found.tokens]
    return "".join(f"{part} {span} " for part, span in itertools.zip_longest(parts, spans, fillvalue=""))
