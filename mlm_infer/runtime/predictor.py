"""Turns token sequences with masks into log-probabilities, in batches of similar length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlm_infer.bundle.manifest import ForeignManifest, Manifest
from mlm_infer.errors import BundleError, InputError

from .backend import Backend
from .best import Answer
from .forks import generation, no_forks

__all__ = ["TOKEN_BUDGET", "Predictor", "Query", "Tokens", "Watch", "watch"]

TOKEN_BUDGET = 1024
"""Maximum number of tokens in one run of the model, padding included; a longer text runs alone.

With more tokens the activations do not fit the processor's cache; with fewer the matmuls are too small to be fast."""

_MOST = 0.01
"""Largest valid log-probability: zero, plus a margin for rounding."""

_EXPORT_AGAIN = "it is broken, or was not made by mlm-export: export it again"


Watch = Callable[[int, int], AbstractContextManager[object]]
"""Called with the numbers of sequences and of tokens, padding not counted; what it returns is entered around a run."""

watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
"""Around each run of any model in this context. It measures the runs, and ends a long search by an exception."""


class Tokens(Protocol):
    """A token sequence with masks."""

    @property
    def ids(self) -> Sequence[int] | NDArray[np.int64]:
        """Token ids, special tokens included."""

    @property
    def positions(self) -> Sequence[int]:
        """Indices of the queried masks among the ids; at least one."""


@dataclass(frozen=True, slots=True)
class Query:
    """The minimal implementation of `Tokens`."""

    ids: Sequence[int] | NDArray[np.int64]
    positions: Sequence[int]


