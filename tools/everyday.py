"""Judge a bundle for everyday use: 40 sentences with one mask, and the words of unseen reviews.

    python tools/everyday.py mlm_infer/resources/english-small

The answers that count as right, in everyday_sentences.jsonl, were written before any model was asked. The
perplexity is per word, each piece predicted without the rest of its word, so models with different
vocabularies compare.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import click

from mlm_infer import MaskFiller
from mlm_infer.shared.samples import movie_reviews

SENTENCES = Path(__file__).with_name("everyday_sentences.jsonl")


class Judgement(NamedTuple):
    """What a bundle knows of everyday English.

    Attributes:
        answers: For each sentence, the sentence and five answers; a star marks those that are right.
        first: Sentences whose first answer is right.
        among_five: Sentences with a right one among five answers.
        perplexity: Per word of the unseen reviews.
    """

    answers: list[str]
    first: int
    among_five: int
    perplexity: float


def judge(bundle: Path) -> Judgement:
    """Judge a bundle.

    Args:
        bundle: Its folder.

    Returns:
        The answers and the counts.
    """
    rows = [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    reviews = movie_reviews("validation")
    answers, first, among_five = [], 0, 0
    with MaskFiller(bundle) as filler:
        for row, result in zip(rows, filler.fill_batch([row["text"] for row in rows], top_k=5), strict=True):
            words = [prediction.token for prediction in result.masks[0].predictions]
            right = [word in row["answers"] for word in words]
            first += right[0]
            among_five += any(right)
            marked = (f"*{word}" if good else word for word, good in zip(words, right, strict=True))
            answers.append(f"{row['text']:<60} {' '.join(marked)}")
        scores = filler.score(reviews, method="pll_word_l2r")
    lost = -sum(score.logprob for score in scores)
    return Judgement(answers, first, among_five, math.exp(lost / sum(len(text.split()) for text in reviews)))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def main(bundle: Path) -> None:
    """Print the five answers of BUNDLE to every sentence, how many are right, and the perplexity per word."""
    found = judge(bundle)
    click.echo("\n".join(found.answers))
    click.echo(
        f"right: first answer {found.first}, one among five {found.among_five}, of {len(found.answers)} sentences"
    )
    click.echo(f"unseen reviews: perplexity per word {found.perplexity:.1f}")


if __name__ == "__main__":
    main()
