"""Opens a bundle on every device, with every precision, in every installation, and prints docs/devices.md.

    python tools/devices.py > docs/devices.md

Each installation is a virtual environment made for the purpose (a few minutes, 250 MB to download).
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from mlm_infer.export import export_bundle
from tiny_models import BUILDERS

# ruff: noqa: S603

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("auto", "cpu", "cuda")
MODELS = ("auto", "fp32", "fp16", "int8", "torchscript")
HEADER = """# Devices

The result of `MaskFiller(bundle, device=..., precision=...)` for each installation. The bundle contains fp32, fp16,
int8 and TorchScript; the last column uses `backend="torchscript"`. `python tools/devices.py > docs/devices.md`
generates this document: it builds each installation and opens the bundle in it.

A cell names the execution provider and the precision that ran; the bundle's known answers were reproduced on it.
Numbers refer to the messages below: bold for an error, plain for a log line.
"""
PROBE = """
import json, logging, re, sys
from mlm_infer import MaskFiller
from mlm_infer.errors import MlmInferError
said = []
class Handler(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("mlm_infer").addHandler(Handler())
found = []
bundle, devices, models = sys.argv[1], *map(json.loads, sys.argv[2:])
for device in devices:
    for model in models:
        said.clear()
        chosen = {"backend": "torchscript"} if model == "torchscript" else {"precision": model}
        try:
            info = MaskFiller(bundle, device=device, self_test=True, **chosen).info
            cell = {"ran": [info.provider.removesuffix("ExecutionProvider"), info.precision], "said": list(said)}
        except MlmInferError as error:
            cell = {"error": f"{type(error).__name__}: {error}", "said": list(said)}
        found.append({"device": device, "model": model, **cell})
json.dump(found, sys.stdout)
"""


@dataclass(slots=True)
class Messages:
    """Messages, numbered in the order of first appearance."""

    seen: list[str] = field(default_factory=list)

    def number(self, message: str) -> int:
        """Return the number of a message, from 1."""
        if message not in self.seen:
            self.seen.append(message)
        return self.seen.index(message) + 1


def has_driver() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def make_environment(folder: Path, *requirements: str) -> Path:
    """Create an environment with this package and others, and return its interpreter."""
    venv.create(folder, with_pip=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    install(folder / "bin/python", *requirements)
    return folder / "bin/python"


def install(python: Path, *requirements: str) -> None:
    """Run pip in an environment."""
    subprocess.run([str(python), "-m", "pip", "-q", "install", *requirements], check=True, cwd="/")


def false_driver(folder: Path) -> dict[str, str]:
    """Provide a library in place of the driver, whose functions are never called; return the loader's setting."""
    shutil.copy(next(Path("/").glob("lib*/**/libm.so.6")), folder / "libcuda.so.1")
    return {"LD_LIBRARY_PATH": str(folder)}


def probe(python: str | Path, bundle: Path, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Open the bundle on every device with every model, in one installation."""
    command = [str(python), "-c", PROBE, str(bundle), json.dumps(DEVICES), json.dumps(MODELS)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd="/", env=os.environ | (environment or {})
    )
    found: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[{") :])
    return found


def installations(work: Path) -> Iterator[tuple[str, Callable[[Path], list[dict[str, Any]]]]]:
    """Yield the title of each installation, and a function that probes a bundle in it."""
    yield "`[cpu,torchscript]`", lambda bundle: probe(sys.executable, bundle)
    bare = make_environment(work / "bare", str(ROOT))
    yield "neither `[cpu]` nor `[gpu]`", lambda bundle: probe(bare, bundle)
    gpu = make_environment(work / "gpu", f"{ROOT}[gpu]")
    if has_driver():
        install(gpu, "onnxruntime-gpu[cuda,cudnn]")
        yield "`[gpu]`, with an NVIDIA GPU", lambda bundle: probe(gpu, bundle)
    else:
        yield "`[gpu]`, without a driver", lambda bundle: probe(gpu, bundle)
        yield (
            "`[gpu]`, without CUDA's libraries",
            lambda bundle: probe(gpu, bundle, false_driver(work)),
        )
    install(gpu, "onnxruntime")
    yield "`[gpu]` and `[cpu]` in one environment", lambda bundle: probe(gpu, bundle)


def rows(title: str, found: list[dict[str, Any]], messages: Messages, bundle: Path) -> Iterator[str]:
    """Yield a row of the table for each device."""
    for device in DEVICES:
        cells = []
        for each in (each for each in found if each["device"] == device):
            numbers = [str(messages.number(plain(line, bundle))) for line in each["said"]]
            if "error" in each:
                numbers.append(f"**{messages.number(plain(each['error'], bundle))}**")
            cells.append(" ".join([*([", ".join(each["ran"])] if "ran" in each else []), *numbers]))
        yield f"| {title} | `{device}` | {' | '.join(cells)} |"


def plain(line: str, bundle: Path) -> str:
    """Replace the path of the bundle by a fixed name."""
    return line.replace(str(bundle), "bundle")


def make_bundle(folder: Path) -> Path:
    """Export a tiny model in every precision and format."""
    checkpoint = BUILDERS["bert"](folder / "checkpoint")
    formats = ["onnx", "torchscript"]
    export_bundle(str(checkpoint), folder / "bundle", precisions=["fp32", "fp16", "int8"], formats=formats)
    return folder / "bundle"


@click.command()
def main() -> None:
    """Print docs/devices.md."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bundle, messages = make_bundle(work), Messages()
        lines = [f"| installed | device | {' | '.join(MODELS)} |", "|---" * (2 + len(MODELS)) + "|"]
        for title, ask in installations(work):
            click.echo(title, err=True)
            lines += rows(title, ask(bundle), messages, bundle)
    click.echo(HEADER)
    click.echo("\n".join(lines))
    click.echo("\n" + "\n".join(f"{number}. `{message}`" for number, message in enumerate(messages.seen, 1)))
    if not has_driver():
        click.echo("\n**This document was generated on a machine without an NVIDIA GPU: nothing in it ran on one.**")


if __name__ == "__main__":
    main()
