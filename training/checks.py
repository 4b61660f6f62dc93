"""Checks of settings that only transformers can judge, before anything is loaded."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers.integrations import is_tensorboard_available, is_wandb_available
from transformers.optimization import get_scheduler
from transformers.trainer_utils import SchedulerType

from mlm_infer.errors import DependencyError, InputError, first_line

__all__ = ["check_schedule", "check_tracker"]


def check_schedule(name: str, options: Mapping[str, Any]) -> None:
    """Try a schedule of the learning rate.

    Args:
        name: Its name.
        options: Its own settings.

    Raises:
        InputError: It does not exist, needs other settings, or gives no number.
    """
    # A plateau is looked for in the validation loss, which the Trainer hands over at evaluations of its own only.
    known = [kind.value for kind in SchedulerType if kind is not SchedulerType.REDUCE_ON_PLATEAU]
    if name not in known:
        raise InputError(f"lr_scheduler is {name!r}; it must be one of {', '.join(known)} (--lr-scheduler)")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        schedule = get_scheduler(
            name, optimizer, num_warmup_steps=1, num_training_steps=4, scheduler_specific_kwargs=dict(options)
        )
        for _ in range(4):
            optimizer.step()
            schedule.step()
        rates = [float(rate) for rate in schedule.get_last_lr()]
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = first_line(error)
    else:
        if all(map(math.isfinite, rates)):
            return
        reason = f"it gives a learning rate of {rates[0]}"
    shown = f" with {dict(options)}" if options else ""
    raise InputError(
        f"lr_scheduler is {name!r}{shown}, which transformers rejects: {reason}; "
        """give its settings as JSON, as in --scheduler-options '{"min_lr": 1e-6}'"""
    )


def check_tracker(name: str) -> None:
    """Check that what the losses are reported to is installed.

    Args:
        name: `none`, `tensorboard` or `wandb`.

    Raises:
        DependencyError: It is not.
    """
    installed = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if name in installed and not installed[name]():
        raise DependencyError(f"report_to is {name!r}, which is not installed; install it with: pip install {name}")
