"""The answers to texts that were read, each beside its text: what both outputs of `mlm-fill` are made of."""

from collections import deque
from collections.abc import Iterator

from mlm_infer.errors import InputError, TextError
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords
from mlm_infer.results import FillResult

from .read_texts import ReadText

__all__ = ["answer_texts"]


def answer_texts(
    filler: MaskFiller, texts: Iterator[ReadText], options: FillKeywords
) -> Iterator[tuple[ReadText, FillResult | InputError]]:
    """Yield each text with its result, or with its error, which names the place of the text in its file."""
    pending: deque[ReadText] = deque()

    def remembered() -> Iterator[str]:
        for read in texts:
            pending.append(read)
            # What could not be read keeps its place among the results as an empty text, which is an error as well.
            yield "" if read.wrong else read.text

    for result in filler.fill_stream(remembered(), on_error="return", **options):
        read = pending.popleft()
        if read.wrong:
            yield read, InputError(read.wrong)
        elif isinstance(result, TextError):
            # The stream counts its texts; a person counts the lines of a file.
            yield read, result.named(read.place or "the text")
        else:
            yield read, result
