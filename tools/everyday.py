"""Judge a bundle for everyday use: 40 sentences with one mask, and the words of unseen reviews.

    python tools/everyday.py mlm_infer/resources/english-small

The answers that count as right, in everyday_sentences.jsonl, were written before any model was asked. The
perplexity is per word, each piece predicted without the rest of its word, so models with different
vocabularies compare.
"""

import json
import math
from pathlib import Path

import click

from mlm_infer import MaskFiller
from mlm_infer.shared.samples import movie_reviews

SENTENCES = Path(__file__).with_name("everyday_sentences.jsonl")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def main(bundle: Path) -> None:
    """Print the five answers of BUNDLE to every sentence, how many are right, and the perplexity per word."""
    rows = [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    reviews = movie_reviews("validation")
    first = among_five = 0
    with MaskFiller(bundle) as filler:
        for row, result in zip(rows, filler.fill_batch([row["text"] for row in rows], top_k=5), strict=True):
            words = [prediction.token for prediction in result.masks[0].predictions]
            first += words[0] in row["answers"]
            among_five += any(word in row["answers"] for word in words)
            marked = (f"*{word}" if word in row["answers"] else word for word in words)
            click.echo(f"{row['text']:<60} {' '.join(marked)}")
        scores = filler.score(reviews, method="pll_word_l2r")
    perplexity = math.exp(-sum(score.logprob for score in scores) / sum(len(text.split()) for text in reviews))
    click.echo(f"right: first answer {first}, one among five {among_five}, of {len(rows)} sentences (* is right)")
    click.echo(f"unseen reviews: perplexity per word {perplexity:.1f}")


if __name__ == "__main__":
    main()
