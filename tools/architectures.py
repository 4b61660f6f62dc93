"""Trains, exports and times every architecture, and writes the tables of docs/architectures.md.

    .venv/bin/python tools/architectures.py                 # the table of transformers 4 and Optimum
    .venv-transformers/bin/python tools/architectures.py    # the table of transformers 5 and its own exporter

Takes a quarter of an hour on two cores. Parity is measured on the tiny models of the tests. Speed is measured on models
with 4 layers, 256 wide, because a tiny model spends most of its time in the tokenizer.
"""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from mlm_infer.export import Budget, export_bundle
from mlm_infer.training import TrainConfig, fine_tune
from tiny_models import BUILDERS, WIDE

from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.errors import ExportError, MlmInferError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/architectures.md"
MAJOR = importlib.metadata.version("transformers").partition(".")[0]
BEGIN, END = f"<!-- table: python tools/architectures.py, transformers {MAJOR} -->", "<!-- end -->"
HEADER = (
    "architecture",
    "trains",
    "fp32, max score difference",
    "int8, top-1 agreement",
    "attention fused",
    "at masks",
    "padding",
    "fp32 / int8, speed-up",
)


def measure(architecture: str, work: Path, *, timed: bool) -> dict[str, Any]:
    """Train, export and time one architecture.

    Args:
        architecture: A name of `BUILDERS`.
        work: Folder for its models, made anew.
        timed: Measure the speed as well.

    Returns:
        The values of the table; a step that fails leaves its error message under its name.
    """
    shutil.rmtree(work, ignore_errors=True)
    found: dict[str, Any] = {}
    tiny = BUILDERS[architecture](work / "tiny")
    found["trains"] = _train(architecture, tiny, work)
    precisions = ["fp32", "int8"]
    try:
        try:
            cases = export_bundle(str(tiny), work / "bundle", precisions=precisions).cases
        except ExportError as error:
            found["int8"] = str(error)
            precisions.remove("int8")
            cases = export_bundle(str(tiny), work / "bundle", precisions=precisions).cases
    except MlmInferError as error:
        return found | {"error": str(error)}
    manifest = read_manifest(work / "bundle")
    found["score_difference"] = max(case.score_difference for case in cases if case.precision == "fp32")
    if "int8" in precisions:
        found["agreement"] = manifest.models["int8"].details["agreement"]
    found["mixes_padding"] = manifest.mixes_padding
    found |= manifest.models["fp32"].details
    if timed:
        void = Budget(max_perplexity_increase=1e9, min_agreement=0.0)
        wide = BUILDERS[architecture](work / "wide", sizes=WIDE)
        export_bundle(str(wide), work / "wide-bundle", precisions=precisions, budget=void)
        bench = [sys.executable, "-m", "mlm_infer.benchmarks", str(work / "wide-bundle")]
        done = subprocess.run([*bench, "--against", str(wide), "--json"], check=True, capture_output=True, text=True)  # noqa: S603
        found["bench"] = json.loads(done.stdout)
    return found


def _train(architecture: str, checkpoint: Path, work: Path) -> str:
    """Return whether a short training lowers the loss, or why it failed."""
    config = TrainConfig(
        model=str(checkpoint),
        data=_text(architecture, work),
        output=work / "trained",
        epochs=1,
        block_size=32,
        max_train_blocks=64,
        max_validation_blocks=64,
        learning_rate=1e-2,
    )
    try:
        losses = [each.loss for each in fine_tune(config).evaluations]
    except MlmInferError as error:
        return f"no: {error}"
    return "yes" if losses[-1] < losses[0] else "loss does not fall"


def _text(architecture: str, work: Path) -> str:
    """Return the training data: reviews, or proteins for a vocabulary of residues."""
    if architecture not in ("esm", "esmc"):
        return "movie-reviews"
    path = work / "proteins.txt"
    path.write_text("MKTLAGVSERTIDPKQNFYMHWC\n" * 400, encoding="utf-8")
    return str(path)


def row(architecture: str, found: dict[str, Any]) -> list[str]:
    """Return the cells of one architecture."""
    if "error" in found:
        return [architecture, found["trains"], f"not exported: {found['error']}", *[""] * 5]
    speed = "not measured"
    if "bench" in found:
        figures = found["bench"]["figures"]
        times = {name: each["many texts, texts/s"] for name, each in figures.items()}
        speed = " / ".join(f"{times[each] / times['pipeline']:.1f}" for each in ("fp32", "int8") if each in times)
    return [
        architecture,
        found["trains"],
        f"{found['score_difference']:.0e}",
        f"{found['agreement']:.1%}" if "agreement" in found else f"none: {found['int8']}",
        f"{found['fusions'].get('MultiHeadAttention', 0)} of 2",
        f"{found['nodes_at_masks']} / {found['nodes_at_rows']}",
        "equal lengths" if found["mixes_padding"] else "yes",
        speed,
    ]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    rows = [list(HEADER), ["---"] * len(HEADER), *(row(*each) for each in results.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


@click.command()
@click.argument("architectures", nargs=-1, type=click.Choice(list(BUILDERS)))
@click.option(
    "--work", type=click.Path(path_type=Path), default=ROOT / f".work/architectures-{MAJOR}", show_default=True
)
@click.option("--speed/--no-speed", default=True, help="Time them against the transformers pipeline.")
def main(architectures: tuple[str, ...], work: Path, speed: bool) -> None:
    """Measure ARCHITECTURES (default: all), and update their rows of the table of the installed transformers."""
    work.mkdir(parents=True, exist_ok=True)
    for architecture in architectures or BUILDERS:
        click.echo(architecture, err=True)
        found = measure(architecture, work / architecture, timed=speed)
        (work / f"{architecture}.json").write_text(json.dumps(found), encoding="utf-8")
    files = {name: work / f"{name}.json" for name in BUILDERS}
    results = {
        name: json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"trains": "", "error": "not run"}
        for name, path in files.items()
    }
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{table(results)}{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
