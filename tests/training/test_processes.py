"""Several processes: the updates of one, and one of them writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.kills import few_texts
from tests.helpers.paths import ROOT

OPTIONS = "--block-size 32 --epochs 2 --max-train-blocks 43 --max-validation-blocks 20 --dropout 0 --precision fp32"
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "-m", "mlm_infer.training"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "-m", "mlm_infer.training"],
}


def launch(command: list[str], model: Path, output: Path, batch_size: int) -> dict[str, Any]:
    """Run a command of one or several processes; one report is on stdout, the same is in the output, and no more."""
    line = [
        *command,
        "--model",
        str(model),
        "--output",
        str(output),
        *OPTIONS.split(),
        "--data",
        str(few_texts(output.parent.parent)),
    ]
    # Ports are chosen by the launcher, so that tests can run side by side.
    done = subprocess.run(
        [*line, "--batch-size", str(batch_size), "--json"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    report: dict[str, Any] = json.loads(done.stdout)
    saved = json.loads((output / "training_report.json").read_text(encoding="utf-8"))
    assert saved["evaluations"] == report["evaluations"]
    return report


def compare(name: str, launcher: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Two processes with 4 blocks each give every loss of one with 8."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    single = launch([sys.executable, "-m", "mlm_infer.training"], checkpoints[name], tmp_path / "1/out", 8)
    double = launch(LAUNCHERS[launcher], checkpoints[name], tmp_path / "2/out", 4)
    assert double["machine"]["processes"] == "2"
    assert [step for step, _ in double["train_curve"]] == list(range(1, 13))
    for (_, one), (_, two) in zip(single["train_curve"], double["train_curve"], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert [each["masked_tokens"] for each in double["evaluations"]] == [
        each["masked_tokens"] for each in single["evaluations"]
    ]
    for one, two in zip(single["evaluations"], double["evaluations"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_two_processes_are_one(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """BERT with torchrun."""
    compare("bert", "torchrun", checkpoints, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("roberta", "torchrun"),
        ("distilbert", "accelerate"),
        ("modernbert", "torchrun"),
        ("esm", "torchrun"),
        ("xlm", "torchrun"),
    ],
)
def test_two_processes_are_one_for_other_architectures(
    name: str, launcher: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Those whose forward counts tokens itself, too."""
    assert name in ARCHITECTURES
    compare(name, launcher, checkpoints, tmp_path)


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(tmp_path: Path) -> None:
    """The first process speaks for all; the launcher says in its own words that they failed."""
    (tmp_path / "out").mkdir()
    line = [*LAUNCHERS["torchrun"], "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
