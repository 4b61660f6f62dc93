"""Settings of the Trainer: steps, schedules, clipping, trackers; and values that are rejected."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mlm_infer.training import TrainConfig, fine_tune
from mlm_infer.training.config import read_prompts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_options import HEADING, PAGE, options_table

from mlm_infer import DependencyError, InputError


def config(base: Path, output: Path, **values: Any) -> TrainConfig:
    """A run of a few steps, the same each time."""
    settings: dict[str, Any] = {
        "model": str(base),
        "output": output,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "block_size": 32,
        "max_train_blocks": 24,
        "max_validation_blocks": 16,
        "dropout": 0.0,
        "precision": "fp32",
        "max_steps": 4,
    }
    return TrainConfig(**settings | values)


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch(base: Path, tmp_path: Path) -> None:
    """Whatever the number of epochs, below and above it."""
    for name, epochs in (("few", 1), ("many", 100)):
        report = fine_tune(config(base, tmp_path / name, epochs=epochs))
        assert [(each.when, each.step) for each in report.evaluations] == [("before", 0), ("epoch 1", 3), ("end", 4)]


def test_options_of_the_schedule_and_clipping_arrive(base: Path, tmp_path: Path) -> None:
    """Another smallest learning rate gives another loss, and gradients that are scaled to nothing change nothing."""
    schedule = {"lr_scheduler": "cosine_with_min_lr"}
    low = fine_tune(config(base, tmp_path / "low", **schedule, scheduler_options={"min_lr": 0.0}))
    high = fine_tune(config(base, tmp_path / "high", **schedule, scheduler_options={"min_lr": 1e-3}))
    assert high.perplexity < low.perplexity < low.perplexity_before
    still = fine_tune(config(base, tmp_path / "still", max_grad_norm=1e-12, weight_decay=0.0))
    assert still.perplexity == pytest.approx(still.perplexity_before, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_scheduler": "bogus"}, "lr_scheduler is 'bogus'; it must be one of linear, cosine"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "must be one of linear"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "which transformers rejects: .*--scheduler-options"),
        ({"scheduler_options": {"bogus": 1}}, r"'linear' with \{'bogus': 1\}, which transformers rejects"),
        ({"lr_scheduler": "polynomial", "scheduler_options": {"power": "x"}}, "which transformers rejects"),
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must be 0 or more"),
        ({"mask_share": 1.1}, r"mask_share is 1\.1; it must be from 0 to 1"),
        ({"mask_share": float("nan")}, "mask_share is nan; it must be from 0 to 1"),
        (
            {"random_share": -0.1},
            r"random_share is -0\.1; it must be from 0 to 0\.2, so that the shares make at most 1",
        ),
        ({"mask_share": 0.7, "random_share": 0.4}, r"random_share is 0\.4; it must be from 0 to 0\.3"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan"),
        ({"report_to": "paper"}, "report_to is 'paper'; it must be one of none, tensorboard, wandb"),
    ],
)
def test_wrong_values(base: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    """One line before anything is loaded."""
    with pytest.raises(InputError, match=message) as caught:
        fine_tune(config(base, tmp_path / "out", **values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", ["{", "[1]", "min_lr=1"])
def test_options_on_the_command_line_are_json(options: str, tmp_path: Path) -> None:
    """Exit status 2 and one line."""
    command = ["mlm-train", "--model", "m", "--output", str(tmp_path / "out"), "--scheduler-options", options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no JSON object" in done.stderr


def test_tracker_that_is_not_installed(base: Path, tmp_path: Path) -> None:
    """The message names the package."""
    assert not find_spec("wandb"), "the environment of the tests has no wandb"
    with pytest.raises(DependencyError, match="pip install wandb"):
        fine_tune(config(base, tmp_path / "out", report_to="wandb"))


@pytest.mark.slow
def test_tensorboard_has_every_loss(base: Path, tmp_path: Path) -> None:
    """Its files are in the output and count as this package's."""
    settings = config(base, tmp_path / "out", report_to="tensorboard")
    report = fine_tune(settings)
    (folder,) = (settings.output / "runs").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [each.value for each in read.Scalars("eval/loss")] == pytest.approx([e.loss for e in report.evaluations])
    assert [each.step for each in read.Scalars("train/loss")] == [step for step, _ in report.train_curve]
    listed = json.loads((settings.output / "training_report.json").read_text())["files"]
    assert {path.relative_to(settings.output).as_posix() for path in folder.iterdir()} <= set(listed)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    """One a line, without the byte order mark and empty lines; every mistake is one line."""
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffA [MASK] film.\n\n  The <mask>. \n", encoding="utf-8")
    assert read_prompts(path) == ("A [MASK] film.", "The <mask>.")
    for content, message in ((b"\n", "holds no prompts"), (b"\xff", "it is not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_prompts(path)
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_documents_tell_every_option() -> None:
    """`python tools/training_options.py` writes the table."""
    assert PAGE.read_text(encoding="utf-8").endswith(f"{HEADING}\n\n{options_table()}")
