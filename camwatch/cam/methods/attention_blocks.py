"""Where a transformer attends: its attention matrices, and the blocks that they sit in, found by running it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from camwatch.cam.methods.runner import ModelRunner
from camwatch.cam.model.hooks import choose, on_output
from camwatch.cam.model.layout import Grid, token_grid
from camwatch.cam.model.modules import named_modules
from camwatch.cam.model.nested import tensors
from camwatch.errors import UnsupportedError

SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)


def _without_dispatch(function: types.FunctionType) -> Callable[..., Any]:
    """A copy of one of torch's functions that runs under a mode instead of being handed to it whole."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class SeeAttention(TorchFunctionMode):
    """Hands every square attention matrix to a function, and what that returns to the values.

    Sees fused kernels, ``nn.MultiheadAttention`` and a softmax that is written out.

    Args:
        note: Callable (..., T, T) attention after its softmax -> the attention to go on with.
    """

    def __init__(self, note: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._note = note
        self._multi_head = _without_dispatch(functional.multi_head_attention_forward)  # type: ignore[arg-type]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.multi_head_attention_forward:
            with self:
                return self._multi_head(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        return self._seen(output) if func in SOFTMAX else output

    def _seen(self, weights: Tensor) -> Tensor:
        queries, keys = weights.shape[-2:] if weights.ndim in (3, 4) else (1, 1)
        if weights.ndim == 4 and 1 < queries != keys:
            raise UnsupportedError(
                f"this model attends to pooled tokens, {queries} to {keys}, which do not belong to the same patches; "
                f"take 'gradcam' or another method that explains a layer"
            )
        return self._note(weights) if queries == keys > 1 else weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention written out, as torch's documentation of the fused kernel has it."""
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        if attn_mask is not None:
            unseen = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if unseen else scores + attn_mask
        return self._seen(scores.softmax(-1)).to(value.dtype) @ value


def per_head(attention: Tensor, images: int) -> Tensor:
    """Brings attention to (N, heads, T, T).

    Raises:
        UnsupportedError: It is taken within windows of the image.
    """
    windows = attention.shape[0] != images if attention.ndim == 4 else attention.shape[0] % images != 0
    if windows:
        raise UnsupportedError(
            f"this model attends within windows or groups of tokens: attention of shape {tuple(attention.shape)} for "
            f"{images} images says nothing of the whole image; take 'gradcam' or another method that explains a layer"
        )
    return attention.reshape(images, -1, *attention.shape[-2:])


def patch_grid(lengths: list[int], size: tuple[int, ...]) -> tuple[Grid, int]:
    """Returns the grid that the tokens of all attentions span, and how many stand before it.

    Raises:
        UnsupportedError: There are none, their tokens differ from block to block, or span no grid.
    """
    if not lengths:
        raise UnsupportedError(
            "no attention between all tokens ran in this model: attention methods need a ViT-type model; take "
            "'gradcam' or another method that explains a layer"
        )
    several = sorted(set(lengths))
    found = token_grid(several[0], size) if len(several) == 1 else None
    if found is None:
        raise UnsupportedError(
            f"the attention's tokens, {', '.join(map(str, several))} of them, do not span one grid of patches "
            f"on images of {size}; take 'gradcam' or another method that explains a layer"
        )
    return found


def find_blocks(runner: ModelRunner) -> tuple[list[nn.Module], Grid, int]:
    """Returns the blocks in the order in which they run, the grid of the tokens, and how many stand before it.

    A block is the outermost module around one attention that returns all of its tokens.

    Raises:
        UnsupportedError: An attention is in no such module, in one that runs several times, or not between all tokens.
    """
    seen: list[int] = []
    running: list[int] = []
    blocks: dict[int, nn.Module] = {}

    def note(attention: Tensor) -> Tensor:
        seen.append(per_head(attention, len(runner.images)).shape[-1])
        return attention

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        first = running.pop()
        if len(seen) == first + 1 and tokens_of(output, seen[first]) is not None:
            blocks[first] = module  # the outer one leaves last

    inner = [module for _, module in named_modules(runner.model)]
    with torch.no_grad(), on_output(inner, leave, lambda module: running.append(len(seen))), SeeAttention(note):
        runner.forward(runner.images)
    grid, prefix = patch_grid(seen, tuple(runner.images.shape[2:]))
    if sorted(blocks) != list(range(len(seen))) or len(set(map(id, blocks.values()))) != len(blocks):
        raise UnsupportedError(
            f"{len(seen)} attentions ran, {len(blocks)} of them in a block of their own that returns (N, tokens, C): "
            f"this method needs a ViT-type model; take 'gradcam' or another method that explains a layer"
        )
    return [blocks[i] for i in range(len(seen))], grid, prefix


def tokens_of(output: Any, count: int) -> Tensor | None:
    """The first tensor (N, tokens, C) with so many tokens in a module's output."""
    return next((t for t in tensors(output) if t.is_floating_point() and t.ndim == 3 and t.shape[1] == count), None)


def chosen_tokens(output: Any, count: int) -> Tensor:
    """The same, gradients switched on behind the module."""
    chosen = choose(output, lambda t: t.ndim == 3 and t.shape[1] == count)
    assert chosen is not None  # the block returned them a moment ago
    return chosen
