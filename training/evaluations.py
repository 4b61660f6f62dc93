"""The Trainer's log as a list of evaluations."""

from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .report import Evaluation

__all__ = ["Recorder"]


class Recorder(TrainerCallback):
    """Converts the Trainer's log to evaluations, including those before a run was resumed."""

    def __init__(self, on_evaluation: Callable[[Evaluation], None] | None) -> None:
        self.evaluations: list[Evaluation] = []
        self._on_evaluation = on_evaluation

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        """Read the log again after an evaluation, and pass on what is new."""
        known = len(self.evaluations)
        self.read(state)
        if self._on_evaluation is not None:
            for each in self.evaluations[max(known, len(self.evaluations) - 1) :]:
                self._on_evaluation(each)

    def read(self, state: TrainerState) -> None:
        """Read the log of a run."""
        self.evaluations = _evaluations(state.log_history, state.max_steps)


def _evaluations(log: list[dict[str, float]], last_step: int) -> list[Evaluation]:
    found: list[Evaluation] = []
    losses: list[float] = []
    for row in log:
        if "loss" in row:
            losses.append(row["loss"])
        if "eval_loss" not in row:
            continue
        epoch = row.get("epoch") or 0.0
        step = int(row["step"])
        when = "before" if step == 0 else f"epoch {epoch:.4g}" if step < last_step else "end"
        train_loss = sum(losses) / len(losses) if losses else None
        found.append(
            Evaluation(
                when=when,
                epoch=epoch,
                step=step,
                loss=row["eval_loss"],
                masked_tokens=int(row["eval_masked_tokens"]),
                top1=row["eval_top1"],
                top5=row["eval_top5"],
                train_loss=train_loss,
            )
        )
        losses = []
    return found
