"""The vocabulary as words: word starts, text without the tokenizer's marker, and filters."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlm_infer.checks import check_flag, check_length, shown
from mlm_infer.errors import InputError

from .tokenizer import SafeTokenizer

__all__ = ["NO_TEXT", "Restriction", "Vocabulary", "check_word", "is_text"]

NO_TEXT = "holds half a surrogate pair, which is no character; decode it with errors='replace'"

_LONGEST_PATTERN = 100_000
"""A pattern of this length takes a second to compile; one of ten megabytes takes more than two minutes."""

_NAMED = 8
"""Maximum number of a target's tokens that an error lists."""


def is_text(text: str) -> bool:
    """Return whether a string can be encoded as UTF-8; Python strings may contain lone surrogates, UTF-8 must not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Restriction:
    """A filter on the predicted tokens.

    Attributes:
        targets: The only words to predict, each one token; None for no such filter.
        allow: Permitted words; None for all. Words that are not a single token are ignored, and so is the unknown
            token.
        deny: Excluded words.
        words_only: Exclude special tokens, punctuation, numbers and tokens that continue a word.
        pattern: Regular expression that must match the whole word.
    """

    targets: tuple[str, ...] | None = None
    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    words_only: bool = False
    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(
        cls,
        targets: str | Sequence[str] | None,
        allow: Collection[str] | None,
        deny: Collection[str] | None,
        words_only: bool,
        pattern: str | re.Pattern[str] | None,
    ) -> "Restriction":
        """Validate a user's arguments.

        Raises:
            InputError: An argument has the wrong type, or the pattern is not a regular expression.
        """
        if isinstance(targets, str):
            targets = (targets,)
        chosen = None if targets is None else _check_targets(targets)
        allowed = None if allow is None else _check_words("allow", allow)
        denied = frozenset[str]() if deny is None else _check_words("deny", deny)
        check_flag("words_only", words_only)
        if not isinstance(getattr(pattern, "pattern", pattern), str | None):
            raise InputError(f"pattern is {shown(pattern)}; give a string")
        if isinstance(pattern, str) and len(pattern) > _LONGEST_PATTERN:
            raise InputError(
                f"pattern has {len(pattern):,} characters, and may have at most {_LONGEST_PATTERN:,}; allow takes a "
                f"list of words: {shown(pattern)}"
            )
        try:
            compiled = re.compile(pattern) if pattern is not None else None
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            raise InputError(f"pattern {shown(pattern)} is no regular expression: {error}") from error
        return cls(chosen, allowed, denied, words_only, compiled)

    @property
    def is_none(self) -> bool:
        """Whether every token is permitted."""
        return self == Restriction()


_T = TypeVar("_T")


class _computed_once(Generic[_T]):  # noqa: N801
    """`functools.cached_property` as of Python 3.12: without a lock, which a fork could leave locked for ever."""

    def __init__(self, compute: "Callable[[Vocabulary], _T]") -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, vocabulary: "Vocabulary", _owner: type | None = None) -> _T:
        found = vocabulary.__dict__[self._compute.__name__] = self._compute(vocabulary)
        return found


class Vocabulary:
    """The tokens of a tokenizer as words.

    Args:
        tokenizer: The tokenizer.
        size: Width of the model's head, which may exceed the vocabulary.
    """

    def __init__(self, tokenizer: SafeTokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size
        content = tokenizer.settings
        decoder = content.get("decoder") or {}
        self.word_piece: str | None = decoder.get("prefix", "##") if decoder.get("type") == "WordPiece" else None
        model = content.get("model") or {}
        named = model.get("unk_token")
        self.unknown_id: int | None = model.get("unk_id") if named is None else tokenizer.token_to_id(named)
        """The token that stands for all text without its own token; None in byte-level vocabularies."""
        self._special = {each["id"] for each in content.get("added_tokens", []) if each.get("special")}
        # Callers repeat the same targets, and looking up ten thousand of them takes longer than scoring them.
        self.find_targets = lru_cache(maxsize=16)(self._find_targets)
        self._spelling = lru_cache(maxsize=1 << 16)(lambda token_id: tokenizer.id_to_token(token_id) or "")
        self.permitted = lru_cache(maxsize=16)(self._permitted)

    def token(self, token_id: int) -> str:
        """Return a token as spelled in the vocabulary; an id beyond the vocabulary gives an empty string."""
        return self._spelling(token_id)

    @_computed_once
    def ids(self) -> dict[str, int]:
        """The id of each token, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @_computed_once
    def marker(self) -> str:
        """The marker of word starts in this vocabulary: `Ġ` (byte-level BPE), `▁` (SentencePiece), or nothing."""
        if self.word_piece is not None:
            return ""
        # Nearly every vocabulary has `the`. In SentencePiece vocabularies, the marker is also a token of its own.
        return next((marker for marker in ("Ġ", "▁") if f"{marker}the" in self.ids or marker in self.ids), "")

    def starts_word(self, token: str) -> bool:
        """Return whether a token begins a word, according to the marker of its tokenizer."""
        if self.word_piece is not None:
            return not token.startswith(self.word_piece)
        return self.marker == "" or token.startswith(self.marker)

    @_computed_once
    def words(self) -> list[str]:
        """The text of every token, by id."""
        # Decoded rather than read from the spelling, which is byte-level for RoBERTa and may be anything elsewhere.
        texts = self._tokenizer.decode_batch([[each] for each in range(self._size)], skip_special_tokens=False)
        prefix = self.word_piece or ""
        return [text.strip().removeprefix(prefix) for text in texts]

    def _permitted(self, restriction: Restriction, begins_text: bool) -> NDArray[np.int64]:
        """Return the token ids that a filter permits.

        Args:
            restriction: The filter.
            begins_text: Whether the mask is at the start of its text, where a word has no marker.

        Raises:
            InputError: No token is left, or a target is not one token.
        """
        if restriction.targets is not None:
            chosen: Sequence[int] = self.find_targets(restriction.targets)
            if restriction == Restriction(restriction.targets):
                return np.array(chosen, np.int64)
        else:
            # A head may be wider than its vocabulary, padded to a round number; such ids are no tokens.
            chosen = range(min(self._size, len(self.ids)))
        kept = [token_id for token_id in chosen if self._passes(token_id, restriction, begins_text)]
        if not kept:
            raise InputError("no token of the vocabulary is left; loosen targets, allow, deny, words_only or pattern")
        return np.array(kept, np.int64)

    def _passes(self, token_id: int, restriction: Restriction, begins_text: bool) -> bool:
        text = self.words[token_id]
        if restriction.allow is not None and (text not in restriction.allow or token_id == self.unknown_id):
            return False
        if text in restriction.deny or (restriction.pattern is not None and not restriction.pattern.fullmatch(text)):
            return False
        return not restriction.words_only or self._is_word(token_id, text, begins_text)

    def _is_word(self, token_id: int, text: str, begins_text: bool) -> bool:
        if token_id in self._special or not any(map(str.isalpha, text)):
            return False
        if not all(letter.isalpha() or letter in "-'\u2019" for letter in text):
            return False
        # A byte-level vocabulary writes the first word of a text without a marker.
        return self.starts_word(self.token(token_id)) or (begins_text and bool(self.marker))

    def _find_targets(self, targets: tuple[str, ...]) -> list[int]:
        """Return the ids of targets, in order and without duplicates.

        A target is looked up as a word start first: ` pizza` is `Ġpizza` for RoBERTa.

        Raises:
            InputError: A target is not one token of the vocabulary, contains unknown text, or there is no target.
        """
        found: dict[int, None] = {}
        for target in targets:
            stripped = target.strip()
            # As a word start, then as the continuation of a word, then exactly as given.
            names = [f"{self.marker}{stripped}", stripped, target]
            token_id = next((self.ids[name] for name in names if name in self.ids), None)
            if token_id is None:
                pieces = self._tokenizer.encode(f" {stripped}", add_special_tokens=False).ids
                self.check_known("target", target, pieces)
                if len(pieces) != 1:
                    tokens = ", ".join(map(self.token, pieces[:_NAMED])) or "none"
                    raise InputError(
                        f"the target {shown(target)} is not one token of this model, but {len(pieces)} ({tokens}"
                        f"{', ...' if len(pieces) > _NAMED else ''}); rank takes words of any length"
                    )
                token_id = pieces[0]
            self.check_known("target", target, [token_id])
            found[token_id] = None
        if not found:
            raise InputError("targets is empty; give at least one word, or leave it out")
        return list(found)

    def check_known(self, name: str, word: str, ids: Sequence[int]) -> None:
        """Raise InputError if a word contains the unknown token, whose score is the same for all unknown text."""
        if self.unknown_id in ids:
            raise InputError(
                f"the {name} {shown(word)} contains text that is not in the vocabulary of this model and would become "
                f"{self.token(ids[ids.index(self.unknown_id)])}; leave it out"
            )

    def first_pieces(self, targets: Sequence[str]) -> tuple[list[int], dict[str, str | None]]:
        """Look up targets as the transformers pipeline does: a target that is not a token gives its first piece.

        Returns:
            The ids without duplicates, and for each target that is not a token its replacement, if any.

        Raises:
            InputError: A target is not a string, or none is left.
        """
        ids: dict[int, None] = {}
        replaced: dict[str, str | None] = {}
        for target in _each(targets):
            if not isinstance(target, str):
                kind = type(target).__name__
                raise InputError(f"the target {shown(target)} is a {kind}; give strings such as 'good'")
            check_length("a target", target)
            if not is_text(target):
                raise InputError(f"the target {shown(target)} {NO_TEXT}")
            token_id = self.ids.get(target)
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


