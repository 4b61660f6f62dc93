"""Accuracy, evaluations every few steps, the best model, early stopping, and pseudo-perplexity."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlm_infer.training import Evaluation, TrainConfig, fine_tune
from mlm_infer.training.blocks import make_blocks
from mlm_infer.training.cli import main
from mlm_infer.training.data import load_splits
from mlm_infer.training.masks import IGNORED, MaskRule, freeze_masks
from mlm_infer.training.scores import score_masks
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_infer import InputError
from tests.helpers.architectures import ARCHITECTURES, each


@pytest.mark.parametrize("name", ["base", *each(ARCHITECTURES)])
def test_accuracy_is_that_of_all_logits(name: str, checkpoints: dict[str, Path]) -> None:
    """Top-1 and top-5 against plain PyTorch, which keeps the logits at all positions."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoints[name]).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["base"] if name == "base" else checkpoints[name])
    config = TrainConfig(model=str(checkpoints[name]), output=Path("out"))
    blocks = make_blocks(load_splits(config).validation, tokenizer, 32).sample(24, 0)
    frozen = freeze_masks(blocks, MaskRule.of(tokenizer, 0.3), batch_size=5, seed=0)
    first, five, count = 0, 0, 0
    with torch.inference_mode():
        for batch in frozen:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            chosen = batch["labels"] != IGNORED
            labels = batch["labels"][chosen]
            first += int((logits.argmax(-1)[chosen] == labels).sum())
            five += int((logits.topk(5).indices[chosen] == labels[:, None]).any(1).sum())
            count += len(labels)
    scores = score_masks(model, frozen)
    assert (scores.masked_tokens, scores.top1, scores.top5) == (count, first / count, five / count)


