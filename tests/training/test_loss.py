"""The loss of an update and its gradients are those of all logits, whatever is left out of the computation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mlm_infer.training import TrainConfig, fine_tune
from mlm_infer.training.masked_forward import MaskedForward
from mlm_infer.training.masks import IGNORED, MaskedBatch
from mlm_infer.training.trainer import MaskedLMTrainer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

from mlm_infer.shared.masked_rows import rows_are_exact
from tests.helpers.architectures import ARCHITECTURES, each
from tests.helpers.kills import few_texts


def batch_of(vocabulary: int) -> MaskedBatch:
    """Eight texts of 40 tokens and fewer, one without labels.

    With a handful of labels the product of logits and vocabulary, a sum over the vocabulary, takes another path in the
    library of matrices, which rounds to 1e-5 by itself.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, min(900, vocabulary - 1), (8, 40), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, 30:] = 0
    chosen = (torch.rand(ids.shape, generator=generator) < 0.25) & attention.bool()
    chosen[2] = False
    return {"input_ids": ids, "attention_mask": attention, "labels": torch.where(chosen, ids, IGNORED)}


def gradients(trainer: Trainer, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of `compute_loss` itself."""
    model = trainer.model
    model.zero_grad()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return loss.item(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


_WHOLE_LAST_LAYER = {"albert", "esm", "flaubert", "ibert", "longformer", "luke", "squeezebert", "xlm"}
"""Their layers are no modules of a list that run once each, keep tables or statistics from call to call, or pad."""


@pytest.mark.parametrize("name", ["base", *each(ARCHITECTURES)])
def test_loss_and_gradients_are_the_trainers(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """`compute_loss` in every way against the plain Trainer's, with padding and a text without labels."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoints[name]).eval()
    inputs: Any = batch_of(model.config.vocab_size)
    buffers = {buffer: value.clone() for buffer, value in model.named_buffers()}
    best = MaskedForward.best(model, [inputs])
    assert best.head
    for buffer, value in model.named_buffers():
        assert torch.equal(value, buffers[buffer])
    assert best.last_layer or name in _WHOLE_LAST_LAYER
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    expected_loss, expected = gradients(Trainer(model=model, args=arguments), dict(inputs))
    # Of the largest number in the gradients: the small ones are sums in which larger ones cancel.
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected.values()))
    for way in (best, MaskedForward(model, head=True), MaskedForward(model, head=False)):
        loss, found = gradients(MaskedLMTrainer(frozen=[inputs], way=way, model=model, args=arguments), dict(inputs))
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        assert found.keys() == expected.keys()
        for weight, gradient in expected.items():
            torch.testing.assert_close(found[weight], gradient, rtol=0, atol=1e-5 * largest)


def test_every_input_reaches_the_model(base: Path, tmp_path: Path) -> None:
    """Token types of a batch change its loss as they change the plain Trainer's."""
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    inputs: Any = dict(batch_of(model.config.vocab_size))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    ours = MaskedLMTrainer(frozen=[inputs], model=model, args=arguments)
    without = ours.compute_loss(model, dict(inputs)).item()
    inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    expected = Trainer(model=model, args=arguments).compute_loss(model, dict(inputs)).item()
    assert ours.compute_loss(model, dict(inputs)).item() == pytest.approx(expected, abs=1e-5)
    assert abs(expected - without) > 1e-3


@pytest.mark.parametrize("name", ["base", "modernbert", "xlm"])
def test_accumulation_gives_the_same_updates(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """4 x 2 blocks are 8 blocks: the loss of each update, and the weights in the end."""
    curves, weights = [], []
    for batch_size in (8, 4):
        config = TrainConfig(
            model=str(checkpoints[name]),
            data=str(few_texts(tmp_path)),
            output=tmp_path / str(batch_size),
            batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            epochs=1,
            block_size=32,
            max_train_blocks=43,  # the last update is of 3 blocks
            max_validation_blocks=4,
            dropout=0.0,
            precision="fp32",
            # Adam would divide rounding by gradients close to 0.
            optimizer="sgd",
            learning_rate=0.1,
        )
        curves.append(fine_tune(config).train_curve)
        weights.append(load_file(config.output / "model.safetensors"))
    assert [step for step, _ in curves[0]] == [1, 2, 3, 4, 5, 6]
    for (_, one), (_, other) in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for weight, expected in weights[0].items():
        torch.testing.assert_close(weights[1][weight], expected, rtol=0, atol=1e-5)


class Mixing(nn.Module):
    """A head that looks at all positions, or finds no memory."""

    def __init__(self, head: nn.Module, *, memory: bool) -> None:
        super().__init__()
        self.head, self.memory = head, memory

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mix positions, after taking as much memory as no machine has."""
        if not self.memory:
            torch.empty(1 << 60)
        logits: torch.Tensor = self.head(hidden + hidden.mean(1, keepdim=True))
        return logits


class Growing(nn.Module):
    """A layer that comes to have an operation more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.grown = layer, False

    def forward(self, hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Run the layer."""
        return self.layer(hidden * 1 if self.grown else hidden, *args, **options)


@pytest.mark.parametrize("change", ["more", "none"])
def test_a_last_layer_that_changes_later(change: str, base: Path, tmp_path: Path) -> None:
    """With an operation more, or left out: it then runs at all positions, with one warning and the right loss."""
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    batch: Any = batch_of(model.config.vocab_size)
    layers = model.bert.encoder.layer
    layers[-1] = Growing(layers[-1])
    way = MaskedForward.best(model, [batch])
    assert way.last_layer
    warnings: list[str] = []
    way.warn = warnings.append
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = MaskedLMTrainer(frozen=[batch], way=way, model=model, args=arguments)
    if change == "none":
        model.bert.encoder.layer = layers[:-1]
    layers[-1].grown = True
    expected, of_all = gradients(Trainer(model=model, args=arguments), dict(batch))
    for _ in range(2):
        loss, found = gradients(trainer, dict(batch))
        assert loss == pytest.approx(expected, abs=1e-5)
        for weight, gradient in of_all.items():
            torch.testing.assert_close(found[weight], gradient, rtol=0, atol=1e-5)
    assert warnings == ["the last layer does not run the same operations each time, so it runs at all positions"]


def test_what_the_fast_head_cannot_serve(base: Path) -> None:
    """A head that mixes positions is recognized; memory that runs out is never taken for that."""
    model = AutoModelForMaskedLM.from_pretrained(base)
    inputs = batch_of(model.config.vocab_size)
    head = model.cls
    model.cls = Mixing(head, memory=True)
    assert not MaskedForward.best(model, [inputs]).head
    assert not rows_are_exact(model, inputs["input_ids"], inputs["attention_mask"])
    model.cls = Mixing(head, memory=False)
    with pytest.raises(RuntimeError, match="memory"):
        MaskedForward.best(model, [inputs])
    with pytest.raises(RuntimeError, match="memory"):
        rows_are_exact(model, inputs["input_ids"], inputs["attention_mask"])