def _each(targets: object) -> tuple[object, ...]:
    try:
        return tuple(targets)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"targets is a {type(targets).__name__}; give a word or a list of words") from error


def _check_words(name: str, words: object) -> frozenset[str]:
    """Return the words of `allow` or `deny`."""
    try:
        found = None if isinstance(words, str) or not isinstance(words, Collection) else tuple(words)
    except TypeError:  # a numpy array without dimensions is a Collection that cannot be iterated
        found = None
    if found is None:
        raise InputError(f"{name} is {shown(words)}; give a list of words")
    for word in found:
        if not isinstance(word, str):
            raise InputError(f"{name} holds {shown(word)}, a {type(word).__name__}; give strings")
    return frozenset(found)


def _check_targets(targets: object) -> tuple[str, ...]:
    found = _each(targets)
    try:
        return _checked(found)
    except TypeError:  # a target that cannot be hashed is not a string; the check below says so
        return tuple(map(_check_target, found))


@lru_cache(maxsize=16)
def _checked(targets: tuple[object, ...]) -> tuple[str, ...]:
    """Check targets, with a cache: checking ten thousand of them takes as long as a run of the model."""
    return tuple(map(_check_target, targets))


def _check_target(target: object) -> str:
    return check_word("target", target, "a word")


def check_word(name: str, word: object, kind: str) -> str:
    """Return a target or candidate after checking that it is a usable text.

    Args:
        name: Its name in errors.
        word: The given value.
        kind: The expected kind of value, for errors.

    Raises:
        InputError: It is not a text, blank, or too long.
    """
    if not isinstance(word, str) or not word.strip() or not is_text(word):
        raise InputError(f"the {name} {shown(word)} is not {kind}; give strings such as 'good'")
    check_length(f"a {name}", word)
    return word
