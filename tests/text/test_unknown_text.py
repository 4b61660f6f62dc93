"""Text without a token in the vocabulary, and the unknown token."""

from pathlib import Path

import pytest

from mlm_infer import InputError, MaskFiller


@pytest.fixture(scope="module", params=["bert", "albert"])
def with_unknown(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> MaskFiller:
    """A WordPiece and a SentencePiece vocabulary, both with an unknown token."""
    return MaskFiller(bundles[request.param], precision="fp32")


@pytest.mark.parametrize("word", ["😀", "[UNK]", "nice 😀", "😀🎉"])
def test_unknown_text_is_no_candidate(with_unknown: MaskFiller, word: str) -> None:
    """Targets and candidates that contain unknown text are rejected by name."""
    word = word.replace("[UNK]", with_unknown.model.encoder.vocabulary.token(unknown_id(with_unknown)))
    message = f"the (target|candidate) {word!r} contains text that is not in the vocabulary"
    for words in ([word], ["a", word]):
        with pytest.raises(InputError, match=message.replace("[UNK]", r"\[UNK\]")):
            with_unknown.fill("The party was [MASK].", targets=words)
        with pytest.raises(InputError, match=message.replace("[UNK]", r"\[UNK\]")):
            with_unknown.rank("The party was [MASK].", words)


def unknown_id(filler: MaskFiller) -> int:
    """Return the id of the unknown token, which must exist."""
    found = filler.model.encoder.vocabulary.unknown_id
    assert found is not None
    return found


def test_unknown_text_is_not_allowed(with_unknown: MaskFiller) -> None:
    """`allow` ignores unknown words; if no other is left, it is an error."""
    unknown = with_unknown.model.encoder.vocabulary.token(unknown_id(with_unknown))
    known = with_unknown.fill("It was [MASK].", allow=["a", "the"])
    assert with_unknown.fill("It was [MASK].", allow=["a", "😀", unknown, "the"]) == known
    assert {each.text for each in known.masks[0].predictions} == {"a", "the"}
    for ask in (with_unknown.fill, with_unknown.infill):
        with pytest.raises(InputError, match="no token of the vocabulary is left"):
            ask("It was [MASK].", allow=["😀", unknown])


def test_unknown_tokens_of_a_scored_text_are_marked(with_unknown: MaskFiller) -> None:
    """Such tokens are scored as the unknown token, and marked."""
    (result,) = with_unknown.score(["the 😀 film"])
    found = [each.token for each in result.tokens if each.unknown]
    assert found == [with_unknown.model.encoder.vocabulary.token(unknown_id(with_unknown))]
    assert result.to_dict()["tokens"][-1]["unknown"] is False


def test_bytes_know_every_text(bundles: dict[str, Path]) -> None:
    """A byte-level vocabulary ranks and scores emoji by their bytes."""
    filler = MaskFiller(bundles["roberta"], precision="fp32")
    (ranked,) = filler.rank("It was <mask>.", ["😀", "🎉", "nice 😀"]).masks
    assert len({each.score for each in ranked}) == len({each.tokens for each in ranked}) == 3
    (result,) = filler.score(["nice 😀"])
    assert not any(each.unknown for each in result.tokens)
    with pytest.raises(InputError, match="is not one token of this model"):
        filler.fill("It was <mask>.", targets="😀")


def test_fill_may_predict_the_unknown_token(shipped: MaskFiller) -> None:
    """As in the pipeline; `words_only` and `deny` exclude it."""
    text, size, token = "The party was [MASK].", shipped.info.vocab_size, "[UNK]"
    everything = shipped.fill(text, top_k=size).masks[0].predictions
    assert token in {each.token for each in everything}
    for options in ({"words_only": True}, {"deny": [token]}):
        some = shipped.fill(text, top_k=size, **options).masks[0].predictions
        assert token not in {each.token for each in some}
