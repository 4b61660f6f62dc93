"""Recipes: the values of the two write-ups, and whole runs on data of the same layout."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from mlm_infer.training import TrainConfig, load_recipe, recipe_names
from mlm_infer.training.blocks import make_blocks
from mlm_infer.training.data import load_splits
from transformers import AutoTokenizer, TrainingArguments

from mlm_infer import InputError
from mlm_infer.shared.samples import movie_reviews
from tests.helpers.paths import ROOT

TEXTS = [f"Sentence number {number} is about a film." for number in range(40)]


IMDB = {
    "model": "distilbert/distilbert-base-uncased",
    "data": "stanfordnlp/imdb",
    "text_column": "text",
    "max_train_blocks": 10_000,
    "max_validation_blocks": 1_000,
    "block_size": 128,
    "mlm_probability": 0.15,
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "prompts": ("This is a great [MASK]",),
}
"""README of "Masked Language Modeling with DistilBERT", sections Dataset, Training and Inference; the data set has that
name on the Hub now, and the model the prefix of its owner."""

ELI5 = {
    "model": "distilbert/distilroberta-base",
    "text_column": "answers.text",
    "train_split": "train[:5000]",
    "validation_fraction": 0.2,
    "block_size": 128,
    "mlm_probability": 0.15,
    "epochs": 3,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "prompts": ("The Milky Way is a <mask> galaxy.",),
}
"""Code blocks of "Masked Language Modeling (MLM)", the guide to DistilRoBERTa on ELI5-Category."""


def test_recipes_hold_the_values_of_the_write_ups() -> None:
    """Every value, and beyond them only where the data are; what a write-up leaves open is the Trainer's default."""
    assert recipe_names() == ["eli5-distilroberta", "imdb-distilbert"]
    imdb, eli5 = load_recipe("imdb-distilbert"), load_recipe("eli5-distilroberta")
    assert imdb == IMDB | {"train_split": "train", "validation_split": "test"}
    place = {"data": "rexarski/eli5_category", "data_revision": "refs/convert/parquet"}
    assert eli5 == ELI5 | place | {"batch_size": TrainingArguments("x").per_device_train_batch_size}
    for recipe in (imdb, eli5):
        config = TrainConfig(**recipe, output=Path("x"))
        default = TrainingArguments("x")
        assert (config.lr_scheduler, config.warmup_ratio) == (default.lr_scheduler_type.value, default.warmup_steps)
        assert config.max_grad_norm == default.max_grad_norm


def test_document_has_the_figures_of_the_write_up() -> None:
    """What it reports, and what its own losses come to."""
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    # Table "Training Results" of the write-up on IMDB.
    reported = {"perplexity": ("21.94", "12.02"), "loss": ("2.4932", "2.4480", "2.4808")}
    for figures in reported.values():
        assert all(figure in text for figure in figures)
    for loss in ("2.4932", "2.4808"):
        assert f"{math.exp(float(loss)):.2f}" in text
    assert (f"{math.exp(2.4932):.2f}", f"{math.exp(2.4808):.2f}") == ("12.10", "11.95")


