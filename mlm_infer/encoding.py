"""From texts to token ids and back, with `tokenizers` alone."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from .bundle import Manifest
from .errors import BundleError, InputError

__all__ = ["MASK_SPELLINGS", "EncodedText", "TextEncoder"]

MASK_SPELLINGS = ("[MASK]", "<mask>")
"""Ways to write a mask that every model takes, whatever its own mask token is."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as the model takes it.

    Attributes:
        text: The text as it was given.
        ids: Token ids, special tokens included.
        positions: Indices of the masks among the ids.
        spans: First character and the one after the last of each mask in the text.
    """

    text: str
    ids: list[int]
    positions: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class TextEncoder:
    """Tokenizes texts with masks, and turns predicted ids into words and sentences.

    Args:
        path: A `tokenizer.json`; padding and truncation that it carries are switched off, so that one
            instance can serve many threads and no mask is cut away.
        manifest: Says which id is the mask, and how long a text may be.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path} cannot be read as a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self._tokenizer.token_to_id(manifest.mask_token) != manifest.mask_id:
            raise BundleError(
                f"{path} knows {manifest.mask_token!r} as {self._tokenizer.token_to_id(manifest.mask_token)}, the "
                f"manifest says {manifest.mask_id}; export the model again"
            )
        self._manifest = manifest
        spellings = sorted({*MASK_SPELLINGS, manifest.mask_token}, key=len, reverse=True)
        self._masks = re.compile("|".join(map(re.escape, spellings)))
        decoder = json.loads(path.read_text(encoding="utf-8")).get("decoder") or {}
        self._word_piece = decoder.get("prefix", "##") if decoder.get("type") == "WordPiece" else None

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Tokenize texts that have at least one mask each.

        Args:
            texts: The texts; a mask is written as the model's own mask token, `[MASK]` or `<mask>`.

        Raises:
            InputError: A text is not a string, is empty, has no mask, or has more tokens than the model takes.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"{_name(row, texts)} is a {type(text).__name__}, {text!r:.60}; give strings")
            if not text.strip():
                raise InputError(
                    f"{_name(row, texts)} is empty; write a sentence with {self._manifest.mask_token} in it"
                )
        spans = [tuple(match.span() for match in self._masks.finditer(text)) for text in texts]
        own = self._manifest.mask_token
        plain = [self._masks.sub(lambda _match: own, text) for text in texts]
        # For one text, handing it to the tokenizer's threads takes longer than tokenizing it.
        try:
            one = len(plain) == 1
            encodings = [self._tokenizer.encode(plain[0])] if one else self._tokenizer.encode_batch_fast(plain)
        except TypeError as error:
            row = next(row for row, text in enumerate(texts) if _broken(text))
            raise InputError(f"{_name(row, texts)} {_BROKEN}: {texts[row]!r:.60}") from error
        return [self._encoded(row, texts, encodings[row].ids, spans[row]) for row in range(len(texts))]

    def count(self, text: str) -> int:
        """Return how many tokens a text has, special ones included."""
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; give a string")
        if _broken(text):
            raise InputError(f"the text {_BROKEN}: {text!r:.60}")
        own = self._manifest.mask_token
        return len(self._tokenizer.encode(self._masks.sub(lambda _match: own, text)).ids)

    def _encoded(
        self, row: int, texts: Sequence[str], ids: list[int], spans: tuple[tuple[int, int], ...]
    ) -> EncodedText:
        text, manifest = texts[row], self._manifest
        positions = tuple(index for index, token in enumerate(ids) if token == manifest.mask_id)
        if not positions:
            raise InputError(
                f"{_name(row, texts)} has no mask; write {manifest.mask_token} where a word is missing: {text!r:.80}"
            )
        if len(ids) > manifest.max_length:
            raise InputError(
                f"{_name(row, texts)} has {len(ids)} tokens, this model takes at most {manifest.max_length}; "
                f"shorten it: {text!r:.60}"
            )
        if len(positions) != len(spans):
            raise InputError(
                f"{_name(row, texts)} has {len(spans)} masks, its tokens {len(positions)}; "
                f"put spaces around {manifest.mask_token}: {text!r:.60}"
            )
        return EncodedText(text, ids, positions, spans)

    def token(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it; an id beyond the vocabulary gives an empty string."""
        return self._tokenizer.id_to_token(token_id) or ""

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def starts_word(self, token: str) -> bool:
        """Tell whether a token of the vocabulary begins a word, by the marker of its tokenizer."""
        if self._word_piece is not None:
            return not token.startswith(self._word_piece)
        return self._marker == "" or token.startswith(self._marker)

    @cached_property
    def _marker(self) -> str:
        """What begins a word in this vocabulary: `Ġ` (byte-level BPE), `▁` (SentencePiece), or nothing."""
        if self._word_piece is not None:
            return ""
        vocabulary = self._vocabulary
        return next((marker for marker in ("Ġ", "▁") if f"{marker}the" in vocabulary or marker in vocabulary), "")

    def word(self, token_id: int) -> str:
        """Return a token's text without the marker of its tokenizer."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False).strip()
        return text.removeprefix(self._word_piece) if self._word_piece else text

    def splice(self, text: str, span: tuple[int, int], token_id: int) -> str:
        """Return a text with one of its masks replaced, everything else as the user wrote it.

        A token that continues a word joins the one before it; one that begins a word gets a space if it
        would otherwise touch the one before it.
        """
        before, after = text[: span[0]], text[span[1] :]
        word = self.word(token_id)
        if not self.starts_word(self.token(token_id)):
            if any(character.isalnum() for character in word):
                before = before.rstrip(" ")
        elif self._marker and before and before[-1].isalnum():
            before += " "
        return f"{before}{word}{after}"

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Decode ids as transformers does, with its clean-up of spaces where the tokenizer asks for it."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        if not self._manifest.clean_up_spaces:
            return text
        for piece in (" .", " ?", " !", " ,"):
            text = text.replace(piece, piece[1])
        text = text.replace(" ' ", "'")
        for piece in (" n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(piece, piece[1:])
        return text

    def find_targets(self, targets: Sequence[str]) -> list[int]:
        """Return the ids of words to choose among, duplicates dropped, their order kept.

        A word is looked up as one that begins a word first: ` pizza` is `Ġpizza` for RoBERTa.

        Raises:
            InputError: A target is not one token of the vocabulary, or there is none.
        """
        found: dict[int, None] = {}
        for target in _iterable(targets):
            if not isinstance(target, str) or not target.strip() or _broken(target):
                raise InputError(f"the target {target!r} is not a word; give strings such as 'good'")
            stripped = target.strip()
            names = [f"{self._marker}{stripped}", stripped, target]
            token_id = next((self._vocabulary[name] for name in names if name in self._vocabulary), None)
            if token_id is None:
                pieces = self._tokenizer.encode(f" {stripped}", add_special_tokens=False).ids
                if len(pieces) != 1:
                    tokens = ", ".join(map(self.token, pieces)) or "none"
                    raise InputError(
                        f"the target {target!r} is not one token of this model, but {len(pieces)} ({tokens})"
                    )
                token_id = pieces[0]
            found[token_id] = None
        if not found:
            raise InputError("targets is empty; give at least one word, or leave it out")
        return list(found)

    def first_pieces(self, targets: Sequence[str]) -> tuple[list[int], dict[str, str | None]]:
        """Look up targets as the transformers pipeline does: one not in the vocabulary gives its first piece.

        Returns:
            The ids without duplicates, and for each target that is no token the token taken instead, if any.
        """
        ids: dict[int, None] = {}
        replaced: dict[str, str | None] = {}
        for target in _iterable(targets):
            if not isinstance(target, str):
                raise InputError(f"the target {target!r} is a {type(target).__name__}; give strings such as 'good'")
            if _broken(target):
                raise InputError(f"the target {target!r} {_BROKEN}")
            token_id = self._vocabulary.get(target)
            if token_id is None:
                pieces = self._tokenizer.encode(target, add_special_tokens=False).ids
                replaced[target] = self.token(pieces[0]) if pieces else None
                if not pieces:
                    continue
                token_id = pieces[0]
            ids[token_id] = None
        if not ids:
            raise InputError("At least one target must be provided when passed.")
        return list(ids), replaced


def _name(row: int, texts: Sequence[str]) -> str:
    return "the text" if len(texts) == 1 else f"text {row} of {len(texts)}"


_BROKEN = "holds half a surrogate pair, which is no character; decode it with errors='replace'"


def _broken(text: str) -> bool:
    """Tell whether a string is no text: Python lets it hold surrogates, UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _iterable(targets: Iterable[str]) -> Iterable[str]:
    if not isinstance(targets, Iterable):
        raise InputError(f"targets is a {type(targets).__name__}; give a word or a list of words")
    return targets
