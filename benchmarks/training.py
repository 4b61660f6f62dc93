"""`python -m mlm_infer.benchmarks.training`: compares training with transformers' own Trainer, step by step in turns.

Every trainer runs in a process of its own and waits for its turn before each step, so that disturbances of the machine
affect all of them alike. Model, blocks, masks, order and seed are the same, without dropout, so the losses must be too.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from mlm_infer.training.blocks import make_blocks
from mlm_infer.training.data import load_documents
from mlm_infer.training.dropout import set_dropout
from mlm_infer.training.masked_forward import MaskedForward
from mlm_infer.training.masks import MaskedBlocks, MaskRule, freeze_masks
from mlm_infer.training.trainer import MaskedLMTrainer
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mlm_infer.runtime.cpu import cpu_flags, cpu_name
from mlm_infer.shared.command import command_errors
from mlm_infer.shared.tables import format_table

from .shapes import SHAPES, make_checkpoint

PLAIN = "transformers Trainer"
ENGINES = {PLAIN: "plain", "all at the masks": "best", "head at the masks": "head"}
_WARM_UP = 2


class PlainTrainer(Trainer):
    """transformers' own Trainer, with the batches that ours has."""

    get_train_dataloader = MaskedLMTrainer.get_train_dataloader


class InTurns(TrainerCallback):
    """Waits for a line on stdin before each step, and answers with its time and loss."""

    def __init__(self) -> None:
        # Libraries write to stdout; the answers need a channel of their own.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started = self._seconds = 0.0

    def on_step_begin(self, *_args: Any, **_rest: Any) -> None:
        """Wait for the turn."""
        sys.stdin.readline()
        self._started = time.perf_counter()

    def on_step_end(self, *_args: Any, **_rest: Any) -> None:
        """Stop the time."""
        self._seconds = time.perf_counter() - self._started

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_rest: Any) -> None:
        """Answer, once the loss is known."""
        if "grad_norm" not in logs:
            return
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            peak = next(int(row.split()[1]) for row in status if row.startswith("VmHWM")) / 1024
        self._answers.write(json.dumps({"seconds": self._seconds, "loss": logs["loss"], "peak_mb": peak}) + "\n")
        self._answers.flush()


def train(kind: str, checkpoint: Path, batch_size: int, block_size: int, steps: int, *, half: bool) -> None:
    """Train so many steps, each when its turn comes."""
    turns = InTurns()
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModelForMaskedLM.from_pretrained(checkpoint)
    set_dropout(model, 0.0)
    texts = load_documents("movie-reviews")
    blocks = make_blocks(texts, tokenizer, block_size).sample(batch_size * steps, 0)
    rule = MaskRule.of(tokenizer, 0.15)
    frozen = freeze_masks(blocks.sample(2, 0), rule, batch_size=2, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "model": model,
            "args": TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                max_steps=steps,
                use_cpu=not torch.cuda.is_available(),
                bf16=half,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
            ),
            "train_dataset": MaskedBlocks(blocks, rule, 0),
            "data_collator": rule.collate,
        }
        if kind == "plain":
            trainer: Trainer = PlainTrainer(**options)
        else:
            way = MaskedForward.best(model, frozen, last_layer=kind == "best")
            trainer = MaskedLMTrainer(frozen=frozen, way=way, **options)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(turns)
        trainer.train()


def compare(checkpoint: Path, batch_size: int, block_size: int, steps: int, threads: int) -> list[list[str]]:
    """Run all trainers in turns, and return the rows of the table."""
    engines = dict(ENGINES)
    if cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        engines |= {f"{name}, bf16": f"{kind}-bf16" for name, kind in ENGINES.items() if name != "head at the masks"}
    common = [str(checkpoint), str(batch_size), str(block_size), str(steps + _WARM_UP)]
    processes = {
        name: subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __spec__.name, "--worker", kind, *common],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        for name, kind in engines.items()
    }
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for _ in range(steps + _WARM_UP):
        for name, process in processes.items():
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a worker has no pipes")
            if process.poll() is not None:
                raise RuntimeError(f"{name!r} died; add `--worker {engines[name]}` by hand to see why")
            process.stdin.write("\n")
            process.stdin.flush()
            answers[name].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    rows = []
    for name, found in answers.items():
        base = answers[PLAIN]
        timed, plain = found[_WARM_UP:], base[_WARM_UP:]
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(timed, plain, strict=True))
        rate = batch_size * block_size / statistics.median(each["seconds"] for each in timed)
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(found, base, strict=True))
        peak = found[-1]["peak_mb"]
        cells = [f"{rate:.0f}", f"{ratio:.2f}x", f"{peak:.0f}", f"{peak / base[-1]['peak_mb']:.2f}", f"{apart:.0e}"]
        rows.append([str(batch_size), name, *cells])
    return rows


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="distilroberta", show_default=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=[8, 16, 32], show_default=True)
@click.option("--block-size", default=128, show_default=True)
@click.option("--steps", default=8, show_default=True, help="Timed steps; two more come before them.")
@click.option("--threads", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path(".work/training"), help="Folder for the model.")
@command_errors
def main(shape: str, batch_sizes: tuple[int, ...], block_size: int, steps: int, threads: int, work: Path) -> None:
    """Print tokens a second, peak memory and the largest difference of a loss for each batch size.

    transformers 4 rounds the loss of its own Trainer to four digits.
    """
    checkpoint = make_checkpoint(shape, work / shape)
    rows = [row for size in batch_sizes for row in compare(checkpoint, size, block_size, steps, threads)]
    click.echo(f"{shape}, blocks of {block_size}, {cpu_name()}, {threads} threads")
    header = ["batch", "trainer", "tokens/s", "speed-up", "peak MB", "of plain", "largest difference of a loss"]
    click.echo(format_table(header, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, path, *numbers = sys.argv[2:]
        batch, block, count = map(int, numbers)
        train(name.removesuffix("-bf16"), Path(path), batch, block, count, half=name.endswith("-bf16"))
    else:
        main()
