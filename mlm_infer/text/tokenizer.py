"""A `tokenizer.json` that may be anybody's: what its library raises, and how long its rules make a text."""

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from mlm_infer.errors import BundleError

__all__ = ["SafeTokenizer"]

_LONGEST = 8_000_000
"""Characters that the rules may make of a text, 8 times what a text may have; they take about 170 bytes each."""

_LONGEST_STEP = 20_000_000
"""Characters that one rule may make of a text: Unicode has one that stands for 18, in a text of a million."""

_UNICODE = 18
_GROWTH = {
    **dict.fromkeys(["NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"], _UNICODE),
    "ByteLevel": 5,
    "Lowercase": 3,
    **dict.fromkeys(["Metaspace", "BPEDecoder", "CTC"], 2),
}
"""Into how many characters a rule of this kind may turn one; a kind that is not here makes a text no longer."""

_LONGEST_DECODING = 1024
"""How many times longer the decoder may make a token."""

_NO_MODEL = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}

_Rule = Mapping[str, Any]


class SafeTokenizer:
    """A `tokenizers.Tokenizer` whose every fault is a BundleError, and that no text makes fill the memory.

    Rules that replace one letter by two, one after the other, double a text each: forty of them are a terabyte. How
    much they could make of a text is known at once from the rules; only where that is too much is it tried, rule
    by rule.

    Args:
        path: The file.

    Attributes:
        settings: What it holds.

    Raises:
        BundleError: It is no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            data = path.read_bytes()
            self.settings: dict[str, Any] = json.loads(data.decode())
            self._normalizers = list(_rules(self.settings.get("normalizer"), "normalizers"))
            pre_tokenizers = _rules(self.settings.get("pre_tokenizer"), "pretokenizers")
            processors = _rules(self.settings.get("post_processor"), "processors")
            self._after = math.prod(map(_growth, [*pre_tokenizers, *processors]))
            self._growth = math.prod(map(_growth, self._normalizers)) * self._after
            decoding = math.prod(map(_growth, _rules(self.settings.get("decoder"), "decoders")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
            reason = f"{type(error).__name__}: {error!s:.100}"
            raise BundleError(f"{path} cannot be used as a tokenizer: {reason}; export the model again") from error
        if decoding > _LONGEST_DECODING:
            raise BundleError(f"{path} has a decoder that makes words without end of a token; export the model again")
        self._tokenizer: Tokenizer = self._call(Tokenizer.from_buffer, data)
        # One instance serves many threads, and no mask is cut away.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except BaseException as error:
            # A panic of its Rust code is no Exception, and its class cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(
                f"{self._path} cannot be used as a tokenizer: {error!s:.200}; export the model again"
            ) from error

    def _check_length(self, text: str) -> None:
        """Raise BundleError if the rules make a text too long."""
        if len(text) * self._growth > _LONGEST and self._length(text) > _LONGEST:
            raise BundleError(
                f"{self._path} makes more than {_LONGEST:,} characters of a text that has {len(text):,}; "
                "take another tokenizer, or a shorter text"
            )

    def _length(self, text: str) -> float:
        """Return how many characters the rules make of a text, having applied them; infinity for far too many."""
        for rule in self._normalizers:
            if len(text) * _growth(rule) > _LONGEST_STEP:
                return math.inf
            text = self._apply(rule, text)
            if len(text) > _LONGEST:
                return math.inf
        return len(text) * self._after

    def _apply(self, rule: _Rule, text: str) -> str:
        if rule["type"] == "Prepend":
            # It comes before each piece between special tokens, of which there may be as many as there are letters.
            return "".join(rule["prepend"] + each for each in text)
        alone = self._call(Tokenizer.from_str, json.dumps({**_NO_MODEL, "normalizer": rule}))
        made: str = self._call(alone.normalizer.normalize_str, text)
        return made

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Tokenize a text."""
        self._check_length(text)
        return self._call(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)

    def encode_batch_fast(self, texts: list[str]) -> list[Encoding]:
        """Tokenize texts, without the places of their tokens."""
        for text in texts:
            self._check_length(text)
        found: list[Encoding] = self._call(self._tokenizer.encode_batch_fast, texts)
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens."""
        text: str = self._call(self._tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)
        return text

    def decode_batch(self, rows: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the texts of rows of tokens."""
        texts: list[str] = self._call(self._tokenizer.decode_batch, rows, skip_special_tokens=skip_special_tokens)
        return texts

    def id_to_token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it."""
        token: str | None = self._call(self._tokenizer.id_to_token, token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token."""
        token_id: int | None = self._call(self._tokenizer.token_to_id, token)
        return token_id

    def get_vocab(self, *, with_added_tokens: bool) -> dict[str, int]:
        """Return the ids of all tokens."""
        ids: dict[str, int] = self._call(self._tokenizer.get_vocab, with_added_tokens=with_added_tokens)
        return ids

    def get_vocab_size(self) -> int:
        """Return how many tokens there are, added ones included."""
        size: int = self._call(self._tokenizer.get_vocab_size)
        return size


def _rules(rule: _Rule | None, inner: str) -> Iterator[_Rule]:
    """Yield rules in the order in which they are applied, those of sequences one by one."""
    if rule is None:
        return
    if rule["type"] != "Sequence":
        yield rule
        return
    for each in rule[inner]:
        yield from _rules(each, inner)


def _growth(rule: _Rule) -> int:
    """Return into how many characters a rule may turn one."""
    kind = rule["type"]
    if kind == "Replace":
        content, pattern = len(rule["content"]), rule["pattern"]
        # A regular expression may match between any two characters.
        whole = len(pattern.get("String", ""))
        return max(1, -(-content // whole)) if whole else 1 + content
    if kind == "Prepend":
        return 1 + len(rule["prepend"])
    if kind == "Precompiled":
        return _longest_piece(rule["precompiled_charsmap"])
    if kind == "TemplateProcessing":
        return max(1, sum("Sequence" in piece for piece in rule["single"]))
    return _GROWTH.get(kind, 1)


def _longest_piece(charsmap: str) -> int:
    """Return the length of the longest text that SentencePiece's table of characters puts in the place of one.

    The table is the size of a trie, the trie, and texts that each end in a zero byte. Its reader makes room for
    whatever size is said, and ends the process where there is none.

    Raises:
        ValueError: It is cut short.
    """
    data = base64.b64decode(charsmap)
    (size,) = struct.unpack_from("<I", data)
    if size > len(data) - 4:
        raise ValueError("precompiled_charsmap is cut short")
    return max(len(each.decode()) for each in data[4 + size :].split(b"\0"))
