"""Runs the last layer at masked positions only: queries, output projection and feed-forward, all but keys and values.

As in the graph pass of the export, the rules are about operations and not about architectures. The operations of the
layer are recorded once, and from its output backwards it is found out which of them treat positions independently.
These then run on the chosen positions of each text, which are gathered from values that others need whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

__all__ = ["LastLayer", "LayerChangedError"]

# fmt: off
_ELEMENTWISE = frozenset([
    "add", "sub", "mul", "div", "true_divide", "__add__", "__radd__", "__sub__", "__mul__",
    "__rmul__", "__truediv__", "gelu", "relu", "silu", "tanh", "sigmoid", "dropout", "to",
    "type_as", "float", "contiguous", "clone", "masked_fill", "where",
])
# fmt: on
_RESHAPES = frozenset(["view", "reshape", "flatten"])


class LayerChangedError(RuntimeError):
    """The last layer runs other operations than when it was recorded, or not once."""


Axes = dict[int, int | None]
"""Flat index of an argument that is a tensor: the axis of its positions, or None if it is needed whole."""


@dataclass(slots=True)
class _Call:
    """A recorded operation.

    Attributes:
        function: The operation.
        inputs: Its arguments, flat.
        output: Its result.
        gathered: Flat index of an argument to gather: the axis of its positions.
        shape: Axes after the second of a result that is reshaped at the positions.
    """

    function: Callable[..., Any]
    inputs: list[Any]
    output: Any
    gathered: dict[int, int] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


class _Recorder(TorchFunctionMode):
    """Lists operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append(_Call(func, tree_flatten((args, kwargs or {}))[0], result))
        return result


