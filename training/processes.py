"""What concerns several training processes, as torchrun and `accelerate launch` start them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import reduce

__all__ = ["any_process", "sum_over_processes", "together"]


@contextmanager
def together() -> Iterator[PartialState]:
    """Join the other processes of a launch, if there are any, and leave them at the end."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    # Without a launcher this is the state of a single process.
    state = PartialState(cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()))
    try:
        yield state
    finally:
        if state.num_processes > 1 and not joined:
            torch.distributed.destroy_process_group()


def sum_over_processes(values: list[float]) -> list[float]:
    """Return the sums over all processes, which must call this together."""
    state = PartialState()
    if state.num_processes == 1:
        return values
    # MPS has no float64, but it is always a single process.
    totals: list[float] = reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum").tolist()
    return totals


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any of the processes, which must call this together."""
    return sum_over_processes([float(flag)])[0] > 0
