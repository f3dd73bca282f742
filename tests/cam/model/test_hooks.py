"""LayerCapture against autograd by hand."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from camwatch.cam import LayerCapture, explain, grad_cam
from camwatch.cam.model.execution import run_detached
from camwatch.cam.model.modules import find_module, named_modules, unwrap
from camwatch.cam.model.nested import replace_tensors, tensors
from camwatch.errors import LayerError


def small_net(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 6, 3, padding=1),
            act=activation or nn.ReLU(),
            body=nn.Conv2d(6, 5, 3, stride=2),
            act2=nn.ReLU(inplace=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(5, 4),
        )
    )


def by_hand(net: nn.Sequential, images: Tensor, layer: str, column: int) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the score, without any hook."""
    names = [name for name, _ in net.named_children()]
    cut = names.index(layer) + 1
    activations = net[:cut](images).detach().requires_grad_()
    behind = activations.clone()
    for module in net[cut:]:
        behind = module(behind)
    return activations.detach(), torch.autograd.grad(behind[:, column].sum(), activations)[0]


@pytest.mark.parametrize("layer", ["stem", "act", "body", "act2"])
@pytest.mark.parametrize("inplace", [False, True])
def test_capture_equals_autograd_by_hand(layer: str, inplace: bool) -> None:
    images = torch.rand(3, 3, 9, 11)
    expected, expected_gradient = by_hand(small_net(nn.ReLU()), images, layer, 2)
    net = small_net(nn.ReLU(inplace=inplace))
    with LayerCapture(net, layer) as capture:
        score = net(images)[:, 2].sum()
    torch.testing.assert_close(capture.activations, expected)
    torch.testing.assert_close(capture.gradients(score), expected_gradient)


def test_capture_in_place_activation_behind_layer_leaves_record() -> None:
    net, images = small_net(nn.ReLU(inplace=True)), torch.randn(2, 3, 9, 9)
    with LayerCapture(net, "stem") as capture:
        net(images)
    assert bool((capture.activations < 0).any())
    torch.testing.assert_close(capture.activations, net.stem(images).detach())


def test_capture_several_layers_equal_one_by_one() -> None:
    net, images = small_net(nn.ReLU(inplace=True)), torch.rand(2, 3, 9, 9)
    names = ["act2", "stem", "body"]
    with LayerCapture(net, names) as capture:
        score = net(images)[:, 1].sum()
    for name, activations, gradients in zip(names, capture.activations, capture.gradients(score), strict=True):
        with LayerCapture(net, name) as single:
            alone = net(images)[:, 1].sum()
        torch.testing.assert_close(activations, single.activations, msg=name)
        torch.testing.assert_close(gradients, single.gradients(alone), msg=name)


def test_capture_keeps_no_graph_below_and_writes_no_grad() -> None:
    net, images = small_net(), torch.rand(2, 3, 9, 9, requires_grad=True)
    with LayerCapture(net, "body") as capture:
        score = net(images)[:, 1].sum()
    capture.gradients(score)
    assert capture.raw[0].is_leaf
    assert images.grad is None and all(p.grad is None for p in net.parameters())
    assert torch.autograd.grad(score, images, allow_unused=True)[0] is None


def test_capture_gradients_repeat_until_told_otherwise() -> None:
    net = small_net()
    with LayerCapture(net, "body") as capture:
        output = net(torch.rand(2, 3, 9, 9))
    first, again = capture.gradients(output[:, 0]), capture.gradients(output[:, 0])
    torch.testing.assert_close(first, again, rtol=0, atol=0)


class Twice(nn.Module):
    """Calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu()).mean((2, 3))


def test_capture_layer_called_twice_counts_the_last_call() -> None:
    net, images = Twice(), torch.rand(2, 3, 8, 8)
    with LayerCapture(net, "conv") as capture:
        score = net(images)[:, 0]
    torch.testing.assert_close(capture.activations, net.conv(net.conv(images).relu()).detach())
    expected = torch.zeros(2, 3, 8, 8)
    expected[:, 0] = 1 / 64
    torch.testing.assert_close(capture.gradients(score), expected)


class Pair(NamedTuple):
    features: Tensor
    length: int


@dataclasses.dataclass(frozen=True)
class Frozen:
    pooled: Tensor
    features: Tensor


class Wrapped(nn.Module):
    """A layer that hands its features on inside a structure."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 4, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x))


class Around(nn.Module):
    def __init__(self, wrap: Any, take: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.take, self.head = Wrapped(wrap), take, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(self.body(x)).relu_().mean((2, 3)))


@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (lambda t: (None, t, 3), lambda o: o[1]),
        (lambda t: [t.mean((2, 3)), [t]], lambda o: o[1][0]),
        (lambda t: {"pooled": t.mean((2, 3)), "features": t}, lambda o: o["features"]),
        (lambda t: OrderedDict(features=t), lambda o: o["features"]),
        (lambda t: Pair(t, 3), lambda o: o.features),
        (lambda t: Frozen(t.mean((2, 3)), t), lambda o: o.features),
    ],
    ids=["tuple", "list", "dict", "OrderedDict", "namedtuple", "dataclass"],
)
def test_capture_layer_output_in_a_structure(wrap: Any, take: Any) -> None:
    net, images = Around(wrap, take), torch.rand(2, 3, 8, 8)
    with LayerCapture(net, "body") as capture:
        score = net(images)[:, 3]
    with LayerCapture(net, "body.conv") as inner:
        expected = net(images)[:, 3]
    torch.testing.assert_close(capture.activations, inner.activations)
    torch.testing.assert_close(capture.gradients(score), inner.gradients(expected))
    assert explain(net, images).layer == "body"