def test_wrong_recipes(tmp_path: Path) -> None:
    """A file of one's own, and every mistake in it."""
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 1\nprompts = ["A [MASK]."]\nscheduler_options = { min_lr = 1e-6 }')
    assert load_recipe(str(path)) == {
        "epochs": 1,
        "prompts": ("A [MASK].",),
        "scheduler_options": {"min_lr": 1e-6},
    }
    for content, message in (("epoch = 1", "unknown field 'epoch'"), ("epochs = 'x'", "is a str"), ("=", "not TOML")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_recipe(str(path))
    with pytest.raises(InputError, match="no recipe 'imdb'"):
        load_recipe("imdb")


def imdb_folder(folder: Path) -> Path:
    """The layout of IMDB on the Hub, with a word in each split that the others lack."""
    for split, count in (("train", 120), ("test", 60), ("unsupervised", 150)):
        texts = [f"{text} word{split}" for text in movie_reviews()[:count]]
        path = folder / f"plain_text/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"text": texts, "label": [0] * count}).to_parquet(path)
    return folder


def eli5_file(path: Path, layout: str) -> Path:
    """The columns of ELI5-Category, 5,100 rows, with the answers in one of two layouts."""
    rows = []
    for number in range(5_100):
        second = "wordlate" if number >= 5000 else "So."
        answers = [{"text": f"Answer {number}.", "score": 3}, {"text": second, "score": 1}]
        columns = {name: [each[name] for each in answers] for name in ("text", "score")}
        nested = columns if layout == "struct of lists" else answers
        rows.append({"q_id": str(number), "title": "Why?", "category": "Physics", "answers": nested})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def text_of(config: TrainConfig) -> tuple[str, str]:
    """The text of all training blocks and of all validation blocks."""
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    splits = load_splits(config)
    blocks = [make_blocks(each, tokenizer, config.block_size) for each in (splits.train, splits.validation)]
    # In one piece, because a word may begin in one block and end in the next.
    inner = ([token for ids in each for token in ids[1:-1].tolist()] for each in blocks)
    train, validation = (tokenizer.decode(ids).replace(" ", "") for ids in inner)
    return train, validation


def test_no_other_split_is_in_the_training_blocks(tiny: dict[str, Path], tmp_path: Path) -> None:
    """IMDB: not the test and not the unsupervised split; ELI5: nothing after the first 5,000 rows."""
    values = {"model": str(tiny["distilbert"]), "data": str(imdb_folder(tmp_path / "imdb")), "block_size": 32}
    train, validation = text_of(TrainConfig(**load_recipe("imdb-distilbert") | values, output=tmp_path / "out"))
    assert train.count("wordtrain") == 120
    assert validation.count("wordtest") == 60
    assert "wordtest" not in train
    assert "wordtrain" not in validation
    assert "wordunsupervised" not in train + validation
    values = {"model": str(tiny["roberta"]), "data": str(eli5_file(tmp_path / "e.parquet", "list of structs"))}
    recipe = load_recipe("eli5-distilroberta") | values | {"block_size": 32, "data_revision": None}
    train, validation = text_of(TrainConfig(**recipe, output=tmp_path / "out"))
    assert (train.count("Answer"), validation.count("Answer")) == (4_000, 1_000)
    assert "wordlate" not in train + validation


def run_recipe(recipe: str, model: Path, data: Path, output: Path, *options: str) -> dict[str, Any]:
    """Run a recipe to the end and return its report."""
    command: list[str | Path] = ["mlm-train", "--recipe", recipe, "--model", model, "--data", data, "--output", output]
    command += ["--block-size", "32", "--precision", "fp32", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.slow
def test_imdb_recipe_runs_to_the_end(tiny: dict[str, Path], tmp_path: Path) -> None:
    """On a folder with the three splits; the test split is validated on, and the third is named as not used."""
    data = imdb_folder(tmp_path / "imdb")
    report = run_recipe("imdb-distilbert", tiny["distilbert"], data, tmp_path / "out", "--validation-split", "test")
    assert report["documents"] == {
        "train": 120,
        "validation": 60,
        "empty": 0,
        "repeated": 0,
        "unused_splits": ["unsupervised"],
    }
    assert [each["when"] for each in report["evaluations"]] == ["before", "epoch 1", "epoch 2", "end"]
    assert report["perplexity"] < report["perplexity_before"]
    assert {each["text"] for each in report["fills"]} == {"This is a great [MASK]"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["struct of lists", "list of structs"])
def test_eli5_recipe_runs_to_the_end(layout: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """On nested answers in both layouts, with the first 5,000 rows."""
    data = eli5_file(tmp_path / "eli5.parquet", layout)
    options = ("--train-split", "train[:5000]", "--max-train-blocks", "64", "--max-validation-blocks", "16")
    report = run_recipe("eli5-distilroberta", tiny["roberta"], data, tmp_path / "out", *options)
    assert (report["documents"]["train"], report["documents"]["validation"]) == (4_000, 1_000)
    assert report["perplexity"] < report["perplexity_before"]


@pytest.mark.slow
def test_built_in_data_by_name(base: Path, tmp_path: Path) -> None:
    """`mlm-train movie-reviews`; a recipe in its place, or two names of data, are told in one line."""
    line = ["mlm-train", "--model", str(base), "--output", str(tmp_path / "out"), "--max-steps", "1", "--json"]
    line += ["--max-validation-blocks", "8", "--block-size", "32", "--batch-size", "4"]
    done = subprocess.run([*line, "movie-reviews"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["documents"]["train"] == 9543
    for words, message in ((["imdb-distilbert"], "write --recipe"), (["a.txt", "--data", "b.txt"], "leave one out")):
        done = subprocess.run([*line, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


@pytest.mark.slow
def test_recipe_with_splits_runs_on_local_data(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The IMDB recipe names a test split that a file does not have: documents are held out instead."""
    (tmp_path / "mine.txt").write_text("\n".join(TEXTS))
    command: list[str | Path] = ["mlm-train", "--recipe", "imdb-distilbert", "--model", tiny["distilbert"]]
    command += ["--data", tmp_path / "mine.txt", "--output", tmp_path / "out", "--block-size", "32", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["config"]["validation_split"] is None
    assert report["config"]["weight_decay"] == 0.01
    wrong = subprocess.run(["mlm-train", "--output", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
