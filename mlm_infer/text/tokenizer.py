"""Safe use of a `tokenizer.json` of unknown origin: its library's exceptions, and the growth of texts."""

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
"""Maximum length of a text after all rules, 8 times the maximum input; a character takes about 170 bytes."""

_LONGEST_STEP = 20_000_000
"""Maximum length after one rule: a million characters that each expand to 18, the most in Unicode, still fit."""

_UNICODE = 18
_GROWTH = {
    **dict.fromkeys(["NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"], _UNICODE),
    "ByteLevel": 5,
    "Lowercase": 3,
    **dict.fromkeys(["Metaspace", "BPEDecoder", "CTC"], 2),
}
"""Maximum number of output characters per input character, by kind of rule; other kinds never lengthen a text."""

_LONGEST_DECODING = 1024
"""Maximum growth of a token in the decoder."""

_NO_MODEL = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}

_Rule = Mapping[str, Any]


class SafeTokenizer:
    """A `tokenizers.Tokenizer` that raises only BundleError, and whose memory use is bounded.

    A rule that replaces one letter by two doubles a text; forty such rules in sequence make a terabyte of one letter.
    An upper bound of the growth follows from the rules alone. Only if it is too large are the rules applied one by one.

    Args:
        path: The file.

    Attributes:
        settings: Its parsed content.

    Raises:
        BundleError: It is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            data = path.read_bytes()
            self.settings: dict[str, Any] = json.loads(data.decode())
            self._normalizers = list(_rules(self.settings.get("normalizer"), "normalizers"))
            pre_tokenizers = _rules(self.settings.get("pre_tokenizer"), "pretokenizers")
            processors = _rules(self.settings.get("post_processor"), "processors")
            # Rules run one after the other, so their growth multiplies.
            self._after = math.prod(map(_growth, [*pre_tokenizers, *processors]))
            self._growth = math.prod(map(_growth, self._normalizers)) * self._after
            decoding = math.prod(map(_growth, _rules(self.settings.get("decoder"), "decoders")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
            reason = f"{type(error).__name__}: {error!s:.100}"
            raise BundleError(f"{path} cannot be used as a tokenizer: {reason}; export the model again") from error
        if decoding > _LONGEST_DECODING:
            raise BundleError(f"{path} has a decoder that makes words without end of a token; export the model again")
        self._tokenizer: Tokenizer = self._call(Tokenizer.from_buffer, data)
        # Threads share the instance, so it must not keep settings of a call; and truncation would cut off masks.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except BaseException as error:
            # A Rust panic is a BaseException, and its class cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(
                f"{self._path} cannot be used as a tokenizer: {error!s:.200}; export the model again"
            ) from error

    def _check_length(self, text: str) -> None:
        """Raise BundleError if the rules lengthen a text too much."""
        # The bound is cheap and almost always sufficient.
        if len(text) * self._growth > _LONGEST and self._length(text) > _LONGEST:
            raise BundleError(
                f"{self._path} makes more than {_LONGEST:,} characters of a text that has {len(text):,}; "
                "take another tokenizer, or a shorter text"
            )

    def _length(self, text: str) -> float:
        """Return the length of a text after the rules, by applying them; infinity if it is far too long."""
        for rule in self._normalizers:
            if len(text) * _growth(rule) > _LONGEST_STEP:
                return math.inf
            text = self._apply(rule, text)
            if len(text) > _LONGEST:
                return math.inf
        return len(text) * self._after

    def _apply(self, rule: _Rule, text: str) -> str:
        if rule["type"] == "Prepend":
            # The prefix is added to each piece between special tokens. At worst, each letter is a piece.
            return "".join(rule["prepend"] + each for each in text)
        # A tokenizer with this rule only; the library has no other way to run one from its JSON.
        alone = self._call(Tokenizer.from_str, json.dumps({**_NO_MODEL, "normalizer": rule}))
        made: str = self._call(alone.normalizer.normalize_str, text)
        return made

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Tokenize a text."""
        self._check_length(text)
        return self._call(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)

    def encode_batch_fast(self, texts: list[str]) -> list[Encoding]:
        """Tokenize texts, without token offsets."""
        for text in texts:
            self._check_length(text)
        found: list[Encoding] = self._call(self._tokenizer.encode_batch_fast, texts)
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""
        text: str = self._call(self._tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)
        return text

    def decode_batch(self, rows: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the texts of rows of token ids."""
        texts: list[str] = self._call(self._tokenizer.decode_batch, rows, skip_special_tokens=skip_special_tokens)
        return texts

    def id_to_token(self, token_id: int) -> str | None:
        """Return a token as spelled in the vocabulary."""
        token: str | None = self._call(self._tokenizer.id_to_token, token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token."""
        token_id: int | None = self._call(self._tokenizer.token_to_id, token)
        return token_id

    def get_vocab(self, *, with_added_tokens: bool) -> dict[str, int]:
        """Return the vocabulary: the id of each token."""
        ids: dict[str, int] = self._call(self._tokenizer.get_vocab, with_added_tokens=with_added_tokens)
        return ids

    def get_vocab_size(self) -> int:
        """Return the size of the vocabulary, added tokens included."""
        size: int = self._call(self._tokenizer.get_vocab_size)
        return size


def _rules(rule: _Rule | None, inner: str) -> Iterator[_Rule]:
    """Yield rules in order of application, with sequences flattened."""
    if rule is None:
        return
    if rule["type"] != "Sequence":
        yield rule
        return
    for each in rule[inner]:
        yield from _rules(each, inner)


def _growth(rule: _Rule) -> int:
    """Return the maximum number of output characters of a rule per input character."""
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
    """Return the length of the longest replacement in a SentencePiece character map.

    The map consists of the size of a trie, the trie, and zero-terminated replacement strings. The library allocates
    whatever size is given and aborts the process if it cannot, so the size is checked here.

    Raises:
        ValueError: The map is truncated.
    """
    data = base64.b64decode(charsmap)
    (size,) = struct.unpack_from("<I", data)
    if size > len(data) - 4:
        raise ValueError("precompiled_charsmap is cut short")
    return max(len(each.decode()) for each in data[4 + size :].split(b"\0"))