def test_replace_leaves_the_original_structure() -> None:
    given = {"a": [torch.ones(1), "text"], "b": Pair(torch.zeros(1), 2)}
    changed = replace_tensors(given, lambda t: t + 1)
    assert changed["a"][0].item() == 2 and changed["a"][1] == "text"
    assert isinstance(changed["b"], Pair) and changed["b"].length == 2
    assert given["a"][0].item() == 1
    assert [t.item() for t in tensors(changed)] == [2, 1]


def test_capture_unknown_layer_offers_near_names() -> None:
    with pytest.raises(LayerError, match=r"unknown layer of Sequential 'bdy'; did you mean 'body'"):
        LayerCapture(small_net(), "bdy")


def test_capture_layer_of_another_model() -> None:
    with pytest.raises(LayerError, match="Conv2d is not part of the model Sequential"):
        LayerCapture(small_net(), nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize(("layer", "message"), [(3, "a name or a module of the model, got int"), ([], "empty")])
def test_capture_unusable_layer(layer: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        LayerCapture(small_net(), [layer] if layer == 3 else layer)


def test_capture_layer_without_grid() -> None:
    with pytest.raises(LayerError, match=r"'flat' has no spatial grid on images of \(9, 9\): .* shape \(2, 5\)"):
        explain(small_net(), torch.rand(2, 3, 9, 9), layer="flat")


def test_capture_layer_that_does_not_run() -> None:
    net = small_net()
    net.add_module("unused", nn.Sequential())
    net.unused.add_module("conv", nn.Conv2d(1, 1, 1))
    with pytest.raises(LayerError, match=r"'unused\.conv' did not run"):
        explain(net, torch.rand(2, 3, 9, 9), layer="unused.conv", forward=lambda m, x: m[:7](x))


def test_capture_score_that_does_not_depend_on_layer() -> None:
    net = small_net()
    with LayerCapture(net, "body") as capture:
        net(torch.rand(2, 3, 9, 9))
    with pytest.raises(LayerError, match="does not depend on layer 'body'"):
        capture.gradients(torch.ones(2, requires_grad=True))


def test_capture_size_unknown_when_model_is_not_called() -> None:
    net = small_net()
    with pytest.raises(LayerError, match=r"pass size=\(H, W\)"), LayerCapture(net, "body"):
        net[:3](torch.rand(2, 3, 9, 9))


def test_capture_removes_hooks_after_an_exception() -> None:
    net = small_net()
    with pytest.raises(ZeroDivisionError), LayerCapture(net, ["stem", "body"]):
        raise ZeroDivisionError
    for module in net.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_capture_is_freed_without_the_garbage_collector() -> None:
    net, images = small_net(), torch.rand(2, 3, 9, 9)
    explain(net, images, target=0, layer=["stem", "body"])
    gc.collect()
    gc.disable()
    try:
        with LayerCapture(net, ["stem", "body"]) as capture:
            score = net(images)[:, 1].sum()
        capture.gradients(score)
        recorded = [weakref.ref(t) for t in capture.raw]
        del capture, score
        assert [one() for one in recorded] == [None, None]
    finally:
        gc.enable()


def test_capture_example_of_the_mechanism_equals_explain() -> None:
    net, images = small_net(), torch.rand(2, 3, 9, 9)
    with LayerCapture(net, "body") as capture:
        score = net(images)[:, 3].sum()
    maps = grad_cam(capture.activations, capture.gradients(score))
    torch.testing.assert_close(maps, explain(net, images, target=3, layer="body").maps)


def test_find_module_by_module_and_through_wrappers() -> None:
    net = small_net()
    assert find_module(net, net.body) == ("body", net.body)
    assert find_module(nn.DataParallel(net), "body")[1] is net.body
    assert unwrap(nn.DataParallel(net)) is net


def test_named_modules_are_torchs_own_names() -> None:
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    net = nn.Sequential(OrderedDict(first=nn.Sequential(OrderedDict(inner=shared)), again=shared, last=nn.Linear(2, 2)))
    net.register_module("nothing", None)
    for model in (net, small_net(), Around(lambda t: t, lambda o: o)):
        assert list(named_modules(model)) == [(name, module) for name, module in model.named_modules() if name]


def test_run_detached_keeps_buffers_and_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    output = run_detached(net, lambda: net(torch.rand(2, 3, 8, 8)))
    assert not output.requires_grad
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


def test_run_detached_changes_parameters_for_the_call_alone() -> None:
    net = nn.Linear(2, 1, bias=False)
    weight = net.weight.clone()
    doubled = run_detached(net, lambda: net(torch.ones(1, 2)), change=lambda p: p * 2)
    torch.testing.assert_close(doubled, 2 * weight.sum().view(1, 1))
    torch.testing.assert_close(net.weight, weight)


def test_capture_puts_the_callers_gradient_mode_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        with LayerCapture(net, "0"):
            net(torch.rand(1, 3, 8, 8))
        assert not torch.is_grad_enabled()
