"""The report of a fine-tuning run: perplexity before training, after every epoch and at the end."""

import importlib.metadata
import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlm_infer.runtime.cpu import available_cpus, cpu_name
from mlm_infer.shared.folders import REPORT
from mlm_infer.shared.tables import format_table

from .config import TrainConfig

__all__ = ["Evaluation", "TrainReport", "describe_machine", "exponential", "thin"]


def thin(losses: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return at most 200 points of a curve, each the mean of neighbours at the step of the last of them."""
    width = -(-len(losses) // 200) or 1
    groups = [losses[start : start + width] for start in range(0, len(losses), width)]
    return tuple((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups)


def exponential(loss: float) -> float:
    """Return the perplexity of a mean loss; above 700 that of 700, the largest number that JSON can hold."""
    return math.exp(min(loss, 700.0))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation on the fixed masks.

    Attributes:
        when: `before`, `epoch 1` and so on, or `end`.
        epoch: Passes over the training blocks so far.
        step: Weight updates so far.
        loss: Mean negative log-likelihood over the masked tokens, in nats.
        masked_tokens: Number of masked tokens.
        train_loss: Mean training loss since the previous evaluation; None before training.
    """

    when: str
    epoch: float
    step: int
    loss: float
    masked_tokens: int
    train_loss: float | None

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss over all masked tokens."""
        return exponential(self.loss)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The content of `training_report.json`.

    Attributes:
        config: The configuration of the run.
        evaluations: Evaluations from before training to the end.
        train_curve: Step and training loss, averaged over neighbouring steps in a long run.
        train_blocks: Blocks trained on.
        validation_blocks: Blocks validated on.
        precision: Precision of the training: fp32, bf16 or fp16.
        seconds: Wall time of the training, evaluations included.
        machine: Hardware, operating system and package versions.
        warnings: Warnings, for example about a head that started from random weights.
    """

    config: TrainConfig
    evaluations: tuple[Evaluation, ...]
    train_curve: tuple[tuple[int, float], ...]
    train_blocks: int
    validation_blocks: int
    precision: str
    seconds: float
    machine: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def perplexity_before(self) -> float:
        """Perplexity of the initial checkpoint."""
        return self.evaluations[0].perplexity

    @property
    def perplexity(self) -> float:
        """Perplexity of the saved model."""
        return self.evaluations[-1].perplexity

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON."""
        evaluations = [asdict(each) | {"perplexity": each.perplexity} for each in self.evaluations]
        rest = asdict(self) | {"config": self.config.to_dict(), "evaluations": evaluations}
        return {"perplexity_before": self.perplexity_before, "perplexity": self.perplexity} | rest

    def save(self, folder: Path) -> None:
        """Write `training_report.json`, which lists the files in the folder at this time."""
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        text = json.dumps(self.to_dict() | {"files": files}, indent=2, ensure_ascii=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")

    def table(self) -> str:
        """Return the evaluations as a table."""
        rows = [
            [
                each.when,
                f"{each.step}",
                "-" if each.train_loss is None else f"{each.train_loss:.4f}",
                f"{each.loss:.4f}",
                f"{each.perplexity:.2f}",
            ]
            for each in self.evaluations
        ]
        return format_table(["when", "step", "training loss", "validation loss", "perplexity"], rows)


def describe_machine(device: str) -> dict[str, str]:
    """Return the hardware, operating system and package versions that the figures depend on."""
    packages = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy", "mlm-infer")
    return {
        "device": device,
        "cpu": cpu_name(),
        "cpus": str(available_cpus()),
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in packages}
