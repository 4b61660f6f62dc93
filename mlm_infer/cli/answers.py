"""Pairs texts with their results, for both outputs of `mlm-fill`."""

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
    """Yield each text with its result, or with its error, which names the text's position in its file."""
    pending: deque[ReadText] = deque()

    def remembered() -> Iterator[str]:
        for read in texts:
            pending.append(read)
            # An unreadable line is passed on as an empty text, so that it keeps its place among the results.
            yield "" if read.wrong else read.text

    for result in filler.fill_stream(remembered(), on_error="return", **options):
        read = pending.popleft()
        if read.wrong:
            yield read, InputError(read.wrong)
        elif isinstance(result, TextError):
            # The stream numbers its texts; the user needs the line of the file.
            yield read, result.named(read.place or "the text")
        else:
            yield read, result
