"""Train a model to measure quality with: MiniLM's encoder (6 layers, 384 wide) with a head trained on reviews.

    python tools/trained_model.py .work/trained

Twenty minutes on two cores. The head is new, so it begins as the identity on the tied embeddings; the text is
the training split of `movie-reviews` with newspaper and product reviews, validation the unseen split.
"""

import random
import subprocess
import sys
from pathlib import Path

import click
from sources import minilm_encoder, vader_texts

from mlm_infer.shared.samples import movie_reviews

TRAIN = (
    "--validation-data movie-reviews --validation-split validation --epochs 6 --learning-rate 5e-4 "
    "--warmup-ratio 0.05 --lr-scheduler cosine --dropout 0 --batch-size 16 --seed 7"
)


def with_head(encoder: Path, folder: Path) -> Path:
    """Write a checkpoint of the encoder with a head that is the identity.

    Args:
        encoder: A BERT checkpoint without a head.
        folder: Where to put it.

    Returns:
        `folder`.
    """
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(encoder)
    dense = model.cls.predictions.transform.dense
    with torch.no_grad():
        dense.weight.copy_(torch.eye(len(dense.weight)))
        dense.bias.zero_()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write the trained checkpoint to FOLDER; an existing one is reused."""
    if folder.exists():
        return
    work = folder.with_name(f"{folder.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    start = with_head(minilm_encoder(work / "encoder"), work / "start")
    documents = [sentence for sentences in vader_texts().values() for sentence in sentences] + movie_reviews()
    random.Random(7).shuffle(documents)  # noqa: S311
    text = work / "text.txt"
    text.write_text("\n".join(documents) + "\n", encoding="utf-8")
    train = Path(sys.executable).with_name("mlm-train")
    command = [str(train), "--model", str(start), "--data", str(text), "--output", str(folder), *TRAIN.split()]
    subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
