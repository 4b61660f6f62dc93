"""Trains and exports the same model with transformers 4 and with transformers 5, and prints what differs.

    make setup && make setup STACK=transformers && .venv/bin/python tools/compare_stacks.py

docs/stacks.md quotes the table.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import numpy as np
from sources import base_checkpoint

from mlm_infer import MaskFiller
from mlm_infer.shared.checkpoint import open_checkpoint
from mlm_infer.shared.samples import movie_reviews

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {"4": ROOT / ".venv/bin", "5": ROOT / ".venv-transformers/bin"}
TEXTS = 200


def run(version: str, checkpoint: Path, work: Path) -> dict[str, Any]:
    """Train and export with one version.

    Args:
        version: Major version of transformers.
        checkpoint: What to fine-tune.
        work: Folder for the results.

    Returns:
        The training report.
    """
    binaries, trained = ENVIRONMENTS[version], work / f"trained-{version}"
    options = ["--epochs", "2", "--max-train-blocks", "400", "--max-validation-blocks", "100"]
    for command in (
        ["mlm-train", "--model", str(checkpoint), "--data", "movie-reviews", "--output", str(trained), *options],
        ["mlm-export", str(trained), str(work / f"bundle-{version}"), "--quantize"],
    ):
        click.echo(f"transformers {version}: {' '.join(command)}", err=True)
        subprocess.run([binaries / command[0], *command[1:]], check=True, capture_output=True)  # noqa: S603
    report: dict[str, Any] = json.loads((trained / "training_report.json").read_text(encoding="utf-8"))
    return report


def fills(bundle: Path, precision: str) -> tuple[list[int], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the best token of the mask in each of some sentences, and its probability."""
    filler = MaskFiller(bundle, precision=precision)
    texts = [f"{text.rsplit(' ', 1)[0]} [MASK]" for text in movie_reviews()[-TEXTS:] if " " in text]
    best = [each.masks[0].predictions[0] for each in filler.fill_batch(texts, top_k=1)]
    return [each.token_id for each in best], np.array([each.score for each in best])


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / ".work/stacks", show_default=True)
def main(work: Path) -> None:
    """Print a table of what training and export give on both versions."""
    checkpoint = base_checkpoint(ROOT / ".work/base")
    shutil.rmtree(work, ignore_errors=True)
    reports = {version: run(version, checkpoint, work) for version in ENVIRONMENTS}
    rows = [["", *(f"transformers {version}" for version in ENVIRONMENTS), "difference"], ["---"] * 4]
    for evaluations in zip(*(report["evaluations"] for report in reports.values()), strict=True):
        losses = [each["loss"] for each in evaluations]
        shown = [f"{loss:.6f}" for loss in losses]
        rows.append([f"validation loss, {evaluations[0]['when']}", *shown, f"{abs(losses[0] - losses[1]):.1e}"])
    # Loaded, not compared file by file: transformers 5 saves weights under the names that they were loaded with.
    one, other = (open_checkpoint(str(work / f"trained-{version}"))[0].state_dict() for version in ENVIRONMENTS)
    furthest = max(float((one[name] - other[name]).abs().max()) for name in one)
    rows.append(["trained weights, largest difference", "", "", f"{furthest:.1e}"])
    for precision in ("fp32", "int8"):
        (ids, scores), (others, other_scores) = (fills(work / f"bundle-{each}", precision) for each in ENVIRONMENTS)
        same = sum(one == other for one, other in zip(ids, others, strict=True))
        rows.append([f"{precision} export, same best token", "", "", f"{same} of {len(ids)}"])
        difference = float(np.abs(scores - other_scores).max())
        rows.append([f"{precision} export, largest difference of a probability", "", "", f"{difference:.1e}"])
    for cells in rows:
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
