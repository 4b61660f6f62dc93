"""Sets the dropout of a model, whatever form it has there."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["set_dropout"]


def set_dropout(model: PreTrainedModel, rate: float) -> None:
    """Set every dropout of a model; `model.config`, which is saved, keeps the checkpoint's own.

    Attention has its rate as a number, in an attribute of a module or in the configuration that the modules read while
    they run, so `Dropout` modules are only a part.

    Args:
        model: The model, changed in place.
        rate: The dropout. At 0 no layers are dropped either (LayerDrop).
    """
    own = model.config
    changed = copy.deepcopy(own)
    _set_rates(changed, rate)
    for module in model.modules():
        _set_rates(module, rate)
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = rate
        if module is not model and getattr(module, "config", None) is own:
            module.config = changed


def _set_rates(holder: Any, rate: float) -> None:
    """Set the attributes of a module or configuration that are rates of dropout."""
    for name, value in vars(holder).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and "drop" in name and (rate == 0 or "layerdrop" not in name):
            setattr(holder, name, rate)
