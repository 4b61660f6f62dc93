"""`--dry-run`: what it counts is what the run does, and it writes nothing."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlm_infer.training import TrainConfig, fine_tune
from mlm_infer.training.plan import Plan, plan_run
from mlm_infer.training.report import DocumentCounts

from mlm_infer import OutputExistsError


@pytest.fixture(scope="module")
def config(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run with a number of blocks that is no multiple of the batch size."""
    return TrainConfig(
        model=str(tiny["bert"]),
        output=tmp_path_factory.mktemp("plan") / "out",
        batch_size=4,
        block_size=32,
        epochs=2,
        max_train_blocks=21,
        max_validation_blocks=8,
    )


def test_plan_counts_what_the_run_does(config: TrainConfig) -> None:
    """Documents, blocks, updates, evaluations and precision; nothing is written, and the estimates are positive."""
    plan = plan_run(config)
    assert list(config.output.parent.iterdir()) == []
    report = fine_tune(config)
    assert plan.updates == report.evaluations[-1].step
    assert plan.evaluations == len(report.evaluations)
    assert (plan.train_blocks, plan.validation_blocks) == (report.train_blocks, report.validation_blocks)
    assert (plan.documents, plan.precision) == (report.documents, report.precision)
    assert plan.seconds > 0
    written = sum(path.stat().st_size for path in config.output.rglob("model.safetensors"))
    assert plan.disk_bytes > written
    assert plan.memory_bytes is None or plan.memory_bytes > written
    with pytest.raises(OutputExistsError, match="--force"):
        plan_run(config)


def test_table() -> None:
    """Units that people read."""
    documents = DocumentCounts(train=9, validation=3, empty=1, repeated=0, unused_splits=("test",))
    values: dict[str, Any] = {"model": "m (bert)", "parameters": 4_400_000, "documents": documents, "train_blocks": 90}
    values |= {"validation_blocks": 30, "updates": 12, "evaluations": 4, "precision": "fp32", "seconds": 9000.0}
    values |= {"memory_bytes": 2_500_000_000, "disk_bytes": 70_000_000, "measured_batch": 4, "warnings": ()}
    text = Plan(**values).table()
    for expected in ("4.4 million weights", "12 updates", "2 h 30 min", "2.50 GB", "0.07 GB", "splits: test"):
        assert expected in text


@pytest.mark.slow
def test_command(config: TrainConfig, tmp_path: Path) -> None:
    """A table, or JSON."""
    line = ["mlm-train", "movie-reviews", "--model", config.model, "--output", str(tmp_path / "out"), "--dry-run"]
    line += ["--block-size", "32", "--max-train-blocks", "8", "--max-validation-blocks", "8", "--batch-size", "4"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "estimated peak memory" in shown
    found = json.loads(subprocess.run([*line, "--json"], capture_output=True, text=True, check=True).stdout)
    assert (found["updates"], found["train_blocks"]) == (6, 8)
    assert list(tmp_path.iterdir()) == []
