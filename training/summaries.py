"""Writes what people look at beside a finished model: the curve, the page, the model card and the report as JSON."""

from pathlib import Path

from .card import save_card
from .curve import save_curve
from .page import save_page
from .report import TrainReport

__all__ = ["save_summaries"]


def save_summaries(report: TrainReport, folder: Path) -> None:
    """Write `report/curve.png`, `report/index.html`, `README.md` and `training_report.json`.

    Args:
        report: What they tell.
        folder: Folder of the model; every file in it counts as this package's.
    """
    picture = folder / "report/curve.png"
    picture.parent.mkdir(exist_ok=True)
    save_curve(report, picture)
    save_page(report, picture, folder / "report/index.html")
    save_card(report, folder / "README.md")
    report.save(folder)