class Predictor:
    """Runs a model on batches of masked token sequences. Thread-safe if its session is.

    Args:
        session: Runs the serving graph.
        open_again: Opens the session again in a forked process.
        manifest: Describes the graph's inputs.
        path: The bundle, for messages.
    """

    def __init__(self, session: Backend, open_again: Callable[[], Backend], manifest: Manifest, path: Path) -> None:
        self._opened: tuple[int, Backend] | None = (generation(), session)
        self._open_again = open_again
        self._manifest = manifest
        self._path = path
        self._width = manifest.vocab_size

    def _session(self) -> Backend:
        """Return this process's session; a forked process opens its own, since it lacks the parent's threads."""
        opened = self._opened
        if opened is not None and opened[0] != generation():
            with no_forks():
                # Another thread may have opened it, or closed it, while this one waited for the lock.
                opened = self._opened
                if opened is not None and opened[0] != generation():
                    opened = self._opened = (generation(), self._open_again())
        if opened is None:
            raise InputError("this MaskFiller is closed; open a new one")
        return opened[1]

    def close(self) -> None:
        """Release the model: memory is freed when the current runs end, and no new run starts."""
        with no_forks():
            # Running calls hold their own reference to the session.
            self._opened = None

    def check(self, query: Tokens) -> None:
        """Run the model once and check its outputs against the manifest.

        Args:
            query: A short text.

        Raises:
            BundleError: The model cannot be run, or its outputs differ from the manifest.
        """
        feeds = self._feeds([query]) | {"k": np.array([1], np.int64)}
        feeds["candidates"] = np.zeros((len(feeds["mask_rows"]), 1), np.int64)
        (logits,) = self._session().run(["logits"], feeds)
        width = logits.shape[-1] if logits.ndim else 0
        # The head of a third-party export may be wider than the vocabulary size in its settings.
        if width < self._width or (width > self._width and not isinstance(self._manifest, ForeignManifest)):
            raise BundleError(
                f"{self._path}: its model gives logits of the shape {list(logits.shape)}, and vocab_size is "
                f"{self._width}; {_EXPORT_AGAIN}"
            )
        self._width = width
        self._run(["top_ids", "top_logprobs", "candidate_logprobs"], feeds)

    def _run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model and check its outputs: a graph may come from anybody, and NaN must never reach a caller."""
        watched, ids = watch.get(), feeds["input_ids"]
        # Most callers are not watched, and need no count.
        with nullcontext() if watched is None else watched(len(ids), int((ids != self._manifest.pad_id).sum())):
            found = self._session().run(outputs, feeds)
        widths = {"candidate_logprobs": feeds["candidates"].shape[1]}
        for name, values in zip(outputs, found, strict=True):
            shape = (len(feeds["mask_rows"]), widths.get(name, int(feeds["k"][0])))
            kind = np.dtype(np.int64 if name == "top_ids" else np.float32)
            if values.shape != shape or values.dtype != kind:
                raise BundleError(
                    f"{self._path}: its model gives {name} as {values.dtype} {list(values.shape)}, not as {kind} "
                    f"{list(shape)}; {_EXPORT_AGAIN}"
                )
            # A comparison with NaN is false, so this rejects NaN as well.
            right = (values >= 0) & (values < self._width) if name == "top_ids" else values <= _MOST
            if not right.all():
                wrong = values[~right][0]
                meant = f"a token from 0 to {self._width - 1}" if name == "top_ids" else "a log-probability"
                raise BundleError(f"{self._path}: its model gives {wrong} in {name}, not {meant}; {_EXPORT_AGAIN}")
        return found

    def top(self, queries: Sequence[Tokens], k: int) -> list[list[Answer]]:
        """Return the top-k tokens for each query and mask, or all tokens if there are fewer."""
        answers: list[list[Answer]] = [[] for _ in queries]
        k = min(k, self._manifest.vocab_size)
        for batch in _batches(queries, same=self._manifest.mixes_padding):
            feeds = self._feeds([queries[row] for row in batch]) | {"k": np.array([k], np.int64)}
            # The graph always takes candidates; none are wanted here.
            feeds["candidates"] = np.empty((len(feeds["mask_rows"]), 0), np.int64)
            ids, logprobs = self._run(["top_ids", "top_logprobs"], feeds)
            rows = zip(ids, logprobs, strict=True)
            for row in batch:
                answers[row] = [next(rows) for _ in queries[row].positions]
        return answers

    def candidates(
        self, queries: Sequence[Tokens], candidates: Sequence[Sequence[NDArray[np.int64]]]
    ) -> list[list[NDArray[np.float32]]]:
        """Return the log-probabilities of given tokens, normalized over the whole vocabulary.

        Args:
            queries: The token sequences.
            candidates: For each query and each of its masks, the token ids to look up, [n]; n may differ.

        Returns:
            For each query and mask, the log-probabilities of its candidates, [n].
        """
        answers: list[list[NDArray[np.float32]]] = [[] for _ in queries]
        for batch in _batches(queries, same=self._manifest.mixes_padding):
            feeds = self._feeds([queries[row] for row in batch]) | {"k": np.array([0], np.int64)}
            wanted = [ids for row in batch for ids in candidates[row]]
            feeds["candidates"] = _stack(wanted)
            (found,) = self._run(["candidate_logprobs"], feeds)
            rows = iter([logprobs[: len(ids)] for logprobs, ids in zip(found, wanted, strict=True)])
            for row in batch:
                answers[row] = [next(rows) for _ in candidates[row]]
        return answers

    def _feeds(self, queries: Sequence[Tokens]) -> dict[str, NDArray[Any]]:
        """Return the graph's inputs for one batch.

        The graph selects rows twice. `mask_positions` [batch, slots] are flat positions in the batch; most of the
        last layer runs at these. `mask_rows` [rows] are flat indices into batch * slots; the head runs at these. The
        first selection is rectangular so that attention can still pair each query with the keys of its own text.
        """
        length = max(len(query.ids) for query in queries)
        input_ids = np.full((len(queries), length), self._manifest.pad_id, np.int64)
        attention_mask = np.zeros((len(queries), length), np.int64)
        for row, query in enumerate(queries):
            input_ids[row, : len(query.ids)] = query.ids
            attention_mask[row, : len(query.ids)] = 1
        slots = max(len(query.positions) for query in queries)
        # A query with fewer masks than the others repeats its first one; `mask_rows` omits the repetitions.
        positions = np.empty((len(queries), slots), np.int64)
        for row, query in enumerate(queries):
            positions[row] = row * length + query.positions[0]
            positions[row, : len(query.positions)] = row * length + np.asarray(query.positions)
        rows = [row * slots + slot for row, query in enumerate(queries) for slot in range(len(query.positions))]
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": np.zeros_like(input_ids)}
        feeds = {name: feeds[name] for name in self._manifest.inputs}
        feeds["mask_positions"] = positions
        feeds["mask_rows"] = np.array(rows, np.int64)
        return feeds


def _stack(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return rows of ids as one array; shorter rows are padded with zeros, whose results are discarded."""
    # Most often every mask has the same candidates, and there may be ten thousand of them.
    if all(row is rows[0] for row in rows):
        return np.tile(rows[0], (len(rows), 1))
    stacked = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ids in enumerate(rows):
        stacked[row, : len(ids)] = ids
    return stacked


def _batches(queries: Sequence[Tokens], *, same: bool) -> Iterator[list[int]]:
    """Yield batches of indices within the token budget.

    Args:
        queries: The token sequences.
        same: Whether only sequences of equal length may share a batch.
    """
    lengths = [len(query.ids) for query in queries]
    batch: list[int] = []
    # Sorted by length, neighbours need little padding, and the newest is always the longest of its batch: the padded
    # size is its length times the number of rows.
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        longer = batch and lengths[row] > lengths[batch[0]]
        if batch and (lengths[row] * (len(batch) + 1) > TOKEN_BUDGET or (same and longer)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
