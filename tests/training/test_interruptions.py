"""Runs that are killed, stopped or fail go on as if nothing had happened, and only as the same run."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlm_infer.training import TrainConfig, fine_tune
from mlm_infer.training.checkpoints import last_checkpoint
from mlm_infer.training.report import Evaluation
from places import full_disk
from safetensors.torch import load_file, save_file

from mlm_infer import InputError, OutputExistsError, TrainingError
from tests.helpers.kills import COMMAND, few_texts, kill_after_steps, result_of


def config(model: Path, few: Path, tmp_path: Path, **values: Any) -> TrainConfig:
    """A run of three epochs of five steps, with dropout."""
    settings: dict[str, Any] = {
        "model": str(model),
        "data": str(few),
        "output": tmp_path / "out",
        "epochs": 3,
        "batch_size": 8,
        "block_size": 32,
        "save_steps": 2,
        "max_train_blocks": 40,
        "max_validation_blocks": 8,
        "precision": "fp32",
    }
    return TrainConfig(**settings | values)


@pytest.fixture(scope="module")
def model(tiny: dict[str, Path]) -> Path:
    """A model with dropout."""
    return tiny["bert"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So few texts that a run takes a second."""
    return few_texts(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def unbroken(model: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Curve, evaluations and weights of an unbroken run of the command."""
    output = tmp_path_factory.mktemp("unbroken") / "out"
    subprocess.run([*COMMAND, "--data", few, "--model", model, "--output", output], check=True, capture_output=True)
    return result_of(output)


@pytest.mark.parametrize("steps", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_killed_run_ends_as_an_unbroken_one(steps: int, model: Path, few: Path, tmp_path: Path, unbroken: Any) -> None:
    """Killed with -9 in the middle of the first and of the second epoch: curve and weights are equal bit for bit."""
    output = tmp_path / "out"
    line = [*COMMAND, "--data", few, "--model", model, "--output", output]
    assert kill_after_steps(line, output, steps)
    assert not output.exists()
    subprocess.run([*line, "--resume"], check=True, capture_output=True)
    assert result_of(output) == unbroken
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(number: int, model: Path, few: Path, tmp_path: Path) -> None:
    """The step that is computed is finished and saved, and no finished step is lost."""
    settings = config(model, few, tmp_path, save_steps=None)
    expected = fine_tune(config(model, few, tmp_path, output=tmp_path / "whole", save_steps=None))

    def ask(evaluation: Evaluation) -> None:
        if evaluation.step == 5:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 6, which is saved; .* --resume"):
        fine_tune(settings, on_evaluation=ask)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert last_checkpoint(tmp_path / ".out.training") == tmp_path / ".out.training/checkpoint-6"
    with pytest.raises(OutputExistsError, match=r"checkpoint-6 is of an interrupted run; .*--resume.*--force"):
        fine_tune(settings)
    resumed = fine_tune(settings, resume=True)
    assert resumed.train_curve == expected.train_curve
    assert resumed.evaluations == expected.evaluations
    assert [each.step for each in resumed.evaluations] == [0, 5, 10, 15]


@pytest.fixture
def interrupted(model: Path, few: Path, tmp_path: Path) -> TrainConfig:
    """A run that stopped in its second epoch."""
    settings = config(model, few, tmp_path)

    def interrupt(evaluation: Evaluation) -> None:
        if evaluation.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(settings, on_evaluation=interrupt)
    return settings


def test_only_the_same_run_resumes(interrupted: TrainConfig, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Every difference is named; epochs may rise and not fall."""
    texts = tmp_path / "other.txt"
    texts.write_text("\n".join(f"Text {number} is another one." for number in range(400)))
    for values, message in (
        ({"batch_size": 4, "learning_rate": 1e-3}, "batch_size was 8 and is 4; learning_rate was 5e-05 and is 0.001"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"mask_share": 0.5, "random_share": 0.2}, "mask_share was 0.8 and is 0.5; random_share was 0.1 and is 0.2"),
        ({"per_line": True, "whole_words": True}, "per_line was False and is True; whole_words was False and is True"),
        ({"model": str(tiny["distilbert"])}, "the weights of the model changed; the vocabulary changed"),
        ({"data": str(texts)}, "the training text changed; the validation text changed"),
        ({"epochs": 2}, "epochs was 3 and is 2, which may only rise"),
    ):
        with pytest.raises(InputError, match=message):
            fine_tune(dataclasses.replace(interrupted, **values), resume=True)
    report = fine_tune(dataclasses.replace(interrupted, epochs=4, workers=1), resume=True)
    assert [each.step for each in report.evaluations] == [0, 5, 10, 15, 20]


def test_interrupted_after_the_last_step(model: Path, few: Path, tmp_path: Path) -> None:
    """With a fractional number of epochs an evaluation follows; the resumed run makes it, and no step more."""
    settings = config(model, few, tmp_path, epochs=2.5)
    expected = fine_tune(config(model, few, tmp_path, epochs=2.5, output=tmp_path / "whole"))
    assert expected.evaluations[-1].step == 13

    def interrupt(evaluation: Evaluation) -> None:
        if evaluation.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(settings, on_evaluation=interrupt)
    resumed = fine_tune(settings, resume=True)
    assert resumed.train_curve == expected.train_curve
    assert resumed.evaluations == expected.evaluations
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(one[weight], other[weight]) for weight in one)


