"""The same maps in every context as in a plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from camwatch import Explanation, explain, layers, methods
from camwatch.errors import UnsupportedError
from tests.support.cam_nets import TRANSFORMERS_ONLY, network_for

IMAGES = torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([2, 0, 1])


def signed(activations: Tensor, gradients: Tensor) -> Tensor:
    assert activations.dtype == gradients.dtype == torch.float32
    return (activations * gradients).sum(1)


class Net(nn.Module):
    """Two stages and a head, as a Lightning module of a transfer-learning recipe has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.neck = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.neck(self.body(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def maps(net: nn.Module, layer: Any = "body", **options: Any) -> Tensor:
    found = explain(net, options.pop("images", IMAGES), target=LABELS, layer=layer, method=signed, **options)
    assert isinstance(found, Explanation)
    assert found.maps.dtype == torch.float32 and not found.maps.requires_grad
    return found.maps


def expected(layer: Any = "body") -> Tensor:
    return maps(Net(), layer)


class WithBlock(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x)
        return self.head(x.mean((2, 3)))


class Decorated(Net):
    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return super().features(x)


class Nested(Net):
    """The backbone under no_grad, and each of its stages again."""

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            with torch.no_grad():
                x = self.body(self.stem(x))
            with torch.no_grad():
                x = self.neck(x)
        return x


class SetGradEnabled(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(False):
            return super().features(x)


class InferenceInside(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().features(x)


class Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def features(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda t: self.body(self.stem(t)), x, use_reentrant=self.reentrant)
        return checkpoint(self.neck, x, use_reentrant=self.reentrant)


class Logging(Net):
    """Looks at its features under no_grad, where a tensor with a graph cannot become an array."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        with torch.no_grad():
            self.statistics = (features * 2).numpy().mean()
        return self.head(features.mean((2, 3)))


def frozen() -> nn.Module:
    return Net().requires_grad_(False)


def under_inference() -> nn.Module:
    with torch.inference_mode():
        return Net()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "frozen parameters": frozen,
    "no_grad block": WithBlock,
    "no_grad decorator": Decorated,
    "nested no_grad": Nested,
    "set_grad_enabled": SetGradEnabled,
    "checkpoint reentrant": lambda: Checkpointed(True),
    "checkpoint non-reentrant": lambda: Checkpointed(False),
    "numpy under no_grad": Logging,
    "created in inference mode": under_inference,
    "deep copy": lambda: copy.deepcopy(Net()),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "train mode": lambda: Net().train(),
    "inference mode around stage": lambda: WithBlock().requires_grad_(False),
}
CALLERS = {
    "plain": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("layer", ["stem", "body", "neck"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", MODELS)
def test_explain_equals_plain(name: str, caller: str, layer: str) -> None:
    plain, model = expected(layer), MODELS[name]()
    with CALLERS[caller]():
        images = IMAGES * 1.0  # an inference tensor in inference mode
        torch.testing.assert_close(maps(model, layer, images=images), plain)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", MODELS)
def test_layers_found_equal_plain(name: str, caller: str) -> None:
    with CALLERS[caller]():
        assert [found.name for found in layers(MODELS[name](), IMAGES) if found.default] == ["neck"]


@pytest.mark.parametrize("name", MODELS)
def test_several_layers_equal_plain(name: str) -> None:
    names = ["neck", "stem", "body"]
    found = explain(MODELS[name](), IMAGES, target=LABELS, layer=names, method=signed)
    for one, layer in zip(found, names, strict=True):
        torch.testing.assert_close(one.maps, expected(layer))


def within_no_grad(method: str) -> nn.Module:
    net = network_for(method)
    features = net.features
    net.features = lambda images: torch.no_grad()(features)(images)
    return net


def checkpointed(method: str, reentrant: bool) -> nn.Module:
    net = network_for(method)
    features = net.features
    net.features = lambda images: checkpoint(features, images, use_reentrant=reentrant)
    return net


def created_in_inference_mode(method: str) -> nn.Module:
    with torch.inference_mode():
        return network_for(method)


NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    "frozen": lambda method: network_for(method).requires_grad_(False),
    "train mode": lambda method: network_for(method).train(),
    "backbone under no_grad": within_no_grad,
    "checkpoint reentrant": lambda method: checkpointed(method, True),
    "checkpoint non-reentrant": lambda method: checkpointed(method, False),
    "created in inference mode": created_in_inference_mode,
    "compiled": lambda method: torch.compile(network_for(method), backend="eager"),
    "channels_last": lambda method: network_for(method).to(memory_format=torch.channels_last),
    "DataParallel": lambda method: nn.DataParallel(network_for(method)),
}


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")
def test_every_method_equals_plain(name: str, method: str) -> None:
    plain = explain(network_for(method), IMAGES, target=LABELS, method=method).maps
    assert plain.isfinite().all() and plain.amax() > 0
    for caller in CALLERS.values():
        with caller():
            found = explain(NETWORKS[name](method), IMAGES, target=LABELS, method=method).maps
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5 * float(plain.max()))


@pytest.mark.parametrize("method", methods())
@pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")
def test_every_method_takes_k_targets_and_batches(method: str) -> None:
    target = torch.stack([LABELS, (LABELS + 1) % 3], 1)
    whole = explain(network_for(method), IMAGES, target=target, method=method).maps
    assert whole.shape[:2] == (3, 2) and whole.ndim == 4 and whole.dtype == torch.float32
    if method == "random":
        return
    single = explain(network_for(method), IMAGES, target=target[:, 1], method=method).maps
    torch.testing.assert_close(whole[:, 1], single, rtol=1e-4, atol=1e-5 * float(single.max()))
    if method in ("smoothgrad", "smoothgradcam++", "sscam"):  # noise is drawn for a batch as a whole
        return
    parts = explain(network_for(method), IMAGES, target=target, method=method, batch_size=2).maps
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5 * float(whole.max()))


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("method", sorted({*methods()} - TRANSFORMERS_ONLY))
@pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")
def test_every_method_takes_signals_and_volumes(method: str, axes: int) -> None:
    images = torch.rand(2, 3, *[12, 8, 8][:axes], generator=torch.Generator().manual_seed(0))
    target = torch.arange(3).expand(2, 3)  # one of the classes has evidence for it
    maps = explain(network_for(method, axes=axes), images, target=target, method=method).maps
    assert maps.ndim == 2 + axes and maps.isfinite().all() and maps.amax() > 0


def test_inference_mode_inside_forward_is_refused_clearly() -> None:
    with pytest.raises(UnsupportedError, match=r"runs this layer in torch\.inference_mode inside its forward"):
        maps(InferenceInside())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["frozen parameters", "no_grad block"])
def test_weights_of_another_precision(dtype: torch.dtype, name: str) -> None:
    model = MODELS[name]().to(dtype)
    tolerance = {torch.bfloat16: 0.2, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    found, plain = maps(model), expected()
    assert float((found - plain).abs().max() / plain.abs().max()) < tolerance
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", ["frozen parameters", "no_grad block", "checkpoint reentrant"])
def test_autocast(name: str, caller: str) -> None:
    plain = expected()
    with CALLERS[caller](), torch.autocast("cpu", torch.bfloat16):
        found = maps(MODELS[name]())
    assert float((found - plain).abs().max() / plain.abs().max()) < 0.2
    assert not torch.equal(found, plain)


def test_autocast_inside_forward() -> None:
    def forward(model: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(images)

    plain, found = expected(), maps(Net(), forward=forward)
    assert float((found - plain).abs().max() / plain.abs().max()) < 0.2


def test_default_dtype_of_double_keeps_statistics_in_single() -> None:
    model, plain = Net(), expected()
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(maps(model), plain)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_channels_last_memory() -> None:
    model = Net().to(memory_format=torch.channels_last)
    found = maps(model, images=IMAGES.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected())


class Shared(nn.Module):
    """One convolution's weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(self.first(x).relu()).relu()).mean((2, 3))


def test_weight_sharing() -> None:
    shared, apart = Shared(), copy.deepcopy(Shared())
    apart.second.weight = nn.Parameter(shared.first.weight.detach().clone())
    torch.testing.assert_close(maps(shared, "second"), maps(apart, "second"))
    assert shared.second.weight is shared.first.weight
    assert isinstance(shared.first.weight, nn.Parameter)


def counting_backend() -> tuple[list[int], Callable[..., Any]]:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    return compiled, backend


def compiled_model(backend: Any) -> nn.Module:
    return torch.compile(Net().eval(), backend=backend)


def compiled_in_place(backend: Any) -> nn.Module:
    net = Net().eval()
    net.compile(backend=backend)
    return net


def compiled_submodule(backend: Any) -> nn.Module:
    net = Net().eval()
    net.body = torch.compile(net.body, backend=backend)
    return net


def compiled_submodule_in_place(backend: Any) -> nn.Module:
    net = Net().eval()
    net.body.compile(backend=backend)
    return net


@pytest.mark.parametrize("build", [compiled_model, compiled_in_place, compiled_submodule, compiled_submodule_in_place])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_compiled_graph_is_not_compiled_again(build: Any, grad: bool, first: bool) -> None:
    plain = expected()
    torch._dynamo.reset()
    compiled, backend = counting_backend()
    model = build(backend)
    with torch.set_grad_enabled(grad):
        if first:
            model(IMAGES)
        once = len(compiled)
        torch.testing.assert_close(maps(model), plain)
        assert [found.name for found in layers(model, IMAGES) if found.default] == ["neck"]
        assert len(compiled) == once
        model(IMAGES)
        warm = len(compiled)
        torch.testing.assert_close(maps(model), plain)
        model(IMAGES)
        assert len(compiled) == warm == 1


def test_explain_between_training_steps_of_a_compiled_model() -> None:
    torch._dynamo.reset()
    compiled, backend = counting_backend()
    model = torch.compile(Net(), backend=backend)
    for _ in range(3):
        model(IMAGES).sum().backward()
        maps(model)
    assert len(compiled) == 1
