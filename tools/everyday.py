"""Count a bundle's sensible answers to the 40 sentences of everyday_sentences.jsonl.

    python tools/everyday.py mlm_infer/resources/english-small

The answers that count as right were written before any model was asked.
"""

import json
from pathlib import Path

import click

from mlm_infer import MaskFiller

SENTENCES = Path(__file__).with_name("everyday_sentences.jsonl")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def main(bundle: Path) -> None:
    """Print the five answers of BUNDLE to every sentence, and how many are right."""
    rows = [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    first = among_five = 0
    with MaskFiller(bundle) as filler:
        for row, prediction in zip(rows, filler.fill_batch([row["text"] for row in rows], top_k=5), strict=True):
            words = [candidate.token for candidate in prediction.masks[0].predictions]
            first += words[0] in row["answers"]
            among_five += any(word in row["answers"] for word in words)
            marked = (f"*{word}" if word in row["answers"] else word for word in words)
            click.echo(f"{row['text']:<60} {' '.join(marked)}")
    click.echo(f"right: first answer {first}, one among five {among_five}, of {len(rows)} sentences")


if __name__ == "__main__":
    main()
