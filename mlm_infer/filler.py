"""`MaskFiller`: opens a bundle and fills masks."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from .bundle import TOKENIZER, Manifest, read_manifest
from .cpu import cpu_kind
from .encoding import EncodedText, TextEncoder
from .errors import BundleError, DeviceError, InputError
from .results import FillResult, MaskResult, Prediction
from .session import Session, resolve_device

__all__ = ["FillerInfo", "MaskFiller"]

logger = logging.getLogger(__name__)

TOKEN_BUDGET = 1024
"""Most tokens, padding included, that one run of the model takes, unless one text alone has more.

More would not fit a processor's cache; fewer would leave the products small."""


@dataclass(frozen=True, slots=True)
class FillerInfo:
    """What a `MaskFiller` runs.

    Attributes:
        path: The bundle.
        source: The checkpoint that was exported.
        architecture: Its `model_type`.
        precision: `fp32` or `int8`.
        provider: ONNX Runtime's execution provider.
        mask_token: The mask as this model spells it; `[MASK]` and `<mask>` are taken as well.
        max_length: Most tokens a text may have.
        vocab_size: Tokens to choose from.
    """

    path: Path
    source: str
    architecture: str
    precision: str
    provider: str
    mask_token: str
    max_length: int
    vocab_size: int


class MaskFiller:
    """Fills masks with a model that `mlm-export` wrote, without torch. Safe to share between threads.

    Args:
        model: Folder of a bundle; None opens the small English model that ships with the package.
        device: `auto` (CUDA if it works, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: `auto` (the fastest the bundle holds for the device), `fp32` or `int8`.
        threads: Threads of one run; None takes all the processors this process may use.

    Raises:
        InputError: An argument is out of its range, or the bundle lacks that precision.
        BundleError: The bundle is missing, incomplete or damaged.
        DeviceError: The device cannot be used.
        DependencyError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads is {threads!r}; it must be 1 or more, or None for all")
        folder = Path(model).expanduser() if model is not None else _shipped_model()
        self._manifest: Manifest = read_manifest(folder)
        kind, number = resolve_device(device)
        chosen = _choose_precision(self._manifest, precision, kind, folder)
        self._encoder = TextEncoder(self._manifest.check_file(folder, TOKENIZER), self._manifest)
        files = self._manifest.models[chosen]
        self._manifest.check_file(folder, files.weights)
        self._session = Session(
            self._manifest.check_file(folder, files.file),
            kind=kind,
            number=number,
            fall_back=device == "auto",
            threads=threads,
        )
        self.info = FillerInfo(
            path=folder,
            source=str(self._manifest.source.get("model", "")),
            architecture=self._manifest.architecture,
            precision=chosen,
            provider=self._session.provider,
            mask_token=self._manifest.mask_token,
            max_length=self._manifest.max_length,
            vocab_size=self._manifest.vocab_size,
        )

    def __repr__(self) -> str:
        return (
            f"MaskFiller({str(self.info.path)!r}, precision={self.info.precision!r}, provider={self.info.provider!r})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back; calls after this raise InputError."""
        del self._session

    def __getattr__(self, name: str) -> Any:
        if name == "_session":
            raise InputError("this MaskFiller is closed; open a new one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, special ones included; `info.max_length` is the most there may be.

        Args:
            text: Any text, with or without a mask.
        """
        return self._encoder.count(text)

    def fill(self, text: str, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> FillResult:
        """Fill the masks of one text, each on its own.

        Args:
            text: A text with one or more masks, written `[MASK]`, `<mask>` or as the model's own.
            top_k: Predictions a mask; with targets, at most as many as there are targets.
            targets: Words to choose among, each one token of the model; scores stay over the whole vocabulary.

        Returns:
            One result a mask; scores are probabilities, `logprob` their natural logarithm.

        Raises:
            InputError: The text or an argument cannot be used.
        """
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; give a string, or a list to fill_batch")
        return self.fill_batch([text], top_k=top_k, targets=targets)[0]

    def fill_batch(
        self, texts: Sequence[str], *, top_k: int = 5, targets: str | Sequence[str] | None = None
    ) -> list[FillResult]:
        """Fill the masks of many texts; texts of like length share a run of the model.

        Args:
            texts: The texts, as for `fill`.
            top_k: Predictions a mask.
            targets: Words to choose among.

        Returns:
            One result a text, in the order given; an empty list for no texts.

        Raises:
            InputError: A text or an argument cannot be used; the message says which.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"texts is a {type(texts).__name__}; give a list of strings, or one string to fill")
        target_ids = None
        if targets is not None:
            target_ids = self._encoder.find_targets([targets] if isinstance(targets, str) else targets)
        self._check_top_k(top_k)
        encoded = self._encoder.encode(texts)
        answers = self._predict(encoded, top_k, target_ids)
        return [self._result(*pair) for pair in zip(encoded, answers, strict=True)]

    def __call__(self, inputs: str | list[str], *, top_k: int = 5, targets: str | list[str] | None = None) -> list[Any]:
        """Answer exactly as `transformers.pipeline("fill-mask")` does.

        Args:
            inputs: One text or a list; a list of one text is answered as that text alone.
            top_k: Predictions a mask, capped to the number of targets.
            targets: Words to choose among; of one that is no token, its first piece is taken, with a warning.

        Returns:
            For one text with one mask, a list of dictionaries with `score`, `token`, `token_str` and
            `sequence`; with several masks, such a list for each mask; for a list of texts, one of these each.

        Raises:
            InputError: A text or an argument cannot be used. It is a ValueError.
        """
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list):
            raise InputError(f"inputs is a {type(inputs).__name__}; give a string or a list of strings")
        target_ids = None
        if targets is not None:
            target_ids, replaced = self._encoder.first_pieces([targets] if isinstance(targets, str) else targets)
            for target, piece in replaced.items():
                action = "it is left out" if piece is None else f"its first piece {piece!r} is taken"
                logger.warning("the target %r is no token of this model: %s", target, action)
        self._check_top_k(top_k)
        encoded = self._encoder.encode(texts)
        answers = self._predict(encoded, top_k, target_ids)
        results = [self._as_pipeline(*pair) for pair in zip(encoded, answers, strict=True)]
        return results[0] if len(results) == 1 else results

    def _check_top_k(self, top_k: int) -> None:
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= self._manifest.vocab_size:
            raise InputError(
                f"top_k is {top_k!r}; it must be from 1 to {self._manifest.vocab_size}, the size of the vocabulary"
            )

    def _predict(
        self, texts: Sequence[EncodedText], top_k: int, target_ids: list[int] | None
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Return for each text the token ids and log-probabilities, both [masks, k], best first."""
        answers: list[Any] = [None] * len(texts)
        for batch in _batches([len(text.ids) for text in texts], same=self._manifest.mixes_padding):
            chosen = [texts[row] for row in batch]
            ids, logprobs = self._run(chosen, top_k, target_ids)
            ends = np.cumsum([len(text.positions) for text in chosen])[:-1]
            for row, *answer in zip(batch, np.split(ids, ends), np.split(logprobs, ends), strict=True):
                answers[row] = tuple(answer)
        return answers

    def _run(
        self, texts: Sequence[EncodedText], top_k: int, target_ids: list[int] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        length = max(len(text.ids) for text in texts)
        input_ids = np.full((len(texts), length), self._manifest.pad_id, np.int64)
        attention_mask = np.zeros((len(texts), length), np.int64)
        for row, text in enumerate(texts):
            input_ids[row, : len(text.ids)] = text.ids
            attention_mask[row, : len(text.ids)] = 1
        slots = max(len(text.positions) for text in texts)
        # A text with fewer masks than another repeats its first; what comes of that is not asked for.
        positions = [
            [row * length + position for position in (*text.positions, *text.positions[:1] * slots)[:slots]]
            for row, text in enumerate(texts)
        ]
        rows = [row * slots + slot for row, text in enumerate(texts) for slot in range(len(text.positions))]
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": np.zeros_like(input_ids)}
        feeds = {name: feeds[name] for name in self._manifest.inputs}
        feeds["mask_positions"] = np.array(positions, np.int64)
        feeds["mask_rows"] = np.array(rows, np.int64)
        candidates = target_ids or []
        feeds["k"] = np.array([0 if candidates else top_k], np.int64)
        feeds["candidates"] = np.tile(np.array(candidates, np.int64), (len(rows), 1))
        if not candidates:
            ids, logprobs = self._session.run(["top_ids", "top_logprobs"], feeds)
            return ids, logprobs
        (logprobs,) = self._session.run(["candidate_logprobs"], feeds)
        order = np.argsort(-logprobs, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(feeds["candidates"], order, 1), np.take_along_axis(logprobs, order, 1)

    def _result(self, text: EncodedText, answer: tuple[NDArray[np.int64], NDArray[np.float32]]) -> FillResult:
        masks = []
        for position, span, ids, logprobs in zip(
            text.positions, text.spans, *(each.tolist() for each in answer), strict=True
        ):
            predictions = tuple(
                Prediction(
                    token=self._encoder.token(token_id),
                    token_id=token_id,
                    text=self._encoder.word(token_id),
                    score=float(np.exp(logprob)),
                    logprob=logprob,
                    sequence=self._encoder.splice(text.text, span, token_id),
                )
                for token_id, logprob in zip(ids, logprobs, strict=True)
            )
            masks.append(MaskResult(position, span, predictions))
        return FillResult(text.text, tuple(masks))

    def _as_pipeline(self, text: EncodedText, answer: tuple[NDArray[np.int64], NDArray[np.float32]]) -> list[Any]:
        single = len(text.positions) == 1
        rows = []
        for position, ids, scores in zip(text.positions, answer[0].tolist(), np.exp(answer[1]).tolist(), strict=True):
            row = []
            for token_id, score in zip(ids, scores, strict=True):
                tokens = [*text.ids[:position], token_id, *text.ids[position + 1 :]]
                tokens = [token for token in tokens if token != self._manifest.pad_id]
                row.append(
                    {
                        "score": score,
                        "token": token_id,
                        "token_str": self._encoder.decode([token_id], skip_special_tokens=False),
                        # The pipeline keeps special tokens only where other masks must stay visible.
                        "sequence": self._encoder.decode(tokens, skip_special_tokens=single),
                    }
                )
            rows.append(row)
        return rows[0] if single else rows


def _batches(lengths: Sequence[int], *, same: bool = False) -> Iterator[list[int]]:
    """Yield row numbers, grouped by like (or the same) length so that no batch exceeds the budget with its padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        longer = batch and lengths[row] > lengths[batch[0]]
        if batch and (lengths[row] * (len(batch) + 1) > TOKEN_BUDGET or (same and longer)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _shipped_model() -> Path:
    folder = Path(str(resources.files("mlm_infer").joinpath("resources/english-small")))
    if not folder.is_dir():
        raise BundleError("this installation lacks the small model; install it again, or name a bundle")
    return folder


def _choose_precision(manifest: Manifest, precision: str, kind: str, folder: Path) -> str:
    held = ", ".join(manifest.models)
    if precision != "auto":
        if precision not in manifest.models:
            raise InputError(f"precision is {precision!r}, but {folder} holds {held}; export it again, or take 'auto'")
        if precision == "int8" and kind == "cuda":
            raise DeviceError("int8 bundles are made for the CPU; take precision='fp32' with device='cuda'")
        return precision
    order: tuple[Literal["fp32", "int8"], ...] = ("fp32",) if kind == "cuda" else ("int8", "fp32")
    found = next((each for each in order if each in manifest.models), None)
    if found is None:
        raise DeviceError(f"{folder} holds {held}, nothing for {kind}; take device='cpu', or export it again with fp32")
    made_for = manifest.models[found].cpu
    if made_for in ("avx512_vnni", "arm64") and cpu_kind() in ("avx2", "avx512"):
        logger.warning(
            "%s holds 8-bit weights for %s, whose products overflow on %s: export it again here",
            folder,
            made_for,
            cpu_kind(),
        )
    return found
