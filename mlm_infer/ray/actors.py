"""What runs on the workers: callable classes for `map_batches`, and the one that makes whole parts."""

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import fsspec
import pyarrow
import ray
from pyarrow import parquet
from ray.data.block import BlockAccessor

from mlm_infer.errors import BundleError, DataError, MlmInferError, first_line
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords
from mlm_infer.tasks.score import ScoreMethod
from mlm_infer.text.encoder import LongText

from .files import Part
from .questions import FillQuestion, Question, ScoreQuestion
from .rows import read_part

__all__ = ["UNFINISHED", "FillTexts", "Job", "PartMaker", "PartReport", "ScoreTexts", "identity_of"]

UNFINISHED = ".unfinished"
"""How the name of a part ends until it is whole; it begins with an underscore, which readers of folders skip."""

_GROUP = 1 << 24
"""Bytes of results that are written together, as a row group."""


def _open(model: str | None, precision: str, backend: str) -> MaskFiller:
    """Open a model on the resources of this actor: a thread for each of its CPUs, and its GPU if it has one."""
    own = ray.is_initialized() and ray.get_runtime_context().get_actor_id()
    resources = ray.get_runtime_context().get_assigned_resources() if own else {}
    return MaskFiller(
        model,
        device="cuda" if resources.get("GPU") else "cpu" if own else "auto",
        precision=precision,
        backend=backend,
        threads=max(1, int(resources.get("CPU", 1))) if own else None,
    )


class _Texts:
    """A callable class for `map_batches`: adds columns to batches."""

    def __init__(self, question: Question, model: str | None, column: str, precision: str) -> None:
        self._question, self._column = question, column
        self._filler = _open(model, precision, "auto")
        question.check(self._filler)

    def __call__(self, batch: Any) -> pyarrow.Table:
        table = batch if isinstance(batch, pyarrow.Table) else BlockAccessor.batch_to_arrow_block(batch)
        return self._question.ask(self._filler, table, self._column)


class FillTexts(_Texts):
    """Fills the masks of a column of texts, as a callable class for `ray.data.Dataset.map_batches`.

    Each actor opens the model with a thread for each CPU of its `num_cpus`, and on the GPU if it has one (`num_gpus`).
    The columns `masks` and `error` are added to each batch; one of them is null in each row. Give `batch_format=
    "pyarrow"`, which needs no conversion.

    Args:
        model: As for `MaskFiller`; a folder must be there on every machine.
        column: The column of the texts.
        precision: As for `MaskFiller`.
        **options: As for `MaskFiller.fill`.

    Raises:
        InputError: An option is invalid.
        BundleError: The model cannot be opened.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        column: str = "text",
        precision: str = "auto",
        **options: Unpack[FillKeywords],
    ) -> None:
        super().__init__(FillQuestion(options), model, column, precision)


class ScoreTexts(_Texts):
    """Scores a column of texts by their pseudo-log-likelihood, as a callable class for `map_batches`.

    The columns `logprob`, `pseudo_perplexity`, `tokens` and `error` are added. As `FillTexts` otherwise.

    Args:
        model: As for `MaskFiller`; a folder must be there on every machine.
        column: The column of the texts.
        precision: As for `MaskFiller`.
        method: As for `MaskFiller.score`.
        long_text: As for `MaskFiller.score`.

    Raises:
        InputError: An option is invalid.
        BundleError: The model cannot be opened.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        column: str = "text",
        precision: str = "auto",
        method: ScoreMethod = "pll",
        long_text: LongText = "error",
    ) -> None:
        super().__init__(ScoreQuestion(method, long_text), model, column, precision)


@dataclass(frozen=True, slots=True)
class Job:
    """What an actor must know to make parts.

    Attributes:
        question: What is asked.
        model: As for `MaskFiller`.
        column: The column of the texts.
        precision: As for `MaskFiller`.
        backend: As for `MaskFiller`.
        files: The hashes of the files of the model, which must be the same everywhere.
        output: The folder of the results, as a URL of fsspec.
    """

    question: Question
    model: str | None
    column: str
    precision: str
    backend: str
    files: dict[str, str]
    output: str


