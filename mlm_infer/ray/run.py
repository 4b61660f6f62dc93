"""Fills or scores whole folders of files on Ray: in parts that appear whole, so that a run can be resumed."""

import json
import os
import pickle
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.data

from mlm_infer.checks import whole_number
from mlm_infer.errors import BundleError, DataError, InputError, MlmInferError, OutputExistsError, first_line
from mlm_infer.filler import MaskFiller
from mlm_infer.runtime.cpu import available_cpus

from .actors import UNFINISHED, Job, PartMaker, PartReport, identity_of
from .files import InputFile, Part, find_files
from .questions import FillQuestion, Question
from .rows import split_file

__all__ = ["BulkReport", "run_files"]

_RECORD = "_mlm_fill.json"
"""Says which run a folder of results belongs to."""

_PART = re.compile(r"(?P<stem>.+-[0-9a-f]{12})-(?P<version>[0-9a-f]{12})-\d{12}\.parquet")

_OBJECTS = 200_000_000
"""Bytes of Ray's object store on this machine: only names of parts go through it."""


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
    results = _Output(output)
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
    with _cluster(address):
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


class _Output:
    """The folder of the results."""

    def __init__(self, output: str) -> None:
        self._system, self._path = fsspec.core.url_to_fs(output)
        self.url = self._system.unstrip_protocol(self._path)

    def take(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Make the folder, or check that it belongs to this run."""
        system, record = self._system, f"{self._path}/{_RECORD}"
        wanted = json.loads(json.dumps({"mlm-fill": 1} | identity))
        if not system.exists(record):
            if system.exists(self._path) and (not system.isdir(self._path) or system.ls(self._path)):
                raise OutputExistsError(f"{self._path} exists and is not of mlm-fill --engine ray; name another folder")
            system.makedirs(self._path, exist_ok=True)
            with system.open(record, "w") as stream:
                json.dump(wanted, stream, indent=2)
            return
        if not resume:
            raise OutputExistsError(f"{self._path} exists; go on with --resume, or name another folder")
        try:
            with system.open(record, "r") as stream:
                found = json.load(stream)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{record} is damaged; remove {self._path}, and begin anew")
        other = next((name for name in wanted if found.get(name) != wanted[name]), None)
        if other is not None:
            raise InputError(
                f"{self._path} belongs to a run with another {other} ({found.get(other)!s:.80}); "
                "name another folder, or take the same"
            )

    def parts(self) -> set[str]:
        """Return the names of the parts that are there."""
        names = (each.rsplit("/", 1)[-1] for each in self._system.ls(self._path, detail=False, refresh=True))
        return {name for name in names if _PART.fullmatch(name)}

    def check_versions(self, files: Sequence[InputFile]) -> None:
        """Refuse parts of files that have changed, or that are none of the input: their rows would be there twice.

        Raises:
            InputError: There is such a part.
        """
        known = {file.stem: file for file in files}
        for name in sorted(self.parts()):
            match = _PART.fullmatch(name)
            file = known.get(match["stem"]) if match else None
            if file is None:
                raise InputError(
                    f"{self._path} has parts of a file that is not in the input ({name}); name the same files, or "
                    "another output"
                )
            if match and match["version"] != file.version:
                raise InputError(
                    f"{file.name} has changed since {self._path} was begun; name another output, or remove "
                    f"{file.stem}-{match['version']}-* from it"
                )

    def tidy(self) -> None:
        """Remove what workers that were killed left; all parts are there."""
        for path in self._system.ls(self._path, detail=False, refresh=True):
            if path.rsplit("/", 1)[-1].startswith(UNFINISHED):
                self._system.rm(path)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one; a connection of the caller stays."""
    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # Nothing is sent anywhere, unless the user's environment says otherwise.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"num_cpus": available_cpus(), "include_dashboard": False, "object_store_memory": _OBJECTS}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise InputError(f"no Ray cluster at {where}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


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
    began, ended = time.time(), 0.0
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
