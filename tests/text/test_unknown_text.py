"""Text that a vocabulary has no token for, and the token that stands for it."""

from pathlib import Path

import pytest

from mlm_infer import InputError, MaskFiller


@pytest.fixture(scope="module", params=["bert", "albert"])
def with_unknown(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> MaskFiller:
    """A WordPiece and a SentencePiece vocabulary: both have a token for all that they do not know."""
    return MaskFiller(bundles[request.param], precision="fp32")


@pytest.mark.parametrize("word", ["😀", "[UNK]", "nice 😀", "😀🎉"])
def test_unknown_text_is_no_candidate(with_unknown: MaskFiller, word: str) -> None:
    """What becomes the unknown token, in whole or in part, is refused by name, alone and among others."""
    word = word.replace("[UNK]", with_unknown.model.encoder.vocabulary.token(unknown_id(with_unknown)))
    message = f"the (target|candidate) {word!r} contains text that is not in the vocabulary"
    for words in ([word], ["a", word]):
        with pytest.raises(InputError, match=message.replace("[UNK]", r"\[UNK\]")):
            with_unknown.fill("The party was [MASK].", targets=words)
        with pytest.raises(InputError, match=message.replace("[UNK]", r"\[UNK\]")):
            with_unknown.rank("The party was [MASK].", words)


def unknown_id(filler: MaskFiller) -> int:
    """The id of the unknown token, which there has to be."""
    found = filler.model.encoder.vocabulary.unknown_id
    assert found is not None
    return found


def test_unknown_text_is_not_allowed(with_unknown: MaskFiller) -> None:
    """`allow` passes it over, however it is written; with nothing else nothing is left."""
    unknown = with_unknown.model.encoder.vocabulary.token(unknown_id(with_unknown))
    known = with_unknown.fill("It was [MASK].", allow=["a", "the"])
    assert with_unknown.fill("It was [MASK].", allow=["a", "😀", unknown, "the"]) == known
    assert {each.text for each in known.masks[0].predictions} == {"a", "the"}
    for ask in (with_unknown.fill, with_unknown.infill):
        with pytest.raises(InputError, match="no token of the vocabulary is left"):
            ask("It was [MASK].", allow=["😀", unknown])


def test_unknown_tokens_of_a_scored_text_are_marked(with_unknown: MaskFiller) -> None:
    """A score is given, and says which of its tokens stand for text that has none."""
    (result,) = with_unknown.score(["the 😀 film"])
    found = [each.token for each in result.tokens if each.unknown]
    assert found == [with_unknown.model.encoder.vocabulary.token(unknown_id(with_unknown))]
    assert result.to_dict()["tokens"][-1]["unknown"] is False


def test_bytes_know_every_text(bundles: dict[str, Path]) -> None:
    """A byte-level vocabulary ranks and scores emoji, each by its own bytes."""
    filler = MaskFiller(bundles["roberta"], precision="fp32")
    (ranked,) = filler.rank("It was <mask>.", ["😀", "🎉", "nice 😀"]).masks
    assert len({each.score for each in ranked}) == len({each.tokens for each in ranked}) == 3
    (result,) = filler.score(["nice 😀"])
    assert not any(each.unknown for each in result.tokens)
    with pytest.raises(InputError, match="is not one token of this model"):
        filler.fill("It was <mask>.", targets="😀")


def test_fill_may_predict_the_unknown_token(shipped: MaskFiller) -> None:
    """As the pipeline does, among all the others; `words_only` and `deny` leave it out."""
    text, size, token = "The party was [MASK].", shipped.info.vocab_size, "[UNK]"
    everything = shipped.fill(text, top_k=size).masks[0].predictions
    assert token in {each.token for each in everything}
    for options in ({"words_only": True}, {"deny": [token]}):
        some = shipped.fill(text, top_k=size, **options).masks[0].predictions
        assert token not in {each.token for each in some}