class PartReport(TypedDict):
    """How a part went.

    Attributes:
        rows: Rows written.
        wrong: How many of them have an error.
        began: When, in seconds since the epoch.
        ended: When.
        broken: Why its rows could not be read; empty otherwise.
        failed: Why no further part can be made; empty otherwise.
    """

    rows: int
    wrong: int
    began: float
    ended: float
    broken: str
    failed: str


def identity_of(filler: MaskFiller) -> dict[str, str]:
    """Return the hashes of the files of a model."""
    return {name: each.sha256 for name, each in sorted(filler.model.manifest.files.items())}


class PartMaker:
    """Makes parts: reads their rows, asks the model, and writes their results.

    Args:
        job: What to do.
        parts: The parts of the run.

    Raises:
        BundleError: The model is another one on this machine.
    """

    def __init__(self, job: Job, parts: Sequence[Part]) -> None:
        self._job, self._parts = job, parts
        self._filler = _open(job.model, job.precision, job.backend)
        if identity_of(self._filler) != job.files:
            raise BundleError(
                f"{self._filler.info.path} on {os.uname().nodename} is another model than where the run began; "
                "give all machines the same files"
            )

    def __call__(self, row: dict[str, Any]) -> PartReport:
        """Make the part with the number `row["number"]`; errors stand in the report: one bad file ends no run."""
        part = self._parts[row["number"]]
        report = PartReport(rows=0, wrong=0, began=time.time(), ended=0.0, broken="", failed="")
        try:
            report["rows"], report["wrong"] = self._make(part)
        except DataError as error:
            report["broken"] = str(error)
        except (MlmInferError, OSError, MemoryError, pyarrow.ArrowException) as error:
            report["failed"] = f"{part}: {first_line(error)}"
        report["ended"] = time.time()
        return report

    def _make(self, part: Part) -> tuple[int, int]:
        """Write the file of a part under its own name when it is whole; return its rows, and those with errors."""
        system, folder = fsspec.core.url_to_fs(self._job.output)
        # Two workers may make the same part, if a machine was taken for dead. The contents are the same.
        path, temporary = f"{folder}/{part.name}", f"{folder}/_{uuid.uuid4().hex}{UNFINISHED}"
        rows = wrong = 0
        try:
            with system.open(temporary, "wb") as stream:
                writer = None
                for table in self._grouped(part):
                    writer = writer or parquet.ParquetWriter(stream, table.schema)
                    writer.write_table(table)
                    rows, wrong = rows + table.num_rows, wrong + table.num_rows - table.column("error").null_count
                if writer is not None:
                    writer.close()
                # A name that outlives a power failure must not lead to an empty file.
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
                    os.fsync(stream.fileno())
            system.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                system.rm(temporary)
            raise
        return rows, wrong

    def _grouped(self, part: Part) -> Any:
        """Yield tables of results, each large enough for a row group."""
        held: list[pyarrow.Table] = []
        done = 0
        for table, wrong in read_part(part):
            held.append(self._answered(table, wrong))
            done += table.num_rows
            if sum(each.nbytes for each in held) >= _GROUP:
                yield pyarrow.concat_tables(held)
                held = []
        if done != part.rows:
            raise DataError(f"{part}: {done} rows were found; the file has changed since the run began")
        if held:
            yield pyarrow.concat_tables(held)

    def _answered(self, table: pyarrow.Table, wrong: dict[int, str]) -> pyarrow.Table:
        answered = self._job.question.ask(self._filler, table, self._job.column)
        if not wrong:
            return answered
        # A row that could not be read keeps its place, with its own error in place of an answer.
        for name in self._job.question.columns:
            values = answered.column(name).to_pylist()
            for row, why in wrong.items():
                values[row] = why if name == "error" else None
            place = answered.column_names.index(name)
            answered = answered.set_column(place, name, [pyarrow.array(values, answered.schema.types[place])])
        return answered
