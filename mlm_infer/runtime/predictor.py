"""Token sequences with masks in, log-probabilities out, in batches of like length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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

__all__ = ["TOKEN_BUDGET", "Predictor", "Query", "Tokens"]

TOKEN_BUDGET = 1024
"""Most tokens, padding included, that one run of the model takes, unless one text alone has more.

More would not fit a processor's cache; fewer would leave the products small."""

_MOST = 0.01
"""Largest logarithm of a probability, rounding included."""

_EXPORT_AGAIN = "it is broken, or was not made by mlm-export: export it again"


class Tokens(Protocol):
    """A token sequence with masks."""

    @property
    def ids(self) -> Sequence[int] | NDArray[np.int64]:
        """Token ids, special tokens included."""

    @property
    def positions(self) -> Sequence[int]:
        """Indices of the masks that are asked about among the ids; at least one."""


@dataclass(frozen=True, slots=True)
class Query:
    """The plainest `Tokens`."""

    ids: Sequence[int] | NDArray[np.int64]
    positions: Sequence[int]


class Predictor:
    """Asks a model about masks. Safe to share between threads if its session is.

    Args:
        session: Runs the serving graph.
        open_again: Opens it once more, in a process that was forked.
        manifest: Says what the graph takes.
        path: The bundle, for messages.
    """

    def __init__(self, session: Backend, open_again: Callable[[], Backend], manifest: Manifest, path: Path) -> None:
        self._opened: tuple[int, Backend] | None = (generation(), session)
        self._open_again = open_again
        self._manifest = manifest
        self._path = path
        self._width = manifest.vocab_size

    def _session(self) -> Backend:
        """Return the session of this process: the threads of the parent's do not come along over a fork."""
        opened = self._opened
        if opened is not None and opened[0] != generation():
            with no_forks():
                opened = self._opened
                if opened is not None and opened[0] != generation():
                    opened = self._opened = (generation(), self._open_again())
        if opened is None:
            raise InputError("this MaskFiller is closed; open a new one")
        return opened[1]

    def close(self) -> None:
        """Give the model's memory back, once the runs that have begun are over; no other begins."""
        with no_forks():
            self._opened = None

    def check(self, query: Tokens) -> None:
        """Run the model once, and hold what it gives against what the manifest says of it.

        Args:
            query: A short text.

        Raises:
            BundleError: It cannot be run, or gives something else.
        """
        feeds = self._feeds([query]) | {"k": np.array([1], np.int64)}
        feeds["candidates"] = np.zeros((len(feeds["mask_rows"]), 1), np.int64)
        (logits,) = self._session().run(["logits"], feeds)
        width = logits.shape[-1] if logits.ndim else 0
        # What others export may be wider than its settings say.
        if width < self._width or (width > self._width and not isinstance(self._manifest, ForeignManifest)):
            raise BundleError(
                f"{self._path}: its model gives logits of the shape {list(logits.shape)}, and vocab_size is "
                f"{self._width}; {_EXPORT_AGAIN}"
            )
        self._width = width
        self._run(["top_ids", "top_logprobs", "candidate_logprobs"], feeds)

    def _run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model, and check what it gives: a graph may be anybody's, and NaN is no answer."""
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
            right = (values >= 0) & (values < self._width) if name == "top_ids" else values <= _MOST
            if not right.all():
                wrong = values[~right][0]
                meant = f"a token from 0 to {self._width - 1}" if name == "top_ids" else "a log-probability"
                raise BundleError(f"{self._path}: its model gives {wrong} in {name}, not {meant}; {_EXPORT_AGAIN}")
        return found

    def top(self, queries: Sequence[Tokens], k: int) -> list[list[Answer]]:
        """Return for each query and mask its k best tokens, or all where there are fewer."""
        answers: list[list[Answer]] = [[] for _ in queries]
        k = min(k, self._manifest.vocab_size)
        for batch in _batches(queries, same=self._manifest.mixes_padding):
            feeds = self._feeds([queries[row] for row in batch]) | {"k": np.array([k], np.int64)}
            feeds["candidates"] = np.empty((len(feeds["mask_rows"]), 0), np.int64)
            ids, logprobs = self._run(["top_ids", "top_logprobs"], feeds)
            rows = zip(ids, logprobs, strict=True)
            for row in batch:
                answers[row] = [next(rows) for _ in queries[row].positions]
        return answers

    def candidates(
        self, queries: Sequence[Tokens], candidates: Sequence[Sequence[NDArray[np.int64]]]
    ) -> list[list[NDArray[np.float32]]]:
        """Return the log-probabilities of given tokens over the whole vocabulary.

        Args:
            queries: The token sequences.
            candidates: For each query and each of its masks the token ids asked for, [n]; n may differ.

        Returns:
            For each query and mask the log-probabilities of its candidates, [n].
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
        length = max(len(query.ids) for query in queries)
        input_ids = np.full((len(queries), length), self._manifest.pad_id, np.int64)
        attention_mask = np.zeros((len(queries), length), np.int64)
        for row, query in enumerate(queries):
            input_ids[row, : len(query.ids)] = query.ids
            attention_mask[row, : len(query.ids)] = 1
        slots = max(len(query.positions) for query in queries)
        # A query with fewer masks than another repeats its first; what comes of that is not asked for.
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
    """Return rows of ids as one array; a shorter row ends in zeros, whose answers are not asked for."""
    if all(row is rows[0] for row in rows):
        return np.tile(rows[0], (len(rows), 1))
    stacked = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ids in enumerate(rows):
        stacked[row, : len(ids)] = ids
    return stacked


def _batches(queries: Sequence[Tokens], *, same: bool) -> Iterator[list[int]]:
    """Yield indices, grouped by like (or the same) length so that no batch exceeds the budget with its padding."""
    lengths = [len(query.ids) for query in queries]
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        longer = batch and lengths[row] > lengths[batch[0]]
        if batch and (lengths[row] * (len(batch) + 1) > TOKEN_BUDGET or (same and longer)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
