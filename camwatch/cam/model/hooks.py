"""All hooks of the project: a layer's activations and gradients, and outputs looked at or exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camwatch.cam.model.layout import Layout, lay_out
from camwatch.cam.model.modules import channels_last, find_module, unwrap
from camwatch.cam.model.nested import replace_tensors, tensors
from camwatch.errors import LayerError, UnsupportedError


class UnreachedError(LayerError):
    """The score does not depend on a layer through a differentiable path."""


class LayerCapture:
    """Records the activations of one or several layers during a forward pass, and gives their gradients.

    The hooks live as long as the ``with`` block. No parameter needs a gradient, none is written to, and
    nothing below the first layer keeps a graph that a gradient would run through.

    Args:
        model: The model that will be called inside the block.
        layer: A layer's name or module, or a sequence of these.
        size: Extent of the image in pixels, (H, W); read off the model's input by default.
        layouts: How each layer's output lies on the image, where that is known.
        graph: Whether gradients will be taken; without, the layers' outputs are recorded alone.

    Raises:
        LayerError: No such layer; or, when the block ends, the layer never ran or has no spatial grid.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5))
        >>> with LayerCapture(model, "0") as capture:
        ...     score = model(torch.rand(1, 1, 4, 4))[:, 1].sum()
        >>> capture.activations.shape, capture.gradients(score).shape
        (torch.Size([1, 2, 2, 2]), torch.Size([1, 2, 2, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | Sequence[str | nn.Module],
        *,
        size: Sequence[int] | None = None,
        layouts: Sequence[Layout | None] | None = None,
        graph: bool = True,
    ) -> None:
        self._model = unwrap(model)
        self._several = not isinstance(layer, (str, nn.Module))
        given = list(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
        if not given:
            raise LayerError("no layer was given: an empty sequence arrived")
        found = [find_module(self._model, one) for one in given]
        self.names = [name for name, _ in found]
        self._modules = [module for _, module in found]
        self._size = tuple(size) if size is not None else None
        self._batch = 0
        self._given = list(layouts) if layouts is not None else [None] * len(found)
        self._recorders = [Recorder(graph) for _ in found]
        self._handles: list[RemovableHandle] = []
        self._replaying = False

    def __enter__(self) -> LayerCapture:
        self._gradients_were_on = torch.is_grad_enabled()
        if self._size is None:
            self._handles += [self._model.register_forward_pre_hook(self._read_input, with_kwargs=True, prepend=True)]
        self._handles += [module.register_forward_hook(self._hook(i)) for i, module in enumerate(self._modules)]
        return self

    def _read_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        images = next((t for t in tensors([args, kwargs]) if t.is_floating_point() and t.ndim >= 3), None)
        if images is not None:
            self._batch, self._size = images.shape[0], tuple(images.shape[2:])

    def _hook(self, index: int) -> Callable[[nn.Module, Any, Any], Any]:
        def accepts(tensor: Tensor) -> bool:
            return self._layout(index, tensor) is not None

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = all(r.recorded is None for r in self._recorders)
            # Gradient checkpointing runs the layer again during the backward pass: the same graph, unrecorded.
            return self._recorders[index].record(output, accepts, detach=first, store=not self._replaying)

        return hook

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        torch.set_grad_enabled(self._gradients_were_on)  # a layer recorded for a graph switched them on
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raises LayerError for a layer that never ran or has no spatial grid."""
        for name, recorder in zip(self.names, self._recorders, strict=True):
            if recorder.recorded is None and not recorder.seen:
                raise LayerError(f"layer {name!r} did not run in this forward pass")
            if recorder.recorded is None:
                shapes = ", ".join(str(shape) for shape in recorder.seen)
                raise LayerError(
                    f"layer {name!r} has no spatial grid on images of {self._size}: its output has shape "
                    f"{shapes}; valid are (N, C, h, w), (N, h, w, C) or (N, tokens, C) with two cells or "
                    f"more along each axis (camwatch.layers(model, images) lists such layers)"
                )

    @property
    def raw(self) -> list[Tensor]:
        """What was recorded, as the layers returned it: the tensors that gradients are taken of."""
        self.check()
        return [r.recorded for r in self._recorders if r.recorded is not None]

    @property
    def layouts(self) -> list[Layout]:
        """How each layer's output lies on the image."""
        return [layout for i, t in enumerate(self.raw) if (layout := self._layout(i, t)) is not None]

    @property
    def calls(self) -> list[int]:
        """How often each layer was recorded; the last call's output is the one that counts."""
        return [recorder.calls for recorder in self._recorders]

    @property
    def activations(self) -> Any:
        """(N, C, h, w) float32; a list of these where several layers were given."""
        return self._laid_out(self.raw)

    def gradients(self, score: Tensor, *, retain_graph: bool = True) -> Any:
        """Returns the gradient of the score's sum with respect to the activations, in their shape.

        ``.grad`` of no tensor is written.

        Raises:
            UnreachedError: The score does not depend on a layer.
        """
        found: Sequence[Tensor | None] = [None] * len(self.raw)
        if score.requires_grad:
            self._replaying = True
            try:
                found = torch.autograd.grad(score.sum(), self.raw, retain_graph=retain_graph, allow_unused=True)
            finally:
                self._replaying = False
        for name, gradient in zip(self.names, found, strict=True):
            if gradient is None:
                raise UnreachedError(
                    f"the score does not depend on layer {name!r} through a differentiable path: choose a "
                    f"layer on the way to the output (camwatch.layers(model, images) lists them)"
                )
        return self._laid_out([gradient for gradient in found if gradient is not None])

    def _laid_out(self, raw: Sequence[Tensor]) -> Any:
        values = [layout.apply(t.detach()).float() for layout, t in zip(self.layouts, raw, strict=True)]
        return values if self._several else values[0]

    def _layout(self, index: int, tensor: Tensor) -> Layout | None:
        if self._size is None:
            raise LayerError(
                "the image's size is unknown, because the model itself was not called with images; pass size=(H, W)"
            )
        given = self._given[index]
        if given is not None and tensor.ndim == 2 + (len(given.grid) if given.prefix is None else 1):
            return given if given.apply(tensor).shape[1:] == (given.channels, *given.grid) else None
        last = channels_last(self._modules[index])
        return lay_out(tensor.shape, self._size, self._batch or tensor.shape[0], channels_last=last)


class Recorder:
    """Puts a leaf of the autograd graph in the place of a module's output.

    Nothing below the first recorded module needs a graph then. What follows it goes on in the same graph,
    so that several layers share one forward pass. The module's caller gets a clone: an in-place operation
    behind it cannot change what was recorded. Without a graph the output is recorded alone.
    """

    def __init__(self, graph: bool = True) -> None:
        self._graph = graph
        self.recorded: Tensor | None = None
        self.calls = 0
        self.seen: list[tuple[int, ...]] = []

    def record(self, output: Any, accepts: Callable[[Tensor], bool], *, detach: bool, store: bool = True) -> Any:
        """Returns the output to hand on, its first accepted tensor recorded (the last call's counts)."""
        chosen = choose(output, accepts, graph=self._graph)
        if chosen is None:
            self.seen.extend(tuple(t.shape) for t in tensors(output))
            return output
        # A view: its gradient is that of what is handed on from here, without what the module's other outputs add.
        keeps_graph = self._graph and chosen.requires_grad and not detach
        leaf = chosen.view_as(chosen) if keeps_graph else chosen.detach().requires_grad_(self._graph)
        if store:
            self.recorded = leaf
            self.calls += 1
        return replace_tensors(output, lambda t: leaf.clone() if t is chosen else t)


def choose(output: Any, accepts: Callable[[Tensor], bool], *, graph: bool = True) -> Tensor | None:
    """Finds the first accepted tensor in a module's output; for a graph, switches gradients on behind the module.

    A frozen backbone runs under ``torch.no_grad``; whoever entered it restores the mode.

    Raises:
        UnsupportedError: The module runs in inference mode, where no gradient can be had.
    """
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "the model runs this layer in torch.inference_mode inside its forward, where no gradient "
            "can be had; use torch.no_grad there, or a layer behind it"
        )
    chosen = next((t for t in tensors(output) if t.is_floating_point() and accepts(t)), None)
    if chosen is not None and graph:
        torch.set_grad_enabled(True)
    return chosen


@contextmanager
def on_output(
    modules: Iterable[nn.Module],
    leave: Callable[[nn.Module, Any, Any], Any],
    enter: Callable[[nn.Module], None] | None = None,
) -> Iterator[None]:
    """Calls a function whenever one of the modules has run; what it returns takes the output's place.

    Args:
        modules: The modules.
        leave: Callable (module, args, output) -> another output, or None for the same one.
        enter: Callable (module) before the module runs.

    Example:
        >>> net = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> with on_output([net[0]], lambda module, args, output: 2 * output):
        ...     net(torch.ones(1, 1, 2))
        tensor([[2., 2.]])
    """
    with ExitStack() as stack:
        for module in modules:
            if enter is not None:
                before = module.register_forward_pre_hook(lambda m, args: enter(m))
                stack.callback(before.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


@contextmanager
def replace_output(module: nn.Module, value: Tensor, call: int = 1) -> Iterator[None]:
    """Hands on a value in the place of the tensor of its form that the module returns on its n-th call.

    The value's batch may be larger than the module's: what follows then runs on the larger one.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
        >>> with replace_output(net[0], torch.zeros(5, 2, 3, 3)):
        ...     net(torch.rand(1, 1, 3, 3)).shape
        torch.Size([5, 18])
    """
    calls = 0

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal calls
        chosen = next((t for t in tensors(output) if t.is_floating_point() and t.shape[1:] == value.shape[1:]), None)
        calls += chosen is not None
        return replace_tensors(output, lambda t: value if t is chosen else t) if calls == call else output

    with on_output([module], leave):
        yield


@contextmanager
def record_calls(
    modules: Iterable[nn.Module], accepts: Callable[[Tensor], bool]
) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Yields a list that gains each call's module and first accepted tensor, to take gradients of.

    The calls are in one graph, together with what requires a gradient below them.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with record_calls(net, lambda tensor: True) as calls:
        ...     score = net(torch.ones(1, 2)).sum()
        >>> torch.equal(torch.autograd.grad(score, calls[0][1])[0], net[1].weight)
        True
    """
    calls: list[tuple[nn.Module, Tensor]] = []

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        recorder = Recorder()
        handed_on = recorder.record(output, accepts, detach=False)
        if recorder.recorded is not None:
            calls.append((module, recorder.recorded))
        return handed_on

    with on_output(modules, leave):
        yield calls
