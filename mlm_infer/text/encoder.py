"""Converts texts to token ids and back, with `tokenizers` alone."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from mlm_infer.bundle.manifest import Manifest
from mlm_infer.checks import MOST_CHARACTERS, check_choice, check_copies, shown
from mlm_infer.errors import BundleError, InputError, TextError

from .encoded_text import EncodedText, Span, WholeText
from .tokenizer import SafeTokenizer
from .vocabulary import NO_TEXT, Vocabulary, is_text

__all__ = [
    "MASK_SPELLINGS",
    "MOST_CHARACTERS",
    "LongText",
    "TextEncoder",
    "check_long_text",
]

MASK_SPELLINGS = ("[MASK]", "<mask>")
"""Spellings of the mask that every model accepts, in addition to its own mask token."""

_REMEMBERED = 1 << 16
"""Number of tokens whose decoded text is cached."""

_LONG = 10_000
"""Number of characters from which tokenizing a text takes milliseconds."""

LongText = Literal["error", "window"]
"""What to do with a text that has more tokens than the model accepts."""


class TextEncoder:
    """Tokenizes texts with masks, and turns predicted ids into words and sentences.

    Args:
        path: A `tokenizer.json`. Its padding and truncation are disabled, so that the instance is thread-safe and no
            mask is cut off.
        manifest: Gives the mask id and the maximum length.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._tokenizer = SafeTokenizer(path)
        if self._tokenizer.token_to_id(manifest.mask_token) != manifest.mask_id:
            raise BundleError(
                f"{path} knows {manifest.mask_token!r} as {self._tokenizer.token_to_id(manifest.mask_token)}, the "
                f"manifest says {manifest.mask_id}; export the model again"
            )
        self._manifest = manifest
        self.vocabulary = Vocabulary(self._tokenizer, manifest.vocab_size)
        # Longest first: a regular expression takes the first alternative that matches.
        spellings = sorted({*MASK_SPELLINGS, manifest.mask_token}, key=len, reverse=True)
        # Each prediction decodes its token twice, and the same tokens are predicted again and again.
        self._text_of_one = lru_cache(maxsize=_REMEMBERED)(lambda token_id: self._text_of([token_id]))
        self._masks = re.compile("|".join(map(re.escape, spellings)))

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Tokenize texts that have at least one mask each, without windows.

        Args:
            texts: The texts; a mask is written as `[MASK]`, `<mask>` or the model's own mask token.

        Raises:
            InputError: A text is not a string, is empty, has no mask, or has more tokens than the model takes.
        """
        return [_raise_or_return(each)[0] for each in self.try_encode(texts, None)]

    def try_encode(
        self, texts: Sequence[str], long_text: LongText | None, *, copies: int = 0, first: int | None = None
    ) -> list[list[EncodedText] | InputError]:
        """Tokenize texts; an invalid text gives its error in place of a result.

        Args:
            texts: As for `encode`.
            long_text: `window` splits a text that is too long into one window per mask; None if the caller has no such
                option that the error could suggest.
            copies: Maximum number of answers per mask, each of which contains the whole text.
            first: Number of the first text, if these are part of a stream.

        Returns:
            For each text, the parts to run the model on: the text itself, or one window per mask.
        """
        found: list[list[EncodedText] | InputError] = []
        names = [_name(row, texts, first) for row in range(len(texts))]
        errors = [self._check(text, name) for text, name in zip(texts, names, strict=True)]
        good = [text for text, error in zip(texts, errors, strict=True) if error is None]
        plain = list(map(self._in_own_spelling, good))
        ids = self._ids(plain)
        for text, name, error in zip(texts, names, errors, strict=True):
            try:
                found.append(error or self._encoded(text, name, next(ids), long_text, copies))
            except InputError as wrong:
                found.append(wrong)
        return found

    def _check(self, text: object, name: str) -> TextError | None:
        if not isinstance(text, str):
            return TextError(name, f"is a {type(text).__name__}, {shown(text)}; give strings")
        if not text or text.isspace():
            return TextError(name, f"is empty; write a sentence with {self._manifest.mask_token} in it")
        if len(text) > MOST_CHARACTERS:
            return TextError(
                name,
                f"has {len(text):,} characters, and a text may have at most {MOST_CHARACTERS:,}; cut it into "
                f"several: {text[:40]!r}",
            )
        if not is_text(text):
            return TextError(name, f"{NO_TEXT}: {shown(text)}")
        return None

    def _ids(self, plain: list[str]) -> Iterator[list[int]]:
        """Yield the ids of each text; long texts are tokenized a few at a time, since encodings are large."""
        start = characters = 0
        for end, text in enumerate([*plain, ""]):
            characters += len(text)
            if end == len(plain) or (characters > MOST_CHARACTERS and end > start):
                group, start, characters = plain[start:end], end, len(text)
                # Handing a single short text to the tokenizer's threads takes longer than tokenizing it. For a long one
                # they are worth it, because Python's other threads run meanwhile.
                single = len(group) == 1 and len(group[0]) < _LONG
                found = map(self._tokenizer.encode, group) if single else self._tokenizer.encode_batch_fast(group)
                yield from [each.ids for each in found]

    def _in_own_spelling(self, text: str) -> str:
        return self._masks.sub(lambda _match: self._manifest.mask_token, text)

    def count(self, text: str) -> int:
        """Return the number of tokens in a text, special tokens included."""
        error = self._check(text, "the text")
        if error is not None and (not isinstance(text, str) or text.strip()):
            raise error
        return len(self._tokenizer.encode(self._in_own_spelling(text)).ids)

    def mask_spans(self, text: str) -> tuple[Span, ...]:
        """Return the spans of the masks of a text."""
        return tuple(match.span() for match in self._masks.finditer(text))

    def _encoded(
        self, text: str, name: str, ids: list[int], long_text: LongText | None, copies: int
    ) -> list[EncodedText]:
        manifest, spans = self._manifest, self.mask_spans(text)
        positions = tuple(index for index, token in enumerate(ids) if token == manifest.mask_id)
        if not positions:
            raise TextError(name, f"has no mask; write {manifest.mask_token} where a word is missing: {shown(text)}")
        # A mask that touches other text may be tokenized together with it, or a tokenizer may add masks of its own.
        if len(positions) != len(spans):
            raise TextError(
                name,
                f"has {len(spans)} masks, its tokens {len(positions)}; "
                f"put spaces around {manifest.mask_token}: {shown(text)}",
            )
        if len(ids) > manifest.max_length and long_text != "window":
            raise self._too_long(text, name, len(ids), long_text)
        check_copies(name, text, len(spans) * copies)
        if len(ids) <= manifest.max_length:
            return [EncodedText(text, ids, positions, spans)]
        whole = self._whole(self._in_own_spelling(text), text)
        # Token offsets refer to the text with masks in the model's spelling; windows are reported in the user's text.
        in_users_text = self._to_users_text(spans)
        windows = []
        for position, span in zip(positions, spans, strict=True):
            cut, place = whole.window(position, manifest.max_length)
            skipped = position - place
            first, last = skipped + whole.head, skipped + len(cut) - whole.tail - 1
            window = (in_users_text(whole.spans[first][0]), in_users_text(whole.spans[last][1]))
            windows.append(EncodedText(text, cut, (place,), (span,), skipped, window))
        return windows

    def _to_users_text(self, spans: Sequence[Span]) -> Callable[[int], int]:
        """Return a function from character offsets in the model's spelling of the text to offsets in the user's text.

        Args:
            spans: Spans of the masks in the user's text.
        """
        # Each mask before an offset shifts it by the difference between the two spellings.
        moved = [0]
        for start, end in spans:
            moved.append(moved[-1] + len(self._manifest.mask_token) - (end - start))
        starts = [start + by for (start, _), by in zip(spans, moved, strict=False)]
        return lambda character: character - moved[bisect_left(starts, character)]

    def whole(self, text: str, name: str, long_text: LongText) -> WholeText:
        """Tokenize a text without masks.

        Args:
            text: The text.
            name: Name of the text in errors.
            long_text: Whether a text that is too long is an error.

        Raises:
            InputError: It is not a string, is empty, has a mask, or is too long.
        """
        error = self._check(text, name)
        if error is not None:
            raise error
        if self._masks.search(text):
            raise TextError(name, f"has a mask; score takes complete texts, fill completes one: {shown(text)}")
        whole = self._whole(text, text)
        if len(whole.ids) == whole.head + whole.tail:
            raise TextError(name, f"holds nothing that is a token of this model: {shown(text)}")
        if long_text == "error" and len(whole.ids) > self._manifest.max_length:
            raise self._too_long(text, name, len(whole.ids), long_text)
        return whole

    def _too_long(self, text: str, name: str, tokens: int, long_text: LongText | None) -> TextError:
        advice = "shorten it" if long_text is None else "shorten it, or take long_text='window' (--long-text window)"
        return TextError(
            name, f"has {tokens} tokens, this model takes at most {self._manifest.max_length}; {advice}: {shown(text)}"
        )

    def _whole(self, plain: str, text: str) -> WholeText:
        found = self._tokenizer.encode(plain)
        # Counted from both ends, because a special token within the text belongs to the text.
        special: list[int] = found.special_tokens_mask
        head = next((index for index, each in enumerate(special) if not each), len(special))
        tail = next((index for index, each in enumerate(reversed(special)) if not each), 0)
        return WholeText(text, found.ids, head, tail, found.offsets, found.word_ids)

    def pieces(self, text: str, *, begins_word: bool) -> list[int]:
        """Return the ids of a part of a text, without special tokens.

        Args:
            text: The part.
            begins_word: Whether it follows a space, as opposed to continuing the word before it.
        """
        # Only byte-level vocabularies distinguish a word at the start of a text from one after a space.
        part = text.strip()
        if self.vocabulary.marker == "Ġ" and begins_word:
            part = f" {part}"
        ids: list[int] = self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def splice(self, text: str, fillings: Sequence[tuple[Span, Sequence[int]]]) -> str:
        """Return a text with some of its masks replaced by tokens, and everything else unchanged.

        A token that continues a word is joined to the word before it. A token that begins a word is separated by a
        space if it would otherwise touch the word before it.

        Args:
            text: The input text.
            fillings: Spans of masks, in order, and the ids that replace them.
        """
        # Not decoded from the ids: the user's case and spacing are kept.
        result, end = "", 0
        for (start, after), ids in fillings:
            result = self._join(result + text[end:start], ids)
            end = after
        return result + text[end:]

    def _join(self, before: str, ids: Sequence[int]) -> str:
        word = self.text_of(ids)
        if not self.vocabulary.starts_word(self.vocabulary.token(ids[0])):
            if any(map(str.isalnum, word)):
                before = before.rstrip(" ")
        elif self.vocabulary.marker and before and before[-1].isalnum():
            before += " "
        return before + word

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of consecutive tokens, without the word marker of the first."""
        return self._text_of_one(ids[0]) if len(ids) == 1 else self._text_of(ids)

    def _text_of(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False).strip()
        return text.removeprefix(self.vocabulary.word_piece) if self.vocabulary.word_piece else text

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Decode ids as transformers does, including its clean-up of spaces if the tokenizer enables it."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        if not self._manifest.clean_up_spaces:
            return text
        for piece in (" .", " ?", " !", " ,"):
            text = text.replace(piece, piece[1])
        text = text.replace(" ' ", "'")
        for piece in (" n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(piece, piece[1:])
        return text


def check_long_text(long_text: str) -> None:
    """Raise InputError unless the value is one of `LongText`."""
    check_choice("long_text", long_text, get_args(LongText))


def _name(row: int, texts: Sequence[object], first: int | None) -> str:
    if first is not None:
        return f"text {first + row}"
    return "the text" if len(texts) == 1 else f"text {row} of {len(texts)}"


def _raise_or_return(found: list[EncodedText] | InputError) -> list[EncodedText]:
    if isinstance(found, InputError):
        raise found
    return found
