"""Draws the training curve."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

from .report import Evaluation, TrainReport

__all__ = ["draw_curve", "save_curve"]

_BLUE, _GREY = "#1f5fa8", "#9aa5b1"
_MOST_HORIZONTAL = 10
"""Up to this many evaluations their labels are horizontal; more of them fit only if they are turned."""


def save_curve(report: TrainReport, path: Path) -> None:
    """Draw training loss, validation loss and perplexity over the steps.

    Args:
        report: The report to draw.
        path: PNG, SVG or PDF file to write.
    """
    draw_curve(report).savefig(path, dpi=150)


def draw_curve(report: TrainReport) -> Figure:
    """Return the picture; of the perplexities, as many are written out as fit without overlap.

    Args:
        report: The report to draw.
    """
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    # Places of texts can be computed on a canvas only.
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    if report.train_curve:
        axis.plot(*zip(*report.train_curve, strict=True), color=_GREY, linewidth=1, label="training loss")
    steps, losses = [each.step for each in report.evaluations], [each.loss for each in report.evaluations]
    axis.plot(steps, losses, "o-", color=_BLUE, markersize=4, label="validation loss, with its perplexity")
    axis.set(
        xlabel="weight updates",
        ylabel="loss (nats per masked token)",
        title=f"perplexity {report.perplexity_before:,.4g} before, {report.perplexity:,.4g} after",
    )
    axis.margins(y=0.2)
    axis.grid(axis="y", color="#e4e7eb")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    # Outside, where no curve passes.
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    labels = _labels(axis, report.evaluations)
    canvas.draw()
    _thin_out(canvas, labels)
    return figure


def _labels(axis: Axes, evaluations: tuple[Evaluation, ...]) -> list[Annotation]:
    """Write the perplexity above each evaluation; the first, the best and the last come first in the list."""
    turned = len(evaluations) > _MOST_HORIZONTAL
    best = min(range(len(evaluations)), key=lambda at: evaluations[at].loss)
    first = dict.fromkeys((0, len(evaluations) - 1, best))
    # Then every second one, every fourth one and so on are left out, so that those that stay are evenly spaced.
    rest = sorted(range(len(evaluations)), key=lambda at: -(at & -at))
    found = []
    for at in dict.fromkeys((*first, *rest)):
        each = evaluations[at]
        label = axis.annotate(
            f"{each.perplexity:,.4g}",
            (each.step, each.loss),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if turned else 0,
            fontsize=8 if turned else 9,
            color=_BLUE if at == best else "black",
            fontweight="bold" if at == best else "normal",
            # Readable where a line passes behind it.
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        found.append(label)
    return found


def _thin_out(canvas: FigureCanvasAgg, labels: list[Annotation]) -> None:
    """Remove labels that would lie over an earlier one in the list, or over the legend."""
    renderer = canvas.get_renderer()
    taken = [legend.get_window_extent(renderer) for legend in canvas.figure.legends]
    for label in labels:
        box = label.get_window_extent(renderer)
        if any(box.overlaps(other) for other in taken):
            label.remove()
        else:
            taken.append(box)
