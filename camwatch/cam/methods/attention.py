"""Methods for transformers whose tokens all attend to each other (ViT, DeiT, BEiT, DINO): no layer is named."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.methods.attention_blocks import SeeAttention, chosen_tokens, find_blocks, per_head
from camwatch.cam.methods.runner import ModelRunner
from camwatch.cam.model.execution import without_recomputation
from camwatch.cam.model.hooks import UnreachedError, on_output
from camwatch.cam.model.nested import replace_tensors
from camwatch.errors import UnsupportedError


def rollout(runner: ModelRunner) -> Tensor:
    """Attention rollout: how much of each patch the attention of all blocks hands to the token that is read.

    Choose it to see what a ViT gathers at all, in two forward passes; it looks at no class, so that it cannot tell
    why one was chosen, K targets have K equal maps, and a head drawn anew changes nothing. Read is the class token,
    or the mean of the patches where there is none.

    Source: Abnar and Zuidema, Quantifying attention flow in transformers, ACL 2020, equation 1: heads averaged,
    half of each block's attention replaced by the identity for its shortcut, multiplied over the blocks.

    Raises:
        UnsupportedError: The model has no attention between all tokens.
    """
    _, grid, prefix = find_blocks(runner)
    seen: list[Tensor] = []

    def note(attention: Tensor) -> Tensor:
        seen.append(per_head(attention, len(runner.images)).mean(1, keepdim=True).float())
        return attention

    with torch.no_grad(), SeeAttention(note):
        runner.forward(runner.images)
    reached = roll_out([attention[:, 0] for attention in seen], prefix)[:, : math.prod(grid)]
    maps = reached.reshape(len(runner.images), 1, *grid)
    return maps.repeat(1, runner.scores.shape[1], *[1] * len(grid))


def roll_out(attentions: list[Tensor], prefix: int) -> Tensor:
    """Multiplies attention (N, T, T) over the blocks, first one first; returns what reaches the read token (N, P).

    Args:
        attentions: Each block's, averaged over its heads.
        prefix: Leading tokens that are no patches; the first is read, the mean of the patches where it is 0.

    Example:
        >>> half = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> roll_out([half], 1)  # the class token keeps one half and takes one half of the first patch
        tensor([[0.5000, 0.0000]])
    """
    total = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for attention in attentions:
        mixed = (attention + torch.eye(attention.shape[-1], device=attention.device)) / 2
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return total[:, 0, prefix:] if prefix else total.mean(1)


def legrad(runner: ModelRunner) -> Tensor:
    """LeGrad: which attention would raise the score, summed over the blocks.

    Choose it for class-specific maps of a ViT without naming a layer. Each block's tokens, averaged, are given to
    the model's own head, and the positive gradient of that score with respect to the block's attention is averaged
    over heads and queries. Costs three forward passes and a short backward pass per block and target.

    Source: Bousselham et al., LeGrad, ICCV 2025 (arXiv 2404.03214), section 3.

    Raises:
        UnsupportedError: The model has no attention between all tokens, or its head reads the batch's size elsewhere.
    """
    n = len(runner.images)
    blocks, grid, prefix = find_blocks(runner)
    attentions: list[Tensor] = []
    tokens: list[Tensor] = []

    def note(attention: Tensor) -> Tensor:
        attentions.append(attention.detach().requires_grad_())  # a block's score needs no graph below its attention
        return attentions[-1]

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        found = chosen_tokens(output, attentions[-1].shape[-1])
        tokens.append(found)
        if module is not blocks[-1]:
            return replace_tensors(output, lambda t: t.detach() if t is found else t)
        # Every token becomes the mean of its block's: the head then reads that, whichever token it reads.
        means = torch.cat([t.mean(1, keepdim=True).expand_as(t) for t in tokens])
        return replace_tensors(output, lambda t: means if t is found else t)

    with without_recomputation(), on_output(blocks, leave), SeeAttention(note):
        output = runner.forward(runner.images)
    try:
        scores = runner.score_blocks(output, len(blocks))
    except (IndexError, RuntimeError) as error:
        raise UnsupportedError(
            f"LeGrad runs the model's head on {len(blocks)} x {n} images at once, which this model does not take"
        ) from error
    total: Tensor | None = None
    for attention, score in zip(attentions, scores, strict=True):
        gradients = [_gradient(column, attention) for column in score.unbind(1)]
        raised = torch.stack([per_head(g, n).float().relu().mean((1, 2)) for g in gradients], 1)
        total = raised if total is None else total + raised
    assert total is not None
    patches = total[:, :, prefix : prefix + math.prod(grid)] / len(blocks)
    return patches.reshape(n, -1, *grid)


def _gradient(column: Tensor, attention: Tensor) -> Tensor:
    gradient = None
    if column.requires_grad:
        [gradient] = torch.autograd.grad(column.sum(), attention, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise UnreachedError("the score does not depend on the attention through a differentiable path")
    return gradient
