"""Fills or scores whole folders of files on Ray: in parts that appear whole, so that a run can be resumed."""

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.data

from mlm_infer.checks import whole_number
from mlm_infer.errors import BundleError, DataError, InputError, MlmInferError
from mlm_infer.filler import MaskFiller

from .actors import Job, PartMaker, PartReport, identity_of
from .cluster import cluster
from .files import InputFile, Part, find_files
from .output import Output
from .questions import FillQuestion, Question
from .rows import split_file

__all__ = ["BulkReport", "run_files"]


@dataclass(slots=True)
class BulkReport:
    """What a run did.

    Attributes:
        parts: Parts written.
        rows: Rows in them.
        wrong: How many of these have an error in place of an answer.
        seconds: From the beginning of the first part to the end of the last.
        before: Parts that an earlier run had written.
        broken: A line for each file, or part of one, that could not be read.
    """

    parts: int = 0
    rows: int = 0
    wrong: int = 0
    seconds: float = 0.0
    before: int = 0
    broken: list[str] = field(default_factory=list)


def run_files(
    inputs: Sequence[str],
    output: str,
    *,
    question: Question | None = None,
    model: str | None = None,
    column: str = "text",
    precision: str = "auto",
    backend: str = "auto",
    threads: int = 1,
    gpu: bool = False,
    actors: int | None = None,
    address: str | None = None,
    rows_per_part: int = 8192,
    resume: bool = False,
) -> BulkReport:
    """Ask a model about each row of files, on Ray, and write the rows with the answers as parquet files.

    Long because every option is documented in place.

    Each part of an input (`rows_per_part` consecutive rows) becomes one file of the output, whose name follows from the
    input and which appears when it is whole. A worker or a machine that ends costs the parts it was making, which
    another one makes again. If all ends, the same call with `resume` makes the missing parts.

    Args:
        inputs: Files, folders and patterns of parquet, csv and jsonl files, as paths or URLs of fsspec. All machines
            must reach them under the same name; the same holds for the output and the model.
        output: Folder of the results.
        question: What to ask: `FillQuestion` with the options of `MaskFiller.fill` (None: the defaults), or
            `ScoreQuestion`.
        model: As for `MaskFiller`.
        column: The column of the texts; the others travel along.
        precision: As for `MaskFiller`.
        backend: As for `MaskFiller`.
        threads: Threads, and so CPUs, of an actor.
        gpu: Give each actor a GPU.
        actors: Number of actors, each with the model in memory; None takes as many as there are CPUs, or GPUs, for.
        address: Address of a Ray cluster, as for `ray.init`; None takes `RAY_ADDRESS`, or starts a cluster on this
            machine. A running connection is used as it is.
        rows_per_part: Rows of a part.
        resume: Continue a run that was interrupted.

    Raises:
        InputError: An argument is invalid, or the output belongs to another run.
        OutputExistsError: The output exists, and `resume` is not set.
        DataError: There is nothing to read, or no file could be read.
        BundleError: The model cannot be opened, here or on another machine.
        MlmInferError: A worker could not go on, such as on a full disk.
    """
    question = question or FillQuestion()
    threads = whole_number("threads", threads, least=1, most=1024)
    rows_per_part = whole_number("rows_per_part", rows_per_part, least=1, most=1_000_000_000)
    if actors is not None:
        actors = whole_number("actors", actors, least=1, most=100_000)
    files = find_files(inputs)
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())
    # On this machine's CPU, whatever the workers have: it checks the options before anything starts.
    with MaskFiller(model, device="cpu", precision="auto" if gpu else precision, backend=backend) as filler:
        question.check(filler)
        hashes = identity_of(filler)
    results = Output(output)
    results.check_apart(inputs)
    results.take(
        {
            "question": type(question).__name__,
            "options": question.identity(),
            "column": column,
            "model": hashes,
            "precision": precision,
            "backend": backend,
            "rows_per_part": rows_per_part,
        },
        resume=resume,
    )
    results.check_versions(files)
    job = Job(question, model, column, precision, backend, hashes, results.url)
    with cluster(address):
        report = BulkReport()
        parts = list(_split(files, column, question.columns, rows_per_part, report))
        done = results.parts()
        missing = [part for part in parts if part.name not in done]
        report.before = len(parts) - len(missing)
        if missing:
            _make(missing, job, report, actors=actors, threads=threads, gpu=gpu)
    if not parts and report.broken:
        raise DataError(report.broken[0])
    if not report.broken:
        results.tidy()
    return report


def _split(
    files: Sequence[InputFile], column: str, new: Sequence[str], rows: int, report: BulkReport
) -> Iterator[Part]:
    """Yield the parts of all files; note files that cannot be read."""

    def split(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"parts": pickle.dumps(split_file(files[row["number"]], column, new, rows)), "broken": ""}
        except DataError as error:
            return {"parts": b"", "broken": str(error)}

    for row in _numbers(len(files)).map(split).iter_rows():
        if row["broken"]:
            report.broken.append(row["broken"])
        else:
            yield from pickle.loads(row["parts"])  # noqa: S301 (our own workers wrote it)


def _numbers(count: int) -> Any:
    """Return a data set of numbers, each of which is a task of its own."""
    return ray.data.from_items([{"number": number} for number in range(count)], override_num_blocks=count)


def _make(parts: Sequence[Part], job: Job, report: BulkReport, *, actors: int | None, threads: int, gpu: bool) -> None:
    """Make parts on a pool of actors; note what they did."""
    total = ray.cluster_resources()
    room = int(total.get("GPU", 0)) if gpu else int(total.get("CPU", 1) // threads)
    if room < 1:
        raise InputError(
            "the cluster has no GPU; leave out --device cuda"
            if gpu
            else f"an actor of {threads} threads does not fit the cluster, whose machines have "
            f"{int(total.get('CPU', 0))} CPUs together; lower --threads"
        )
    rows = _numbers(len(parts)).map(
        PartMaker,
        fn_constructor_args=(job, parts),
        compute=ray.data.ActorPoolStrategy(size=min(actors or room, len(parts))),
        num_cpus=threads,
        num_gpus=1 if gpu else None,
    )
    began, ended = math.inf, 0.0
    try:
        for row in rows.iter_rows():
            done: PartReport = row
            if done["failed"]:
                raise MlmInferError(f"{done['failed']}; the same command with --resume goes on from here")
            if done["broken"]:
                report.broken.append(done["broken"])
                continue
            report.parts += 1
            report.rows += done["rows"]
            report.wrong += done["wrong"]
            began, ended = min(began, done["began"]), max(ended, done["ended"])
            report.seconds = ended - began
    except ray.exceptions.RayError as error:
        raise BundleError(f"a worker could not begin: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Return the last line of what a worker told, which is the error itself."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