def test_loss_that_is_not_finite(model: Path, few: Path, tmp_path: Path) -> None:
    """The run stops at once, keeps its last good checkpoint and names it; nothing is written."""
    with pytest.raises(
        TrainingError, match=r"(loss|gradients) is (nan|inf) after step \d+; a lower --learning-rate"
    ) as caught:
        fine_tune(config(model, few, tmp_path, learning_rate=1e30, optimizer="sgd", save_steps=1))
    kept = last_checkpoint(tmp_path / ".out.training")
    assert kept is not None
    assert f"the last good checkpoint is {kept}" in str(caught.value)
    assert all(torch.isfinite(weight).all() for weight in load_file(kept / "model.safetensors").values())
    assert not (tmp_path / "out").exists()


def test_model_that_is_not_finite(model: Path, few: Path, tmp_path: Path) -> None:
    """A checkpoint full of NaN is told before the first step."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = {name: torch.full_like(each, torch.nan) for name, each in load_file(broken / "model.safetensors").items()}
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="the validation loss is nan after step 0"):
        fine_tune(config(broken, few, tmp_path))


@pytest.mark.parametrize(
    "kilobytes", [400, 1600, *(pytest.param(size, marks=pytest.mark.slow) for size in (800, 1200))]
)
def test_full_disk(kilobytes: int, model: Path, few: Path, tmp_path: Path, unbroken: Any) -> None:
    """One line wherever the disk fills up, the last good checkpoint is kept, and with more space the run goes on."""
    line = [*COMMAND, "--data", few, "--model", model, "--output", tmp_path / "disk/out"]
    with full_disk(tmp_path / "disk", kilobytes * 1000) as limit:
        done = subprocess.run(line, capture_output=True, text=True, check=False, preexec_fn=limit)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        told = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        assert len(told) == 1, done.stderr
        kept = last_checkpoint(tmp_path / "disk/.out.training")
        assert (f"the last good checkpoint is {kept}" in told[0]) == (kept is not None)
        copy = tmp_path / ".out.training"
        if kept is not None:
            subprocess.run(["cp", "-r", kept.parent, copy], check=True)
    if kept is not None:
        line = [*COMMAND, "--data", few, "--model", model, "--output", tmp_path / "out", "--resume"]
        subprocess.run(line, check=True, capture_output=True)
        assert result_of(tmp_path / "out") == unbroken


def test_nothing_stays_set(model: Path, few: Path, tmp_path: Path) -> None:
    """Environment, generators and handlers are as before; in a thread of its own a run leaves signals alone."""
    before = dict(os.environ), torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    thread = threading.Thread(target=fine_tune, args=[config(model, few, tmp_path, epochs=1)])
    thread.start()
    thread.join()
    assert (tmp_path / "out").exists()
    assert dict(os.environ) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[2]  # noqa: NPY002


def test_module_is_the_command(tmp_path: Path) -> None:
    """`python -m mlm_infer.training` is `mlm-train`, and says what is wrong in one line."""
    line = [sys.executable, "-m", "mlm_infer.training", "--output", str(tmp_path / "out")]
    for options, message in (
        (["--epochs", "inf"], "epochs is inf; it must be above 0 and finite"),
        (["--seed", "-1"], "seed is -1; it must be from 0 to 4294967295"),
        (["--lr-scheduler", "bogus"], "lr_scheduler is 'bogus'; it must be one of linear, "),
        (["--lr-scheduler", "cosine_with_min_lr"], "lr_scheduler is 'cosine_with_min_lr', which transformers "),
    ):
        done = subprocess.run([*line, "--model", "x", *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == "[]"
