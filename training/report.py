"""The report of a fine-tuning run: perplexity and accuracy before training, along the way and at the end."""

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

__all__ = [
    "DocumentCounts",
    "Evaluation",
    "Fill",
    "TrainReport",
    "describe_machine",
    "exponential",
    "is_local",
    "public_name",
    "thin",
]


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
        top1: Share of the masked tokens that the model finds most likely.
        top5: Share of the masked tokens that are among its five most likely ones.
        train_loss: Mean training loss since the previous evaluation; None before training.
    """

    when: str
    epoch: float
    step: int
    loss: float
    masked_tokens: int
    top1: float
    top5: float
    train_loss: float | None

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss over all masked tokens."""
        return exponential(self.loss)


@dataclass(frozen=True, slots=True)
class Fill:
    """The predictions for a sentence of `prompts` at one evaluation.

    Attributes:
        step: Weight updates so far.
        text: The sentence.
        predictions: For each mask of the sentence the most likely tokens with their probabilities, the best first.
    """

    step: int
    text: str
    predictions: tuple[tuple[tuple[str, float], ...], ...]

    def __str__(self) -> str:
        return "; ".join(", ".join(f"{token} ({share:.2f})" for token, share in each) for each in self.predictions)


@dataclass(frozen=True, slots=True)
class DocumentCounts:
    """Numbers of documents.

    Attributes:
        train: Documents that the training blocks are drawn from.
        validation: Documents that the validation blocks are drawn from.
        empty: Documents without text, which are left out.
        repeated: Validation documents that are training documents, too; left out with `config.deduplicate`.
        unused_splits: Splits of local data that were neither trained nor validated on.
    """

    train: int
    validation: int
    empty: int
    repeated: int
    unused_splits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The content of `training_report.json`.

    Attributes:
        config: The configuration of the run.
        evaluations: Evaluations from before training to the end.
        train_curve: Step and training loss, averaged over neighbouring steps in a long run.
        fills: Predictions for the sentences of `config.prompts` at each evaluation.
        pseudo_perplexity: Pseudo-perplexity before training and of the saved model, if `config` asks for it.
        documents: Numbers of documents.
        train_blocks: Blocks trained on.
        validation_blocks: Blocks validated on.
        licences: Licences of the initial model and the data, by their names.
        precision: Precision of the training: fp32, bf16 or fp16.
        seconds: Wall time of the training, evaluations included.
        machine: Hardware, operating system and package versions.
        warnings: Warnings, for example about a head that started from random weights.
    """

    config: TrainConfig
    evaluations: tuple[Evaluation, ...]
    train_curve: tuple[tuple[int, float], ...]
    fills: tuple[Fill, ...]
    pseudo_perplexity: tuple[float, float] | None
    documents: DocumentCounts
    train_blocks: int
    validation_blocks: int
    licences: dict[str, str]
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
        return self.best.perplexity

    @property
    def best(self) -> Evaluation:
        """The evaluation with the lowest loss after training began, whose weights are saved."""
        return min(self.evaluations[1:] or self.evaluations, key=lambda each: each.loss)

    @property
    def name(self) -> str:
        """Name of the output folder."""
        return self.config.output.expanduser().absolute().name

    @property
    def prompts(self) -> tuple[str, ...]:
        """The sentences that were filled at each evaluation."""
        return tuple(dict.fromkeys(each.text for each in self.fills))

    def fill(self, text: str, step: int) -> str:
        """Return the predictions for a sentence after a number of weight updates."""
        return next((str(each) for each in self.fills if (each.text, each.step) == (text, step)), "-")

    def summary(self) -> str:
        """Return the result in a few sentences."""
        first = (
            f"Perplexity {self.perplexity_before:.2f} before and {self.perplexity:.2f} after {self.best.step} weight "
            f"updates; {self.evaluations[-1].step} updates took {self.seconds:.0f} s in {self.precision}."
        )
        return " ".join([first, *self.notes()])

    def notes(self) -> list[str]:
        """Return what is said of a run only if it applies, in sentences."""
        best, found = self.best, []
        since = len(self.evaluations) - 1 - self.evaluations.index(best)
        if since:
            found.append(
                f"The model saved is that of {best.when}, the best of {len(self.evaluations) - 1} evaluations."
            )
        if self.config.early_stopping is not None and since >= self.config.early_stopping:
            found.append(f"Training ended early, after {since} evaluations that were not better.")
        if self.pseudo_perplexity is not None:
            before, after = self.pseudo_perplexity
            found.append(f"Pseudo-perplexity {before:.2f} before and {after:.2f} after.")
        return found

    def data_facts(self) -> list[tuple[str, str]]:
        """Return what the model was trained and evaluated on."""
        return [
            ("training", f"{self.documents.train} documents, {self.train_blocks} blocks"),
            ("validation", f"{self.documents.validation} documents, {self.validation_blocks} blocks"),
            ("masked tokens of the validation", f"{self.evaluations[0].masked_tokens}"),
            ("empty documents, left out", f"{self.documents.empty}"),
            ("validation documents that are training documents, too", f"{self.documents.repeated}"),
            ("splits that are not used", ", ".join(self.documents.unused_splits) or "none"),
        ]

    def settings(self) -> list[tuple[str, str]]:
        """Return the settings of the run, with names in place of local paths, which are nobody else's concern."""
        values = self.config.to_dict() | {"output": self.name}
        for name in ("model", "data", "validation_data"):
            if values[name] is not None:
                values[name] = public_name(values[name])
        del values["prompts"]  # they stand with their predictions
        return [(name, str(value)) for name, value in values.items() if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON."""
        evaluations = [asdict(each) | {"perplexity": each.perplexity} for each in self.evaluations]
        rest = asdict(self) | {"config": self.config.to_dict(), "evaluations": evaluations}
        return {"perplexity_before": self.perplexity_before, "perplexity": self.perplexity} | rest

    def save(self, folder: Path) -> None:
        """Write `training_report.json`, which lists the files in the folder at this time."""
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        text = json.dumps(self.to_dict() | {"files": files}, indent=2, ensure_ascii=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of the table of evaluations."""
        rows = [
            [
                f"{each.when} (saved)" if each is self.best else each.when,
                f"{each.step}",
                "-" if each.train_loss is None else f"{each.train_loss:.4f}",
                f"{each.loss:.4f}",
                f"{each.perplexity:.2f}",
                f"{each.top1:.1%}",
                f"{each.top5:.1%}",
            ]
            for each in self.evaluations
        ]
        return ["when", "step", "training loss", "validation loss", "perplexity", "top-1", "top-5"], rows

    def table(self) -> str:
        """Return the evaluations as a table."""
        return format_table(*self.cells())


def is_local(source: str) -> bool:
    """Return whether a model or data source is a file or folder of this machine."""
    return Path(source).expanduser().exists()


def public_name(source: str) -> str:
    """Return how a model or data source is called in front of others: a local path by its last part."""
    return Path(source).expanduser().absolute().name if is_local(source) else source


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
