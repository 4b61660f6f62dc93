"""Gives back what a library call changes in its process."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

__all__ = ["restored"]


@contextmanager
def restored() -> Iterator[None]:
    """Restore environment variables, random generators, tf32 and the state of accelerate at the end.

    transformers and accelerate keep their settings in these, and would use them for what comes next in the process.
    """
    environment = dict(os.environ)
    states = [
        (kind._shared_state, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState, GradientState)
    ]
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
            for state, before in states:
                state.clear()
                state.update(before)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
