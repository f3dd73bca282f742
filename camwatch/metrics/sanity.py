"""The randomization check: a map that survives random weights does not explain the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from camwatch.cam.blank_maps import BlankMapWarning
from camwatch.cam.engine import explain
from camwatch.cam.methods.method import MapFunction
from camwatch.cam.model.execution import Forward
from camwatch.cam.model.modules import find_module, unwrap
from camwatch.cam.model.targets import Target, predicted_classes
from camwatch.errors import InputError
from camwatch.isolation import isolate_rng
from camwatch.metrics.agreement import map_rank_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class RandomizationCheck:
    """How similar the maps stay to the trained model's when its weights become random; ``print`` it.

    Values are Spearman's rank correlations over the cells: 1 the same map, 0 an unrelated one, NaN where a
    map has no contrast (a blank one among them).

    Attributes:
        stages: (L,) names of what was randomized, from the top of the model down.
        cascading: (L, N) float32; at stage l everything from the top down to l is random.
        independent: (L, N) float32; at stage l nothing else is random.
        layer: The layer whose maps are compared.
        method: The method's name.
    """

    stages: tuple[str, ...]
    cascading: Tensor
    independent: Tensor
    layer: str
    method: str

    def __str__(self) -> str:
        width = max(len("randomized"), *map(len, self.stages))
        lines = [
            f"{self.method} at {self.layer}, {self.cascading.shape[1]} images: mean rank correlation with the trained "
            "model's map",
            f"{'randomized':{width}}  cascading  independent  (1 the same map, 0 an unrelated one)",
        ]
        for i, stage in enumerate(self.stages):
            cells = [f"{both[i].nanmean():.2f}" for both in (self.cascading, self.independent)]
            flat = int(self.cascading[i].isnan().sum())
            note = f"  cascading, {flat} maps without contrast" if flat else ""
            lines.append(f"{stage:{width}}  {cells[0]:>9}  {cells[1]:>11}{note}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws the mean similarity of both modes over the stages, with the range of half of the images.

        A cross marks a stage at which no map has any contrast left.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.5 + 0.35 * len(self.stages), 4.8), layout="constrained")
        axes = figure.subplots()
        for name, values in (("cascading", self.cascading), ("independent", self.independent)):
            places = torch.arange(len(self.stages))
            low, high = (values.nanquantile(q, dim=1) for q in (0.25, 0.75))
            (line,) = axes.plot(places, values.nanmean(1), marker="o", label=name)
            axes.fill_between(places, low, high, alpha=0.2)
            gone = places[values.isnan().all(1)]
            if len(gone):
                axes.plot(gone, torch.zeros(len(gone)), "x", color=line.get_color(), label=f"{name}: no contrast")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xticks(range(len(self.stages)), self.stages, rotation=60, ha="right", fontsize=8)
        axes.set(ylabel="rank correlation with\nthe trained model's map", xlabel="randomized, from the top down")
        axes.set_ylim(-1.05, 1.05)
        axes.set_title(f"{self.method}, {self.layer}", fontsize=10)
        axes.legend(fontsize=8, loc="lower left")
        return figure


def randomization_check(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = "predicted",
    layer: str | nn.Module | None = None,
    method: str | MapFunction = "gradcam",
    stages: Sequence[str | nn.Module] | None = None,
    batch_size: int | None = None,
    forward: Forward | None = None,
) -> RandomizationCheck:
    """Compares the maps with those of the same model with random weights, in two ways.

    Cascading, the weights are randomized stage by stage from the top down and stay so; independent, one
    stage at a time. A sound method's maps lose their similarity. One whose maps stay similar shows the image
    (as guided backprop does), or the layer's activations whatever the class.

    Above the explained layer only the weighting of its channels becomes random. As long as those are alike,
    some similarity remains until the randomization reaches the layers that make the activations.

    Args:
        target: As in ``explain``; "predicted" is what the trained model predicts, at every stage.
        layer: As in ``explain``; None is found once, on the trained model.
        stages: Names or modules to randomize with everything in them, from the top down. Default: each module
            that holds a weight of two or more dimensions, with the normalization behind it, in the reverse
            order of their definition.

    Returns:
        A RandomizationCheck. The model's parameters and buffers and the random state are afterwards, bit for
        bit, what they were before, also after an exception.

    Raises:
        InputError: No stage holds a parameter, or the target gives several maps per image.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018. New weights come from the
    module's own ``reset_parameters``; a parameter of a module without one is drawn from a normal
    distribution with its present root mean square.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> check = randomization_check(net, torch.rand(3, 1, 8, 8), layer="1")
        >>> check.stages, check.cascading.shape
        (('4', '0'), torch.Size([2, 3]))
    """
    model = unwrap(model)
    groups = _named(model, stages) if stages is not None else _found(model)
    if not groups:
        raise InputError(f"{type(model).__name__} has no weight of two or more dimensions to randomize")

    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)  # a blank map is NaN in the result
        trained = explain(
            model, images, target=target, layer=layer, method=method, batch_size=batch_size, forward=forward
        )
        if trained.maps.ndim != 3:
            raise InputError(f"expected a target with one map per image, got maps {tuple(trained.maps.shape)}")
        fixed = predicted_classes(trained.output).cpu() if isinstance(target, str) else target

        def similarity() -> Tensor:
            maps = explain(
                model,
                images,
                target=fixed,
                layer=trained.layer,
                method=method,
                batch_size=batch_size,
                forward=forward,
            ).maps
            return map_rank_similarity(trained.maps, maps).cpu()

        cascading, independent = [], []
        with _restored(model):
            for i, modules in enumerate(groups.values()):
                _randomize(modules, i)
                cascading.append(similarity())
        for i, modules in enumerate(groups.values()):
            with _restored(model):
                _randomize(modules, i)
                independent.append(similarity())
    return RandomizationCheck(
        tuple(groups), torch.stack(cascading), torch.stack(independent), trained.layer, trained.method
    )


def _found(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Returns name -> modules of each stage, from the top down."""
    groups: list[tuple[str, list[nn.Module]]] = []
    waiting: list[nn.Module] = []  # normalization before the first weight
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if any(parameter.ndim >= 2 for parameter in own):
            groups.append((name or type(model).__name__, [*waiting, module]))
            waiting = []
        elif own:
            (groups[-1][1] if groups else waiting).append(module)
    return dict(reversed(groups))


def _named(model: nn.Module, stages: Sequence[str | nn.Module]) -> dict[str, list[nn.Module]]:
    groups = {}
    for stage in stages:
        name, module = find_module(model, stage)
        groups[name] = [part for part in module.modules() if list(part.parameters(recurse=False))]
        if not groups[name]:
            raise InputError(f"the stage {name!r}, a {type(module).__name__}, has no parameter to randomize")
    return groups


@torch.no_grad()
def _randomize(modules: Sequence[nn.Module], seed: int) -> None:
    # torch.manual_seed would also queue a seed for devices that are not in use, beyond any restoring.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    for module in modules:
        reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0, float(parameter.float().square().mean().sqrt()))


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Puts parameters and buffers back as they were, bit for bit."""
    saved = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in saved:
                tensor.copy_(values)
