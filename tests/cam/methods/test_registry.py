"""What every line of the table of methods promises; a new line is tested here without a new test."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain, methods
from camwatch.cam.methods.gradients import weighted_sum
from camwatch.cam.methods.method import Method, from_gradients, per_layer, whole
from camwatch.cam.methods.registry import METHODS, find_method, needs_layer
from camwatch.cam.methods.runner import LayerOutput, ModelRunner
from camwatch.cam.model.hooks import UnreachedError
from camwatch.errors import InputError
from tests.support.cam_nets import Staged, network_for

IMAGES = torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([2, 0, 1])
# Forward passes and images through them, the search for the layer among them: counted at commit 6615a16.
PASSES = {
    **{"ablationcam": (6, 8), "cam": (3, 7), "eigencam": (2, 4), "eigengradcam": (2, 4), "elementwise": (2, 4)},
    **{"fem": (2, 4), "finercam": (3, 7), "fullgrad": (2, 6), "gradcam": (2, 4), "gradcam++": (2, 4)},
    **{"guidedbackprop": (2, 6), "guidedgradcam": (4, 10), "hirescam": (2, 4), "iscam": (42, 244), "kpcacam": (2, 4)},
    **{"layercam": (2, 4), "legrad": (3, 9), "occlusion": (91, 543), "random": (2, 4), "refinecam": (3, 7)},
    **{"rollout": (3, 9), "saliency": (2, 6), "scorecam": (6, 28), "shapleycam": (3, 7), "smoothgrad": (26, 78)},
    **{"smoothgradcam++": (12, 34), "sscam": (42, 244), "xgradcam": (2, 4)},
}
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")


def test_every_method_stands_under_its_name_in_order() -> None:
    assert list(METHODS) == sorted(METHODS) == list(methods())
    assert all(method.name == name for name, method in METHODS.items())
    assert set(PASSES) <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_when_to_choose_it_and_whose_it_is(name: str) -> None:
    text = inspect.unwrap(METHODS[name].maps).__doc__ or ""
    assert text == METHODS[name].maps.__doc__
    assert "Choose it" in text
    assert "Source:" in text or name == "random"


@pytest.mark.parametrize("name", PASSES)
def test_every_method_makes_as_many_passes_as_before(name: str) -> None:
    seen: list[int] = []
    net = network_for(name)
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    explain(net, IMAGES, target=LABELS, method=name)
    assert (len(seen), sum(seen)) == PASSES[name]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_needs_a_gradient_as_it_declares(name: str) -> None:
    def cut(model: nn.Module, images: Tensor) -> Tensor:
        return model(images).detach()

    net, layer = network_for(name), "body" if needs_layer(name) else None
    if METHODS[name].explains == "stages":  # they are found by a gradient
        return
    if METHODS[name].needs_gradient:
        refusal = RuntimeError if name == "shapleycam" else UnreachedError  # shapleycam hands on what torch says
        with pytest.raises(refusal, match=r"not require grad|through a differentiable path"):
            explain(net, IMAGES, target=LABELS, method=name, layer=layer, forward=cut)
    else:
        maps = explain(net, IMAGES, target=LABELS, method=name, layer=layer, forward=cut).maps
        assert maps.amax() > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_what_it_declares(name: str) -> None:
    net = network_for(name)
    explanation = explain(net, IMAGES, target=LABELS, method=name)
    assert explanation.method == name
    assert (explanation.layer == "input") == (METHODS[name].explains != "layer") == (not needs_layer(name))
    if not needs_layer(name):
        with pytest.raises(InputError, match=f"'{name}' explains the image itself, no layer"):
            explain(net, IMAGES, method=name, layer="body")


@pytest.mark.parametrize("target", [None, 1, LABELS, torch.stack([LABELS, (LABELS + 1) % 3], 1)])
@pytest.mark.parametrize("name", ["gradcam", "gradcam++", "eigencam"])
def test_method_made_of_a_function_equals_the_registered_one(name: str, target: Tensor | int | None) -> None:
    function = inspect.unwrap(METHODS[name].maps)
    options = {"layer": ["body.0", "body"], "batch_size": 2, **({} if target is None else {"target": target})}
    registered = explain(Staged().eval(), IMAGES, method=name, **options)
    for method, called in ((function, function.__name__), (Method("mine", from_gradients(function)), "mine")):
        for one, expected in zip(explain(Staged().eval(), IMAGES, method=method, **options), registered, strict=True):
            assert torch.equal(one.maps, expected.maps) and one.method == called


def test_find_method_names_what_has_no_name_by_its_type() -> None:
    class Mine:
        def __call__(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return (activations * gradients).sum(1)

    assert find_method(Mine()).name == "Mine" and needs_layer(Mine())
    assert find_method("gradcam") is find_method(METHODS["gradcam"]) is METHODS["gradcam"]


def test_a_new_method_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightest(runner: ModelRunner, layer: LayerOutput) -> Tensor:
        return torch.stack([weighted_sum(layer.activations, layer.activations.flatten(2).amax(2))] * 2, 1)

    monkeypatch.setitem(METHODS, "brightest", Method("brightest", per_layer(brightest), needs_gradient=False))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images, target = torch.rand(3, 3, 8, 8), torch.tensor([[0, 1]] * 3)
    maps = explain(net, images, method="brightest", target=target, batch_size=2).maps
    activations = net[:2](images).detach()
    expected = (activations * activations.amax((2, 3), keepdim=True)).sum(1)
    torch.testing.assert_close(maps, torch.stack([expected] * 2, 1))
    assert "brightest" in methods()


def test_a_new_method_of_the_image_takes_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def darkness(runner: ModelRunner) -> Tensor:
        return (1 - runner.images.mean(1, keepdim=True)).expand(-1, runner.scores.shape[1], -1, -1)

    monkeypatch.setitem(METHODS, "darkness", Method("darkness", whole(darkness), "input", needs_gradient=False))
    explanation = explain(Staged().eval(), IMAGES, method="darkness")
    assert explanation.layer == "input"
    torch.testing.assert_close(explanation.maps, 1 - IMAGES.mean(1))
