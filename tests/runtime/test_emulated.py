"""The same int8 file on every type of processor, in user-mode emulation: `make test-cpus`."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT, SHIPPED

PROGRAM = ROOT / "tests/helpers/emulated.py"
ARM64 = ROOT / ".work/arm64"


@dataclass(frozen=True)
class Machine:
    """A processor, and how to run Python on it.

    Attributes:
        kind: What the run time must take it for.
        command: What comes before the program.
        environment: What is set for it.
    """

    kind: str
    command: tuple[str, ...]
    environment: dict[str, str]


def arm64(cpu: str) -> Machine:
    """An arm64 processor, with the Python that tools/emulators.sh unpacks."""
    command = ("qemu-aarch64-static", "-L", str(ARM64 / "root"), "-cpu", cpu, str(ARM64 / "root/usr/bin/python3.11"))
    return Machine("arm64", command, {"PYTHONHOME": str(ARM64 / "root/usr"), "PYTHONPATH": f"{ARM64 / 'site'}:{ROOT}"})


MACHINES = {
    "Haswell: AVX2 without VNNI": Machine("avx2", ("qemu-x86_64-static", "-cpu", "Haswell", sys.executable), {}),
    "Westmere: no AVX": Machine("avx2", ("qemu-x86_64-static", "-cpu", "Westmere", sys.executable), {}),
    "Cortex-A72: no dot product": arm64("cortex-a72"),
    "arm64 with all there is": arm64("max"),
}

pytestmark = [pytest.mark.cpus, pytest.mark.timeout(900)]


def answers(bundle: Path, machine: Machine | None, precision: str = "int8") -> dict[str, Any]:
    """Return the output of the program on a processor, or on this one, and its messages."""
    command = machine.command if machine is not None else (sys.executable,)
    if shutil.which(command[0]) is None or (machine is not None and machine.kind == "arm64" and not ARM64.exists()):
        pytest.fail(f"{command[0]} or {ARM64} is missing; set both up with: make test-cpus")
    environment = os.environ | (machine.environment if machine is not None else {})
    done = subprocess.run(
        [*command, str(PROGRAM), str(bundle), precision],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"messages": done.stderr}


@pytest.fixture(scope="module", params=["exported", "shipped"])
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Path:
    """A bundle exported on this processor, and the one in the wheel."""
    return bundles["base"] if request.param == "exported" else SHIPPED


@pytest.fixture(scope="module")
def here(bundle: Path) -> dict[str, Any]:
    """The answers on this processor."""
    return answers(bundle, None)


@pytest.mark.parametrize("name", MACHINES)
def test_int8_answers_are_the_same(name: str, bundle: Path, here: dict[str, Any]) -> None:
    """Known answers are reproduced, and others equal those here up to fp32 rounding."""
    machine = MACHINES[name]
    there = answers(bundle, machine)
    assert there["cpu"] == machine.kind
    assert (there["precision"], there["replayed"]) == ("int8", True)
    assert "overflow" not in there["messages"]
    for mine, theirs in zip(here["answers"], there["answers"], strict=True):
        for mask, other in zip(mine, theirs, strict=True):
            assert other[0][0] == mask[0][0] or mask[0][1] - mask[1][1] < 0.02
            held = dict(map(tuple, other))
            for token, logprob in mask:
                # A rounding of a float may tip a byte by one. What it puts out of the best is as good as the last.
                assert held.get(token, min(held.values())) == pytest.approx(logprob, abs=0.05)


def test_8_bits_of_an_older_version(bundles: dict[str, Path], tmp_path: Path) -> None:
    """An int8 file that overflows here is replaced by fp32 with one message; alone it runs with a warning."""
    old = Path(shutil.copytree(bundles["base"], tmp_path / "old"))
    path = old / "mlm_infer.json"
    values = json.loads(path.read_text())
    values["models"]["int8"]["cpu"] = "avx512_vnni"
    path.write_text(json.dumps(values))
    haswell = MACHINES["Haswell: AVX2 without VNNI"]
    found = answers(old, haswell, "auto")
    assert found["precision"] == "fp32"
    assert found["messages"].count("made for avx512_vnni and overflows on this processor (avx2); taking fp32") == 1
    assert "its answers are wrong: export it again" in answers(old, haswell, "int8")["messages"]
