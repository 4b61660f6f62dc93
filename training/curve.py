"""Draws the training curve."""

from pathlib import Path

from matplotlib.figure import Figure

from .report import TrainReport

__all__ = ["save_curve"]


def save_curve(report: TrainReport, path: Path) -> None:
    """Draw training loss, validation loss and perplexity over the steps.

    Args:
        report: The report to draw.
        path: PNG, SVG or PDF file to write.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    loss_axis = figure.subplots()
    if report.train_curve:
        loss_axis.plot(*zip(*report.train_curve, strict=True), color="#9aa5b1", label="training loss")
    steps = [each.step for each in report.evaluations]
    loss_axis.plot(
        steps,
        [each.loss for each in report.evaluations],
        "o-",
        color="#1f5fa8",
        label="validation loss, with its perplexity",
    )
    for each in report.evaluations:
        loss_axis.annotate(
            f"{each.perplexity:,.4g}",
            (each.step, each.loss),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
    loss_axis.set(
        xlabel="weight updates",
        ylabel="loss (nats per masked token)",
        title=f"perplexity {report.perplexity_before:,.4g} before, {report.perplexity:,.4g} after",
    )
    loss_axis.margins(y=0.12)
    loss_axis.spines[["top", "right"]].set_visible(False)
    loss_axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
