"""Options that change memory, speed or the start of a run."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlm_infer.training import TrainConfig, fine_tune
from mlm_infer.training.compiled import CompileCheck, seconds_of_a_pass
from mlm_infer.training.job import TrainingJob
from mlm_infer.training.masked_forward import MaskedForward
from mlm_infer.training.process_state import restored
from mlm_infer.training.processes import together
from mlm_infer.training.stopping import StopRequest
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from mlm_infer import InputError
from tests.helpers.kills import few_texts
from tests.helpers.paths import ROOT


def config(model: Path, tmp_path: Path, **values: Any) -> TrainConfig:
    """Five updates without dropout."""
    settings: dict[str, Any] = {
        "model": str(model),
        "data": str(few_texts(tmp_path)),
        "output": tmp_path / "out",
        "epochs": 1,
        "batch_size": 8,
        "block_size": 32,
        "max_train_blocks": 40,
        "max_validation_blocks": 8,
        "dropout": 0.0,
        "precision": "fp32",
    }
    return TrainConfig(**settings | values)


@pytest.mark.parametrize("values", [{"gradient_checkpointing": True}, {"loader_workers": 2}, {"full_head": True}])
def test_what_changes_no_loss(values: dict[str, Any], tiny: dict[str, Path], tmp_path: Path) -> None:
    """Less memory, workers for the batches, all logits: the same loss at each step."""
    plain = fine_tune(config(tiny["bert"], tmp_path, output=tmp_path / "plain"))
    other = fine_tune(config(tiny["bert"], tmp_path, **values))
    assert len(plain.train_curve) == 5
    for (_, one), (_, two) in zip(plain.train_curve, other.train_curve, strict=True):
        assert two == pytest.approx(one, abs=1e-5)


def test_whether_compilation_helps(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Updates are compared with the time of a pass without compilation, which leaves no trace of itself."""
    settings = config(tiny["bert"], tmp_path, epochs=3)
    with restored(), together():
        job = TrainingJob(settings, tmp_path / "work", None)
        text = job.prepare_text()
        before = {name: each.clone() for name, each in job.model.state_dict().items()}
        state = torch.get_rng_state()
        plain = seconds_of_a_pass(job.model, text.frozen[0], MaskedForward.best(job.model, text.frozen), "bf16")
        assert plain > 0
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(each, before[name]) for name, each in job.model.state_dict().items())
        assert all(each.grad is None for each in job.model.parameters())
        warnings: list[str] = []
        trainer = job.make_trainer(text, StopRequest())
        trainer.add_callback(CompileCheck(0.0, warnings.append))
        trainer.add_callback(CompileCheck(float("inf"), lambda text: warnings.append(f"wrong: {text}")))
        trainer.train()
    (warning,) = warnings
    assert re.fullmatch(
        r"--compile does not help here: a batch takes \S+ s with it and 0 s without; leave it out", warning
    )


@pytest.mark.slow
def test_compiled_run(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The same loss at each step, and a run that is too short for compilation says so."""
    plain = fine_tune(config(tiny["bert"], tmp_path, output=tmp_path / "plain"))
    compiled = fine_tune(config(tiny["bert"], tmp_path, compile=True))
    for (_, one), (_, two) in zip(plain.train_curve, compiled.train_curve, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert "--compile does not help a run of 5 updates, which compile; leave it out" in compiled.warnings


def test_options_of_data_and_masks(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A command with all of them; report and model card tell them, and what was left out."""
    data = tmp_path / "data.csv.gz"
    rows = "".join(f'"{text}"\n""\n' for text in few_texts(tmp_path).read_text().replace('"', "'").splitlines())
    data.write_bytes(gzip.compress(f"text\n{rows}".encode()))
    options = "--per-line --whole-words --mask-share 0.9 --random-share 0.1 --workers 1 --block-size 32 --epochs 1"
    line = [sys.executable, "-m", "mlm_infer.training", str(data), "--model", str(tiny["bert"])]
    line += [*options.split(), "--json", "--output", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["documents"]["train"], report["documents"]["empty"]) == (180, 200)
    assert report["train_blocks"] >= 180  # some texts are longer than a block
    card = (tmp_path / "out/README.md").read_text()
    for name, value in (("per_line", True), ("whole_words", True), ("mask_share", 0.9), ("random_share", 0.1)):
        assert report["config"][name] == value
        escaped = name.replace("_", "\\_")
        assert f"| {escaped} | {value} |" in card


@pytest.mark.parametrize("kind", ["folder", "config.json"])
def test_from_scratch(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Architecture and sizes are kept, the vocabulary is of the data, and blocks are as long as the model takes."""
    source = tiny["roberta"] / kind if kind == "config.json" else tiny["roberta"]
    report = fine_tune(config(source, tmp_path, from_scratch=True, block_size=64, dropout=None))
    old, new = (AutoConfig.from_pretrained(path) for path in (tiny["roberta"], tmp_path / "out"))
    assert (new.model_type, new.hidden_size, new.num_hidden_layers) == ("roberta", 32, old.num_hidden_layers)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert new.vocab_size == len(tokenizer)
    assert new.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.get_vocab() != AutoTokenizer.from_pretrained(tiny["roberta"]).get_vocab()
    text = "the film"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
    # Random weights know nothing: every token is about as likely as any other.
    assert report.perplexity_before == pytest.approx(new.vocab_size, rel=0.2)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out")


def test_batch_size_that_fits(base: Path) -> None:
    """A divisor of what was asked for; no gradient is left of the attempts. Where no block fits, that is said."""
    line = [sys.executable, "-m", "tests.helpers.little_memory", str(base)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    enough, less, none, left = json.loads(done.stdout)
    assert enough == 2
    assert 1 <= less < 192
    assert 192 % less == 0
    assert none.startswith("one block of 512 tokens does not fit into memory; take a smaller --block-size")
    assert left == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "bogus"}, "optimizer is 'bogus'; it must be one of adamw_torch"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "lr_scheduler is 'reduce_lr_on_plateau'; it must be one of linear"),
        ({"save_steps": 0}, "save_steps is 0; it must be at least 1"),
        ({"loader_workers": -1}, "loader_workers is -1; it must be 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0 and finite"),
    ],
)
def test_wrong_options(values: dict[str, Any], message: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """One line with the value and what there is."""
    with pytest.raises(InputError, match=message):
        fine_tune(config(tiny["bert"], tmp_path, **values))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tf32_needs_a_gpu(tiny: dict[str, Path], tmp_path: Path) -> None:
    """It is not ignored."""
    with pytest.raises(InputError, match="tf32 needs an NVIDIA GPU"):
        fine_tune(config(tiny["bert"], tmp_path, tf32=True))
