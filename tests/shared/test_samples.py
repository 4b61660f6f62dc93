"""The built-in reviews."""

from mlm_infer.shared.samples import movie_reviews


def test_samples() -> None:
    """The built-in reviews: no sentence is in both splits."""
    train, validation = movie_reviews(), movie_reviews("validation")
    assert (len(train), len(validation)) == (9543, 1060)
    assert not set(train) & set(validation)
