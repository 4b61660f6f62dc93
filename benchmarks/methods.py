"""`python -m mlm_infer.benchmarks.methods BUNDLE CHECKPOINT`: measures the methods other than `fill`."""

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click

from mlm_infer.shared.command import command_errors
from mlm_infer.shared.samples import movie_reviews
from mlm_infer.shared.tables import format_table

_ROUNDS = 9
"""Odd, so that the median is one of the measured ratios."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True)
@click.option("--precision", default="auto", show_default=True)
@command_errors
def main(bundle: Path, checkpoint: Path, threads: int, precision: str) -> None:
    """Compare methods of BUNDLE with a plain implementation, in alternation; CHECKPOINT is the same model."""
    import torch

    from mlm_infer import AsyncMaskFiller, MaskFiller

    from .texts import bulk_texts

    torch.set_num_threads(threads)
    filler = MaskFiller(bundle, threads=threads, precision=precision)
    mask = filler.info.mask_token
    texts = bulk_texts(mask, 256, "validation")
    targets = [word for word in filler.model.encoder.vocabulary.ids if word.isalpha()][:10_000]
    sentences = movie_reviews("validation")[:8]
    by_torch = _torch_scores(checkpoint)

    async def together() -> None:
        async with AsyncMaskFiller(filler) as server:
            await asyncio.gather(*map(server.fill, texts))

    cases: list[tuple[str, Callable[[], object], str, Callable[[], object]]] = [
        (
            f"score of {len(sentences)} sentences",
            lambda: filler.score(sentences),
            "a torch loop, a token at a time",
            lambda: [by_torch(sentence) for sentence in sentences],
        ),
        (
            f"{len(texts)} awaits at once",
            lambda: asyncio.run(together()),
            "one fill after the other",
            lambda: list(map(filler.fill, texts)),
        ),
        (
            "top 5 of the vocabulary",
            lambda: list(map(filler.fill, texts)),
            f"of {len(targets):,} targets",
            lambda: [filler.fill(text, targets=targets) for text in texts],
        ),
    ]
    rows = []
    for ours, run, theirs, plain in cases:
        # Untimed: the first calls fill caches of vocabulary lookups and warm up the threads.
        run()
        plain()
        # The ratio of each pair, not of the sums: the load of the machine changes from round to round.
        pairs = [(_seconds(run), _seconds(plain)) for _ in range(_ROUNDS)]
        ratio = statistics.median(slow / quick for quick, slow in pairs)
        cells = [f"{statistics.median(each) * 1e3:.0f}" for each in zip(*pairs, strict=True)]
        rows.append([ours, cells[0], theirs, cells[1], f"{ratio:.2f}x"])
    click.echo(f"{filler.info.architecture}, {filler.info.precision}, {threads} threads")
    click.echo(format_table(["", "ms", "against", "ms", "takes"], rows))


def _torch_scores(checkpoint: Path) -> Callable[[str], float]:
    """Return a plain implementation of the pseudo-log-likelihood, which runs the whole model for each token."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()

    @torch.inference_mode()
    def score(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        total = 0.0
        # Without the special tokens at both ends.
        for place in range(1, ids.shape[1] - 1):
            masked = ids.clone()
            masked[0, place] = tokenizer.mask_token_id
            total += float(model(input_ids=masked).logits[0, place].log_softmax(-1)[ids[0, place]])
        return total

    return score


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