class _Player(TorchFunctionMode):
    """Runs operations as planned.

    Args:
        plan: The operations, in their order.
        positions: [batch, slots].
    """

    def __init__(self, plan: Sequence[_Call], positions: torch.Tensor) -> None:
        super().__init__()
        self._plan, self._positions = iter(plan), positions
        self._texts = torch.arange(len(positions), device=positions.device)[:, None]
        # The whole tensors are kept, so that no other one gets the id of one of them.
        self._chosen: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = next(self._plan, None)
        if call is None or call.function != func:
            raise LayerChangedError
        if call.gathered:
            flat, tree = tree_flatten((args, kwargs or {}))
            for index, axis in call.gathered.items():
                flat[index] = self._gather(flat[index], axis)
            args, kwargs = tree_unflatten(flat, tree)
        if call.shape is not None:
            return args[0].reshape(*self._positions.shape, *call.shape)
        return func(*args, **(kwargs or {}))

    def _gather(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        """Return the values at the positions of each text, along an axis."""
        key = id(value), axis
        if key not in self._chosen:
            whole = value.expand(len(self._positions), *value.shape[1:]).transpose(1, axis)
            self._chosen[key] = value, whole[self._texts, self._positions].transpose(1, axis)
        return self._chosen[key][1]


class LastLayer:
    """The last layer of a model.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._layer = _last_layer(model)
        self._plans: dict[Any, list[_Call]] = {}

    @contextmanager
    def at(self, positions: torch.Tensor) -> Iterator[None]:
        """Compute the layer at positions of each text only; its output is [batch, slots, width].

        Args:
            positions: [batch, slots].

        Raises:
            RuntimeError: The layer is not understood.
            LayerChangedError: It is not what it was when it was recorded.
        """
        player: list[_Player] = []
        calls = 0

        def begin(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            nonlocal calls
            calls += 1
            player.append(_Player(self._plan(args, kwargs), positions))
            player[0].__enter__()

        def end(_module: nn.Module, _args: Any, _output: Any) -> None:
            player.pop().__exit__(None, None, None)

        handles = [
            self._layer.register_forward_pre_hook(begin, with_kwargs=True),
            self._layer.register_forward_hook(end, always_call=True),
        ]
        try:
            yield
        except Exception as error:
            if calls != 1:
                raise LayerChangedError from error
            raise
        finally:
            for handle in handles:
                handle.remove()
        if calls != 1:
            raise LayerChangedError

    def _plan(self, args: Any, kwargs: dict[str, Any]) -> list[_Call]:
        """Return the plan for inputs of a kind: which are given, and which axes are broadcast."""
        flat = tree_flatten((args, kwargs))[0]
        kinds = [tuple(size == 1 for size in each.shape) if isinstance(each, torch.Tensor) else None for each in flat]
        device = next(each.device for each in flat if isinstance(each, torch.Tensor))
        key = tuple(kinds), self._layer.training, torch.is_autocast_enabled(device.type)
        if key not in self._plans:
            recorder = _Recorder()
            devices = [device] if device.type == "cuda" else []
            # Dropout draws random numbers; a run that is resumed records again and must not draw others than before.
            with torch.no_grad(), torch.random.fork_rng(devices), recorder:
                output = self._layer.forward(*args, **kwargs)
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            self._plans[key] = _make_plan(recorder.calls, hidden)
        return self._plans[key]


def _last_layer(model: PreTrainedModel) -> nn.Module:
    lists = [each for each in model.base_model.modules() if isinstance(each, nn.ModuleList) and len(each)]
    if not lists:
        raise RuntimeError("the model has no list of layers")
    largest = max(lists, key=lambda each: sum(weight.numel() for weight in each.parameters()))
    return largest[-1]


def _make_plan(calls: list[_Call], hidden: torch.Tensor) -> list[_Call]:
    """Find out which operations run at positions only, from the output backwards.

    An operation that would have to gather from a value without an axis of texts is refused, and the search repeated.
    """
    refused: set[int] = set()
    while True:
        wanted = _wanted(calls, hidden, refused)
        at_positions = {id(calls[number].output) for number in wanted}
        bad = {
            number
            for number, axes in wanted.items()
            for index, axis in axes.items()
            if axis is not None
            and id(calls[number].inputs[index]) not in at_positions
            and not _can_gather(calls[number].inputs[index], axis, hidden)
        }
        if not bad:
            break
        refused |= bad
    if id(hidden) not in at_positions:
        raise RuntimeError("the last operation of the last layer needs all positions")
    plan = []
    for number, call in enumerate(calls):
        found = _Call(call.function, [], None)
        for index, axis in wanted.get(number, {}).items():
            if axis is not None and id(call.inputs[index]) not in at_positions:
                found.gathered[index] = axis
        if number in wanted and call.function.__name__ in _RESHAPES:
            found.shape = tuple(call.output.shape[2:])
        plan.append(found)
    return plan


def _wanted(calls: list[_Call], hidden: torch.Tensor, refused: set[int]) -> dict[int, Axes]:
    """Return the operations of whose results only positions are needed, with the axis of each input."""
    axes: dict[int, int | None] = {id(hidden): 1}
    wanted: dict[int, Axes] = {}
    for number in range(len(calls) - 1, -1, -1):
        call = calls[number]
        axis = axes.get(id(call.output))
        found = None
        if any(each is call.output for each in call.inputs):
            # An operation in place needs its input whole; any other one did nothing, as dropout in evaluation.
            if not call.function.__name__.rstrip("_").startswith("__i") and call.function.__name__[-1] != "_":
                continue
        elif axis is not None and number not in refused:
            found = _rule(call, axis)
        if found is not None:
            wanted[number] = found
        for index, value in enumerate(call.inputs):
            if isinstance(value, torch.Tensor) and not _is_read(call):
                need = found[index] if found is not None else None
                axes[id(value)] = need if axes.get(id(value), need) == need else None
    return wanted


def _is_read(call: _Call) -> bool:
    """Return whether an operation only reads a size or a type, which is no use of a value."""
    return not any(isinstance(each, torch.Tensor) for each in tree_flatten(call.output)[0])


def _can_gather(value: torch.Tensor, axis: int, hidden: torch.Tensor) -> bool:
    texts, length = hidden.shape[:2]
    return axis >= 1 and value.shape[0] in (1, texts) and value.shape[axis] == length


def _rule(call: _Call, axis: int) -> Axes | None:
    """Return the axis of each input if only positions along the output's axis are needed; None if that is unknown."""
    name, output = call.function.__name__, call.output
    tensors = {index: each for index, each in enumerate(call.inputs) if isinstance(each, torch.Tensor)}
    first = call.inputs[0]
    if not isinstance(first, torch.Tensor):
        return None
    rest: Axes = dict.fromkeys(tensors, None)
    if name in _ELEMENTWISE:
        return _broadcast(axis, tensors, output)
    if name in _RESHAPES:
        # Axes after texts and positions are split or joined, as for heads.
        return rest | {0: 1} if axis == 1 and first.shape[:2] == output.shape[:2] else None
    if name == "transpose":
        one, other = (each % output.ndim for each in call.inputs[1:3])
        return {0: {one: other, other: one}.get(axis, axis)}
    if name == "permute":
        order = [each for each in call.inputs[1:] if isinstance(each, int)]
        return {0: order[axis] % output.ndim}
    if name == "scaled_dot_product_attention":
        query, mask = first, tensors.get(3)
        if axis != query.ndim - 2:
            return None
        own = None if mask is None or mask.shape[-2] == 1 else mask.ndim - 2
        return rest | {0: axis} | ({3: own} if mask is not None else {})
    last, second = output.ndim - 1, call.inputs[1] if len(call.inputs) > 1 else None
    keeps = (
        (name == "linear" and axis < last)
        or (name == "matmul" and axis == last - 1 and first.ndim == output.ndim)
        or (name == "softmax" and axis < last and second in (-1, last))
        or (name == "layer_norm" and axis < last and second == output.shape[-1])
    )
    return rest | {0: axis} if keeps else None


def _broadcast(axis: int, tensors: dict[int, torch.Tensor], output: torch.Tensor) -> Axes | None:
    """Align shapes at the last axis; an input without the axis, or of size 1 there, is broadcast as it is."""
    found: Axes = {}
    for index, value in tensors.items():
        own = axis - (output.ndim - value.ndim)
        if own < 0 or value.shape[own] == 1:
            found[index] = None
        elif value.shape[own] == output.shape[axis]:
            found[index] = own
        else:
            return None
    return found