def test_a_model_without_preference_is_not_right(base: Path) -> None:
    """Of equal logits the lower id comes first, so accuracy is that of always naming the first tokens."""
    model = AutoModelForMaskedLM.from_pretrained(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    ids = torch.arange(1000, 1040).view(2, 20)
    batch: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    assert score_masks(model, [batch]).top5 == 0
    batch["labels"] = torch.full_like(ids, 4)
    assert (score_masks(model, [batch]).top1, score_masks(model, [batch]).top5) == (0, 1)


@pytest.fixture
def worsening(tiny: dict[str, Path], tmp_path: Path) -> TrainConfig:
    """A run that learns the words of its training text, and that the other words of the validation do not occur."""
    for name, words in (("train", "0 1 2 3 4 5 6 7"), ("validation", "0 1 a 2 3 b 4 5 6 7")):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{words} " * 9 + str(number) for number in range(10)))
    return TrainConfig(
        model=str(tiny["bert"]),
        data=str(tmp_path / "train.txt"),
        validation_data=str(tmp_path / "validation.txt"),
        output=tmp_path / "out",
        block_size=32,
        batch_size=8,
        epochs=12,
        learning_rate=3e-3,
        lr_scheduler="constant",
        precision="fp32",
    )


def test_the_best_model_is_saved(worsening: TrainConfig, tmp_path: Path) -> None:
    """A run that gets worse saves the best weights, says so, and ends early if asked to."""
    whole = fine_tune(worsening)
    at = whole.evaluations.index(whole.best)
    assert 1 <= at < len(whole.evaluations) - 1, "the run does not get worse"
    assert whole.perplexity == whole.best.perplexity == min(each.perplexity for each in whole.evaluations)
    until = fine_tune(dataclasses.replace(worsening, max_steps=whole.best.step, output=tmp_path / "until"))
    assert until.best == dataclasses.replace(whole.best, when="end")
    best, expected = (load_file(run.config.output / "model.safetensors") for run in (whole, until))
    for name, weight in expected.items():
        assert torch.equal(weight, best[name])
    assert f"{whole.best.when} (saved)" in whole.table()
    assert whole.table().count("(saved)") == 1
    note = f"The model saved is that of {whole.best.when}, the best of 12 evaluations."
    assert note in whole.notes()
    for name in ("report/index.html", "README.md"):
        assert note.split(",", maxsplit=1)[0] in (worsening.output / name).read_text()

    stopped = fine_tune(dataclasses.replace(worsening, early_stopping=2, output=tmp_path / "stopped"))
    assert stopped.evaluations == whole.evaluations[: at + 3]
    assert stopped.perplexity == whole.perplexity
    assert "Training ended early, after 2 evaluations that were not better." in stopped.notes()
    for name, weight in load_file(stopped.config.output / "model.safetensors").items():
        assert torch.equal(weight, best[name])


@pytest.mark.parametrize("save_steps", [None, 3])
def test_interrupted_after_the_best_step(worsening: TrainConfig, tmp_path: Path, save_steps: int | None) -> None:
    """A resumed run has the same evaluations, and the weights of the best of them."""
    worsening = dataclasses.replace(worsening, save_steps=save_steps)
    expected = fine_tune(dataclasses.replace(worsening, output=tmp_path / "whole"))
    assert expected.best.step < expected.evaluations[-1].step
    for ends in (expected.best.step, expected.best.step + expected.evaluations[1].step):

        def interrupt(evaluation: Evaluation, ends: int = ends) -> None:
            if evaluation.step == ends:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fine_tune(worsening, on_evaluation=interrupt, overwrite=True)
        resumed = fine_tune(worsening, resume=True, overwrite=True)
        assert resumed.evaluations == expected.evaluations
        assert (worsening.output / "model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()
        assert not list(worsening.output.glob("best-*"))


def test_resumed_after_early_stopping(worsening: TrainConfig, tmp_path: Path) -> None:
    """A run that had ended early makes no step more."""
    worsening = dataclasses.replace(worsening, early_stopping=1)
    expected = fine_tune(dataclasses.replace(worsening, output=tmp_path / "whole"))
    last = expected.evaluations[-1].step
    work = tmp_path / ".out.training"

    def full(evaluation: Evaluation) -> None:
        if evaluation.step == last:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        fine_tune(worsening, on_evaluation=full)
    except KeyboardInterrupt:
        assert work.exists()
        assert fine_tune(worsening, resume=True).evaluations == expected.evaluations
    assert (worsening.output / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_evaluation_that_a_signal_cut_short(worsening: TrainConfig, tmp_path: Path) -> None:
    """It is made when the run is resumed, before the next step, and may end the run."""
    from mlm_infer.training import trainer as module

    expected = fine_tune(dataclasses.replace(worsening, early_stopping=1, output=tmp_path / "whole"))
    worsening = dataclasses.replace(worsening, early_stopping=1)
    calls = 0
    true = score_masks

    def ask(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == len(expected.evaluations):
            os.kill(os.getpid(), signal.SIGTERM)
        return true(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "score_masks", ask)
        with pytest.raises(KeyboardInterrupt, match=r"stopped after step \d+, which is saved"):
            fine_tune(worsening)
    (state,) = (tmp_path / ".out.training").glob("checkpoint-*/trainer_state.json")
    rows = json.loads(state.read_text())["log_history"]
    assert sum("eval_loss" in row for row in rows) == len(expected.evaluations) - 1
    resumed = fine_tune(worsening, resume=True)
    assert resumed.evaluations == expected.evaluations
    assert (worsening.output / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_evaluations_every_few_steps(worsening: TrainConfig) -> None:
    """They come at these steps and at the end, with accuracy in the table and in the report."""
    report = fine_tune(dataclasses.replace(worsening, epochs=2, eval_steps=3))
    steps = [each.step for each in report.evaluations]
    assert steps[:-1] == list(range(0, steps[-1], 3))
    saved = json.loads((worsening.output / "training_report.json").read_text())
    assert [each["top1"] for each in saved["evaluations"]] == [each.top1 for each in report.evaluations]
    header, *rows = report.table().splitlines()
    assert header.split()[-2:] == ["top-1", "top-5"]
    assert rows[-1].split()[-1] == f"{report.evaluations[-1].top5:.1%}"


def test_pseudo_perplexity(worsening: TrainConfig, tmp_path: Path) -> None:
    """Against plain PyTorch with one mask at a time, before training and after."""
    config = dataclasses.replace(worsening, pseudo_perplexity=3, epochs=1)
    result = CliRunner().invoke(
        main,
        [
            *("--model", config.model, "--data", config.data, "--validation-data", str(config.validation_data)),
            *("--output", str(config.output), "--block-size", "32", "--epochs", "1", "--pseudo-perplexity", "3"),
        ],
    )
    assert result.exit_code == 0, result.output
    saved = json.loads((config.output / "training_report.json").read_text())
    for folder, found in zip((config.model, config.output), saved["pseudo_perplexity"], strict=True):
        model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        blocks = make_blocks(load_splits(config).validation, tokenizer, 32).sample(3, config.seed)
        losses = []
        for ids in (block.tolist() for block in blocks):
            for at in range(1, len(ids) - 1):
                if ids[at] in tokenizer.all_special_ids:
                    continue
                masked = torch.tensor([[*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]])
                with torch.inference_mode():
                    losses.append(-model(masked).logits[0, at].log_softmax(-1)[ids[at]].item())
        assert found == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
        assert f"{found:.2f}" in result.output


def test_wrong_values(tmp_path: Path) -> None:
    """One line that names the value."""
    config = TrainConfig(model="x", output=tmp_path)
    for name in ("eval_steps", "early_stopping", "pseudo_perplexity"):
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
            dataclasses.replace(config, **wrong)
