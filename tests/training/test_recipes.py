"""Recipes: the values of the two write-ups, and whole runs on data of the same layout."""

import json
import subprocess
from pathlib import Path

import pytest
from mlm_infer.training import TrainConfig, load_recipe, recipe_names

from mlm_infer import InputError

TEXTS = [f"Sentence number {number} is about a film." for number in range(40)]


def test_recipes(tmp_path: Path) -> None:
    """The two write-ups' values; a file of one's own; every mistake in it."""
    assert recipe_names() == ["eli5-distilroberta", "imdb-distilbert"]
    imdb = TrainConfig(**load_recipe("imdb-distilbert"), output=tmp_path)
    assert (imdb.max_train_blocks, imdb.max_validation_blocks, imdb.batch_size) == (10000, 1000, 64)
    assert (imdb.epochs, imdb.learning_rate, imdb.weight_decay, imdb.block_size) == (3, 2e-5, 0.01, 128)
    eli5 = TrainConfig(**load_recipe("eli5-distilroberta"), output=tmp_path)
    assert (eli5.text_column, eli5.train_split, eli5.validation_fraction) == ("answers.text", "train[:5000]", 0.2)
    path = tmp_path / "mine.toml"
    for content, message in (("epoch = 1", "unknown field 'epoch'"), ("epochs = 'x'", "is a str"), ("=", "not TOML")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_recipe(str(path))
    with pytest.raises(InputError, match="no recipe 'imdb'"):
        load_recipe("imdb")


@pytest.mark.slow
def test_command_with_recipe_and_overrides(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A recipe runs on a local model and local data; the report is JSON on stdout."""
    rows = [{"answers": {"text": [text, "Indeed."]}} for text in TEXTS]
    (tmp_path / "eli5.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command: list[str | Path] = [
        "mlm-train",
        "--recipe",
        "eli5-distilroberta",
        "--model",
        tiny["roberta"],
        "--output",
        tmp_path / "out",
    ]
    command += ["--data", tmp_path / "eli5.jsonl", "--block-size", "32", "--json"]
    command += ["--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["config"]["text_column"] == "answers.text"
    assert report["precision"] == "fp32"
    assert [each["when"] for each in report["evaluations"]] == ["before", "epoch 1", "epoch 2", "end"]
    wrong = subprocess.run(["mlm-train", "--output", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_recipe_with_splits_runs_on_local_data(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The IMDB recipe names a test split that a file does not have: documents are held out instead."""
    (tmp_path / "mine.txt").write_text("\n".join(TEXTS))
    command: list[str | Path] = ["mlm-train", "--recipe", "imdb-distilbert", "--model", tiny["distilbert"]]
    command += ["--data", tmp_path / "mine.txt", "--output", tmp_path / "out", "--block-size", "32", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["config"]["validation_split"] is None
    assert report["config"]["weight_decay"] == 0.01
