"""Fine-tune a real masked language model on movie reviews, export it, and fill masks with every stage of it.

    python examples/demo.py [--short]

Starts from the small BERT that tools/sources.py unpacks from a package, so no model hub is needed.
"""

import shutil
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
WORK = Path(".work/demo")
TEXTS = (
    "This is a great [MASK].",
    "The acting was [MASK] and the plot made no sense.",
    "I laughed from the first [MASK] to the last.",
    "One of the [MASK] films of the year.",
    "The [MASK] is predictable, but the cast is wonderful.",
)


def main() -> None:
    """Run the demo."""
    from mlm_infer.export import export_bundle
    from mlm_infer.training import TrainConfig, fine_tune
    from sources import base_checkpoint
    from transformers import pipeline
    from transformers.utils import logging

    from mlm_infer import MaskFiller
    from mlm_infer.shared.tables import format_table

    logging.set_verbosity_error()
    short = "--short" in sys.argv[1:]
    shutil.rmtree(WORK, ignore_errors=True)
    click.echo(
        f"This takes {'one to two' if short else 'two to four'} minutes on 2 cores, most of it for the training."
    )
    say("1. The base checkpoint: BERT, 2 layers, 128 wide, with its masked-language-model head")
    base = base_checkpoint(Path(".work/base"))
    before = pipeline("fill-mask", model=str(base), device="cpu")

    say("2. Fine-tuning on 9,543 sentences of movie reviews (mlm-train)")
    config = TrainConfig(
        model=str(base),
        output=WORK / "model",
        data="movie-reviews",
        epochs=1.5 if short else 4,
        learning_rate=2e-3,
        warmup_ratio=0.05,
        dropout=0.0,
    )
    report = fine_tune(config, progress=True)
    click.echo(report.table())
    click.echo(f"\nthe report: {WORK / 'model/report/index.html'}")

    say("3. Exporting to ONNX, fp32 and int8, and comparing with PyTorch (mlm-export --quantize)")
    parity = export_bundle(str(config.output), WORK / "bundle", precisions=["fp32", "int8"])
    click.echo(parity.table())

    say("4. Filling masks with every stage")
    after = pipeline("fill-mask", model=str(config.output), device="cpu")
    fp32 = MaskFiller(WORK / "bundle", precision="fp32")
    int8 = MaskFiller(WORK / "bundle", precision="int8")
    for text in TEXTS:
        click.echo(f"\n{text}")
        columns = [[row["token_str"] for row in each(text, top_k=4)] for each in (before, after, fp32, int8)]
        titles = ["PyTorch before", "PyTorch after", "ONNX fp32", "ONNX int8"]
        click.echo(format_table(titles, list(zip(*columns, strict=True))))

    say("Next")
    click.echo(f'  mlm-fill --model {WORK / "bundle"} "A truly [MASK] ending."')
    click.echo('  mlm-fill "The capital of France is [MASK]."            (the small model of the package)')
    click.echo("  mlm-train --recipe imdb-distilbert --output out       (the real thing, with a model hub)")


def say(title: str) -> None:
    """Print a heading."""
    click.secho(f"\n{title}", bold=True)


if __name__ == "__main__":
    main()
