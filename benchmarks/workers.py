"""The processes that engines run in, and which of them run at the same time."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mlm_infer.errors import MlmInferError

__all__ = ["PIPELINE", "EngineError", "Group", "Machine", "Worker", "free_mb", "groups_that_fit", "is_ours"]

PIPELINE = "transformers pipeline"
_WORKER = Path(__file__).with_name("worker.py")
# A thread pool may keep spinning after a call; it must be asleep before another engine is timed.
_REST_SECONDS = 0.02
_MEGABYTES, _TIMES_WEIGHTS = 700, 2
"""Memory of an engine: that of the libraries, and how many times it holds the fp32 weights; the mean of the figures in
benchmarks/results."""


class EngineError(MlmInferError):
    """An engine cannot run a model."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An instruction set to run engines on.

    Attributes:
        suffix: Suffix of the names of engines that run on it.
        instruction_set: Its name.
        environment: Environment variables that restrict engines to it.
    """

    suffix: str
    instruction_set: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Engines that are measured in turns, the pipeline among them.

    Attributes:
        machine: What they run on.
        engines: Their names.
        base: Name of the group's pipeline in the results.
    """

    machine: Machine
    engines: tuple[str, ...]
    base: str


def is_ours(name: str) -> bool:
    """Return whether an engine is this package."""
    return name.startswith("mlm-infer")


def free_mb() -> float:
    """Return the memory in MB that processes can still take."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def groups_that_fit(
    machines: Sequence[Machine], engines: Sequence[str], weights_mb: float, memory_mb: float
) -> list[Group]:
    """Divide engines into groups that fit into the memory at once, one or more for each machine.

    Args:
        machines: The instruction sets.
        engines: Names of engines, the pipeline among them.
        weights_mb: Size of the model's fp32 weights in MB.
        memory_mb: The memory in MB that they may take.
    """
    # One of them is the pipeline, to which the others are compared.
    size = max(1, int(memory_mb / (_MEGABYTES + _TIMES_WEIGHTS * weights_mb)) - 1)
    groups = []
    for machine in machines:
        # OpenVINO detects the instruction set itself and cannot be restricted.
        held = [name for name in engines if not (machine.environment and name.startswith("OpenVINO"))]
        others = [name for name in held if name != PIPELINE]
        count = max(1, -(-len(others) // size))
        for number in range(count):
            part = set(others[number::count]) | {PIPELINE}
            base = f"{PIPELINE}{machine.suffix}{f', group {number + 1}' if number else ''}"
            groups.append(Group(machine, tuple(name for name in held if name in part), base))
    return groups


@dataclass(slots=True)
class Worker:
    """An engine in its own process.

    Attributes:
        name: Its name in the results.
        instruction_set: Its instruction set.
        base: Name of the pipeline in its group.
        process: The process.
        messages: What it wrote to stderr.
    """

    name: str
    instruction_set: str
    base: str
    process: subprocess.Popen[str]
    messages: IO[str]

    @classmethod
    def start(cls, engine: str, python: Path, paths: Mapping[str, str], threads: int, group: Group) -> "Worker":
        """Start an engine, which loads its model on the first request."""
        command = [str(python), str(_WORKER), engine, str(threads), json.dumps(dict(paths))]
        environment = (
            os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "true",
                "OMP_NUM_THREADS": str(threads),
            }
            | dict(group.machine.environment)
        )
        messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=environment,
        )
        name = group.base if engine == PIPELINE else engine + group.machine.suffix
        return cls(name, group.machine.instruction_set, group.base, process, messages)

    @classmethod
    @contextmanager
    def start_all(
        cls, pythons: Mapping[str, Path], paths: Mapping[str, str], threads: int, group: Group
    ) -> Iterator[list["Worker"]]:
        """Start every engine of a group, and stop them all at the end."""
        workers: list[Worker] = []
        try:
            workers += [cls.start(engine, pythons[engine], paths, threads, group) for engine in group.engines]
            yield workers
        finally:
            for worker in workers:
                worker.stop()

    def ask(self, texts: Sequence[str], batch: int = 1, *, warm_up: int = 0) -> dict[str, Any]:
        """Have the engine fill texts with one mask each, after untimed warm-up runs, and return its answer.

        Raises:
            EngineError: It died.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        try:
            self.process.stdin.write(json.dumps({"texts": list(texts), "batch": batch, "warm_up": warm_up}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.messages.seek(0)
            last = [text for text in self.messages.read().splitlines() if text.strip()][-1:]
            why = last[0].strip() if last else f"it ended with status {self.process.returncode}"
            raise EngineError(f"{self.name} cannot run this model: {why}")
        time.sleep(_REST_SECONDS)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Stop the process."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            # It may have died before it read everything.
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()
        self.messages.close()
