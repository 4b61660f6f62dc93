"""Tokenized texts: what the encoder returns."""

from dataclasses import dataclass

__all__ = ["EncodedText", "Span", "WholeText"]

Span = tuple[int, int]
"""Start and end, in characters."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A tokenized text, or the window around one mask of a long text.

    Attributes:
        text: The input text.
        ids: Token ids, special tokens included.
        positions: Indices of the masks among the ids.
        spans: Start and end of each mask in the text, in characters.
        skipped: Number of tokens before the window.
        window: Start and end of the window in the text, in characters; None for a whole text.
    """

    text: str
    ids: list[int]
    positions: tuple[int, ...]
    spans: tuple[Span, ...]
    skipped: int = 0
    window: Span | None = None


@dataclass(frozen=True, slots=True)
class WholeText:
    """A complete text with the character span and the word of each token.

    Attributes:
        text: The text.
        ids: Token ids, special tokens included.
        head: Number of special tokens at the start.
        tail: Number of special tokens at the end.
        spans: Start and end of each token in the text; empty for special tokens.
        words: Index of the word that a token belongs to; None for special tokens.
    """

    text: str
    ids: list[int]
    head: int
    tail: int
    spans: list[Span]
    words: list[int | None]

    def window(self, position: int, longest: int) -> tuple[list[int], int]:
        """Return a window of at most `longest` ids around a token, centred if possible, and the token's index in it."""
        if len(self.ids) <= longest:
            return self.ids, position
        room = longest - self.head - self.tail
        last = len(self.ids) - self.tail
        start = min(max(position - room // 2, self.head), last - room)
        # The window gets the special tokens of a whole text, which the model was trained with.
        ids = [*self.ids[: self.head], *self.ids[start : start + room], *self.ids[last:]]
        return ids, position - start + self.head
