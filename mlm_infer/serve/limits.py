"""How much a server takes on."""

from dataclasses import dataclass, fields

from mlm_infer.checks import whole_number

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server; a request beyond one of them is refused with a line that names it.

    Attributes:
        requests: Requests in progress; further ones get 429.
        body: Bytes of a body.
        texts: Texts of a request.
        characters: Characters of a text to fill, and of all texts to score in a request.
        predictions: Predictions of a request, over all masks of its texts.
        answer: Characters of an answer to `fill`, in which each prediction contains its whole text.
        candidates: Candidates to rank in a request.
        copies: Characters of the copies of a text that candidates to rank take, one for each character of a candidate.
        beam: Size of a beam, and fillings to return.
        seconds: Time until a request is answered, the reading of its body included.

    Raises:
        InputError: A value is no whole number above 0.
    """

    requests: int = 256
    body: int = 1_000_000
    texts: int = 1_000
    characters: int = 20_000
    predictions: int = 100_000
    answer: int = 20_000_000
    candidates: int = 10_000
    copies: int = 50_000_000
    beam: int = 100
    seconds: int = 60

    def __post_init__(self) -> None:
        for field in fields(self):
            whole_number(field.name, getattr(self, field.name), least=1, most=1_000_000_000)
