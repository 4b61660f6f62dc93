"""Batch sizes that fit into little memory, in a process of its own: `python -m tests.helpers.little_memory MODEL`.

oneDNN keeps what it could not create for lack of memory, so a process is of no use after that.
"""

import json
import resource
import sys
from pathlib import Path

import click
from mlm_infer.training.batch_size import fitting_batch_size
from mlm_infer.training.masked_forward import MaskedForward
from transformers import AutoModelForMaskedLM

from mlm_infer import TrainingError


def allow(more: int) -> None:
    """Let this process take so many bytes more."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def main(model_folder: str) -> None:
    """Print what fits of 2 blocks, of 192 blocks in 1 GB, and of a block in 1 MB."""
    model = AutoModelForMaskedLM.from_pretrained(model_folder)
    way = MaskedForward(model, head=False)

    def fit(batch_size: int, block_size: int) -> int:
        return fitting_batch_size(model, batch_size, block_size, share=0.15, precision="fp32", way=way)

    found: list[int | str] = [fit(2, 128)]
    allow(1_000_000_000)  # the logits of 192 blocks are 3 GB
    found.append(fit(192, 128))
    left = sum(weight.grad is not None for weight in model.parameters())
    allow(1_000_000)  # the logits of one block of 512 tokens are 62 MB
    try:
        found.append(fit(4, 512))
    except TrainingError as error:
        found.append(str(error))
    click.echo(json.dumps([*found, left]))


if __name__ == "__main__":
    main(sys.argv[1])
