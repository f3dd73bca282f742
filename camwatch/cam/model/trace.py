"""One image through a model: what every module takes and gives, and whether the score depends on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camwatch.cam.model.hooks import choose
from camwatch.cam.model.layout import Grid, Layout, lay_out
from camwatch.cam.model.modules import channels_last, named_modules
from camwatch.cam.model.nested import replace_tensors, tensors

Shape = tuple[int, ...]


@dataclass
class ModuleCall:
    """One call of a module: shapes and findings, no tensors.

    Attributes:
        name: The module's name.
        module: The module.
        inputs: Shapes of the maps that it was given.
        output: Shape of the first map that it returned.
        rearranged: Whether it only handed on an input or moved its axes (dropout, identity, permute).
        layout: How the output lies on the image.
        input_layouts: The same for each input.
        channels_read: On how many channels the score depends, at one cell or more.
        inputs_read: The inputs on whose cells the score depends through this module.
    """

    name: str
    module: nn.Module
    inputs: list[Shape]
    output: Shape = ()
    rearranged: bool = False
    layout: Layout | None = None
    input_layouts: list[Layout | None] = field(default_factory=list)
    channels_read: int = 0
    inputs_read: set[int] = field(default_factory=set)

    @property
    def alive(self) -> bool:
        """Whether the score depends on the output's cells."""
        return self.channels_read > 0

    def note_output(self, gradient: Tensor) -> None:
        if self.layout is not None:
            cells = self.layout.apply(gradient)[0].flatten(1)
            self.channels_read = int((cells != 0).any(1).sum())

    def note_input(self, index: int, gradient: Tensor) -> None:
        layout = self.input_layouts[index]
        if layout is not None and bool((layout.apply(gradient) != 0).any()):
            self.inputs_read.add(index)


@dataclass(frozen=True, eq=False)
class Trace:
    """One image's way through a model.

    Attributes:
        calls: The modules' calls that returned a map, in order.
        output: What the model returned.
        leaves: Where the graph begins: the image, and what left a frozen backbone.
    """

    calls: list[ModuleCall]
    output: Any
    leaves: list[Tensor]

    def differentiate(self, score: Tensor) -> None:
        """Finds out on which maps a score depends."""
        if score.requires_grad:
            torch.autograd.grad(score, self.leaves, allow_unused=True)  # the marks note what passes


def trace_model(model: nn.Module, image: Tensor, forward: Callable[[nn.Module, Tensor], Any]) -> Trace:
    """Runs a model once, with a mark on whatever its modules take and give.

    Args:
        model: A model whose parameters are detached (see ``run_detached``).
        image: (1, C, *size).
        forward: How the model is called.
    """
    calls: list[ModuleCall] = []
    leaves = [image.detach().clone().requires_grad_()]
    with ExitStack() as stack:
        for name, module in named_modules(model):
            if not isinstance(module, torch.jit.ScriptModule):
                for handle in _watch(name, module, calls, leaves):
                    stack.callback(handle.remove)
        output = forward(model, leaves[0])
    _lay_out(calls, tuple(image.shape[2:]))
    return Trace(calls, output, leaves)


def _watch(name: str, module: nn.Module, calls: list[ModuleCall], leaves: list[Tensor]) -> list[RemovableHandle]:
    running: list[tuple[ModuleCall, list[Tensor], list[int]]] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = ModuleCall(name, module, [])
        inputs: list[Tensor] = []

        def own(value: Any) -> Any:
            # A mark for this module alone: its gradient is what reaches the input through this module.
            if not (isinstance(value, Tensor) and _is_map(value)):
                return value
            index = len(inputs)
            inputs.append(_Mark.apply(value, lambda gradient: call.note_input(index, gradient)))
            return inputs[-1]

        args, kwargs = tuple(map(own, args)), {key: own(value) for key, value in kwargs.items()}
        inputs += [t for t in tensors([args, kwargs]) if _is_map(t) and not any(t is one for one in inputs)]
        call.inputs, call.input_layouts = [tuple(t.shape) for t in inputs], [None] * len(inputs)
        running.append((call, inputs, [t._version for t in inputs]))
        return args, kwargs

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        call, inputs, versions = running.pop()
        chosen = choose(output, _is_map)
        if chosen is None:
            return output
        source = chosen
        if not chosen.requires_grad:  # a frozen backbone: the graph begins here
            source = chosen.detach().requires_grad_()
            leaves.append(source)
        call.output = tuple(chosen.shape)
        # An in-place activation changes its input; it does not hand it on.
        untouched = [t for t, version in zip(inputs, versions, strict=True) if t._version == version]
        call.rearranged = any(_is_rearranged(t, chosen) for t in untouched)
        calls.append(call)
        marked = _Mark.apply(source, call.note_output)
        return replace_tensors(output, lambda t: marked if t is chosen else t)

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


def _lay_out(calls: list[ModuleCall], size: Shape) -> None:
    """Reads every layout, helped by what the convolutions and norms of the same pass show."""
    axes = len(size)
    grids: set[Grid] = set()
    for call in calls:
        if len(call.output) == axes + 2 and isinstance(call.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            grid = call.output[2:]
            while min(grid, default=0) > 1:  # later stages merge patches two by two
                grids.add(grid)
                grid = tuple((cells + 1) // 2 for cells in grid)
    last = {call.output for call in calls if channels_last(call.module)}
    lengths = {shape[1] for shape in last if len(shape) == 3}

    def read(shape: Shape) -> Layout | None:
        return lay_out(shape, size, 1, channels_last=shape in last, known=grids, tokens=lengths)

    for call in calls:
        call.layout, call.input_layouts = read(call.output), [read(shape) for shape in call.inputs]


class _Mark(torch.autograd.Function):
    """Hands a tensor on as it is, and shows its gradient to a function.

    The result shares memory with the tensor but is no view of it: an in-place operation behind it is
    recorded behind the mark, and nothing has to be cloned.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, note: Callable[[Tensor], None]) -> Tensor:
        ctx.note = note
        return tensor.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.note(gradients[0])
        return gradients[0], None


def _is_map(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 3


def _is_rearranged(tensor: Tensor, output: Tensor) -> bool:
    """Whether the output holds the tensor's values, its channels or its cells moved."""
    if tensor.numel() != output.numel():
        return False
    forms = [tensor, tensor.movedim(1, -1), tensor.movedim(-1, 1), tensor.flatten(2), tensor.flatten(2).mT]
    forms.append(tensor.flatten(1, -2))
    return any(form.shape == output.shape and torch.equal(form, output) for form in forms)
