"""The model's passes as a method sees them: lazy, the target fixed by the first, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain
from camwatch.cam.methods.method import from_gradients
from camwatch.cam.methods.runner import ModelRunner
from camwatch.cam.model.hooks import LayerCapture
from tests.support.cam_nets import Staged

IMAGES = torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(3))
NAMES = ["body.0", "body"]


def counting(target: Any = "predicted", names: list[str] = NAMES) -> tuple[ModelRunner, list[bool]]:
    """A runner, and a list that gains whether gradients were on at the end of each pass."""
    net, passes = Staged().eval(), []
    net.register_forward_hook(lambda module, args, output: passes.append(torch.is_grad_enabled()))
    return ModelRunner(net.requires_grad_(False), IMAGES, target, net, names, [None] * len(names)), passes


def test_runner_runs_nothing_before_it_is_asked() -> None:
    runner, passes = counting()
    assert passes == []
    assert len(runner.layers) == 2 and runner.output.shape == runner.scores.repeat(1, 3).shape and passes == [False]
    assert all(not layer.raw.requires_grad for layer in runner.layers) and passes == [False]


def test_runner_layers_equal_those_captured_with_a_graph() -> None:
    runner, _ = counting()
    with LayerCapture(runner.model, NAMES) as capture:
        runner.model(IMAGES)
    for layer, raw, layout in zip(runner.layers, capture.raw, capture.layouts, strict=True):
        assert torch.equal(layer.raw, raw) and layer.layout == layout
        torch.testing.assert_close(layer.activations, raw.detach())


def test_runner_gradients_take_one_pass_for_all_targets() -> None:
    target = torch.tensor([[0, 1], [1, 2], [2, 0]])
    runner, passes = counting(target)
    with runner.gradients() as targets:
        found = [[(a.clone(), g.clone()) for a, g in layers] for layers in targets]
    assert len(found) == 2 and runner.several and not runner.output.requires_grad and passes == [True]
    for k, layers in enumerate(found):
        with LayerCapture(runner.model, NAMES) as capture:
            scores = runner.model(IMAGES).gather(1, target[:, k : k + 1])
        for pair, *expected in zip(layers, capture.activations, capture.gradients(scores), strict=True):
            torch.testing.assert_close(list(pair), expected)


class Drifting(nn.Module):
    """Answers another class at every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = Staged().eval().requires_grad_(False), 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.inner(images) + 100 * torch.eye(3)[self.passes % 3]


@pytest.mark.parametrize("first", ["layers", "gradients"])
def test_runner_keeps_the_target_of_whichever_pass_ran_first(first: str) -> None:
    net = Drifting()
    runner = ModelRunner(net, IMAGES, "predicted", net, ["inner.body"], [None])
    if first == "layers":
        assert len(runner.layers) == 1
    from_gradients(lambda activations, gradients: activations.sum(1))(runner)
    assert len(runner.layers) == 1 and net.passes == 2
    assert isinstance(runner.target, Tensor) and runner.target.tolist() == [1, 1, 1]
    assert runner.output.argmax(1).tolist() == [1, 1, 1] and runner.classes.tolist() == [[1]] * 3


def test_runner_leaves_no_hook_and_no_mode_where_a_function_raises() -> None:
    def broken(activations: Tensor, gradients: Tensor) -> Tensor:
        raise ZeroDivisionError

    net = Staged().eval()
    with torch.no_grad(), pytest.raises(ZeroDivisionError) as caught:
        explain(net, IMAGES, layer="body", method=broken)
    assert caught.tb is not None  # what the traceback holds must not keep a hook alive
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_gradient_method_takes_one_score_for_the_whole_batch() -> None:
    net = Staged().eval()
    together = explain(net, IMAGES, layer="body", target=lambda output: output[:, 1].sum())
    assert torch.equal(together.maps, explain(net, IMAGES, layer="body", target=1).maps)
