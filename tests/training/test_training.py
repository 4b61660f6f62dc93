"""Fine-tuning: data of every kind, blocks, masks, evaluation, reports, and what goes wrong."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlm_infer.training import TrainConfig, fine_tune
from mlm_infer.training.blocks import make_blocks
from mlm_infer.training.data import load_documents, load_splits
from mlm_infer.training.masks import MaskRule, freeze_masks
from mlm_infer.training.scores import score_masks
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from mlm_infer import InputError, ModelError, OutputExistsError
from tests.helpers.pipeline import NAMES
from tests.helpers.texts import documents_of

TEXTS = [f"Sentence number {number} is about a film." for number in range(40)]


def config(base: Path, tmp_path: Path, **values: Any) -> TrainConfig:
    """A short run on the built-in reviews."""
    settings: dict[str, Any] = {
        "model": str(base),
        "output": tmp_path / "out",
        "epochs": 2.0,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "block_size": 64,
        "max_train_blocks": 160,
        "max_validation_blocks": 40,
    }
    return TrainConfig(**settings | values)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Any]:
    """One real run and its report."""
    settings = config(base, tmp_path_factory.mktemp("run"))
    return settings, fine_tune(settings)


def test_fine_tuning_lowers_perplexity(run: tuple[TrainConfig, Any]) -> None:
    """Before, after each epoch and at the end; perplexity falls by far."""
    _, report = run
    assert [each.when for each in report.evaluations] == ["before", "epoch 1", "end"]
    assert [each.step for each in report.evaluations] == [0, 10, 20]
    assert report.perplexity < report.perplexity_before / 5
    assert len({each.masked_tokens for each in report.evaluations}) == 1
    assert report.evaluations[0].perplexity == pytest.approx(math.exp(report.evaluations[0].loss))


def test_output_folder(run: tuple[TrainConfig, Any]) -> None:
    """Model, tokenizer, report and picture; no pickle, no half-way checkpoint, nothing beside it."""
    settings, report = run
    names = {path.name for path in settings.output.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "training_report.json", "README.md", "report"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt")) or name.startswith("checkpoint")]
    assert [path.name for path in settings.output.parent.iterdir()] == ["out"]
    saved = json.loads((settings.output / "training_report.json").read_text())
    assert saved["perplexity"] == report.perplexity
    assert saved["config"]["learning_rate"] == 1e-3
    assert {"torch", "cpu", "python"} <= set(saved["machine"])
    assert "perplexity" in report.table()


def test_saved_model_gives_the_reported_perplexity(run: tuple[TrainConfig, Any]) -> None:
    """Two evaluations of one model agree exactly, and with the report."""
    settings, report = run
    tokenizer = AutoTokenizer.from_pretrained(settings.output)
    model = AutoModelForMaskedLM.from_pretrained(settings.output)
    blocks = make_blocks(load_splits(settings).validation, tokenizer, 64).sample(40, settings.seed)
    frozen = freeze_masks(blocks, MaskRule.of(tokenizer, 0.15), batch_size=16, seed=settings.seed)
    first, second = score_masks(model, frozen), score_masks(model, frozen)
    assert first == second
    assert first.loss == pytest.approx(report.best.loss, rel=1e-5)


def test_loss_is_the_mean_over_masked_tokens(base: Path, tmp_path: Path) -> None:
    """Against plain PyTorch over all positions, with batches that have unequal numbers of masks."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    blocks = make_blocks(documents_of(TEXTS, tmp_path), tokenizer, 32)
    frozen = freeze_masks(blocks, MaskRule.of(tokenizer, 0.15), batch_size=3, seed=1)
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in frozen:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum"
            ).item()
            count += int((batch["labels"] != -100).sum())
    scores = score_masks(model, frozen)
    assert scores.masked_tokens == count
    assert scores.loss == pytest.approx(total / count, rel=1e-6)


def test_masking_statistics(base: Path) -> None:
    """15 % of the tokens; of these 80 % masked, 10 % random, 10 % kept; special tokens never. Within 4 sigma."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    blocks = make_blocks(load_documents("movie-reviews", split="validation"), tokenizer, 128)
    (batch,) = freeze_masks(blocks, MaskRule.of(tokenizer, 0.15), batch_size=len(blocks), seed=3)
    # Without the last block, which is shorter.
    after, labels = batch["input_ids"].numpy()[:-1], batch["labels"].numpy()[:-1]
    before = np.array([*blocks][:-1], np.int64)
    special = np.isin(before, tokenizer.all_special_ids)
    chosen = labels != -100
    assert not (chosen & special).any()
    assert (labels[chosen] == before[chosen]).all()
    assert (after[~chosen] == before[~chosen]).all()
    count, free = chosen.sum(), (~special).sum()
    assert abs(count / free - 0.15) < 4 * math.sqrt(0.15 * 0.85 / free)
    for share, found in (
        (0.8, (after == tokenizer.mask_token_id) & chosen),
        (0.1, (after == before) & chosen),
        (0.1, (after != before) & (after != tokenizer.mask_token_id) & chosen),
    ):
        assert abs(found.sum() / count - share) < 4 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_keep_every_token(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Blocks carry the special tokens of serving, are full but for the last, and lose nothing."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    blocks = [ids.tolist() for ids in make_blocks(documents_of(TEXTS, tmp_path), tokenizer, 32)]
    assert {len(ids) for ids in blocks[:-1]} == {32}
    separator = tokenizer.sep_token_id
    expected = [token for text in TEXTS for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    inner = [token for ids in blocks for token in ids[1:-1]]
    assert [token for token in inner if token != separator] == expected
    # Documents are joined by the separator; where a block ends with one, its own stands for it.
    assert len(TEXTS) - len(blocks) <= inner.count(separator) < len(TEXTS)
    assert {(ids[0], ids[-1]) for ids in blocks} == {(tokenizer.cls_token_id, separator)}


def test_wrong_model_and_values(base: Path, tmp_path: Path) -> None:
    """A missing checkpoint, blocks too long, an output that exists, values out of range."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        fine_tune(config(tmp_path / "empty", tmp_path))
    for name in ("./nowhere", "../a/b", "/nowhere/at/all", "a/b/c"):
        with pytest.raises(ModelError, match=f"there is no folder {name}"):
            fine_tune(config(Path("x"), tmp_path, model=name))
    with pytest.raises(InputError, match=r"block_size is 1000, but .* at most 512"):
        fine_tune(config(base, tmp_path, block_size=1000))
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"):
        fine_tune(config(base, tmp_path))
    for name, value in (("epochs", 0), ("mlm_probability", 1.0), ("batch_size", 0), ("precision", "int8")):
        with pytest.raises(InputError, match=name):
            config(base, tmp_path, **{name: value})
    with pytest.raises(InputError, match="nothing to resume"):
        fine_tune(config(base, tmp_path, output=tmp_path / "new"), resume=True)


def test_head_without_weights_is_a_warning(base: Path, tmp_path: Path) -> None:
    """An encoder alone can be trained, and the report says what its first perplexity means."""
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "encoder")
    report = fine_tune(config(tmp_path / "encoder", tmp_path, max_train_blocks=16, epochs=1))
    assert "random values" in report.warnings[0]
