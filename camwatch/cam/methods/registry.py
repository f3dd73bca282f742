"""Which methods there are. A new one is a function, and a line in the table of what it is given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from camwatch.cam.methods.attention import legrad, rollout
from camwatch.cam.methods.fullgrad import fullgrad
from camwatch.cam.methods.further_gradients import finer_cam, random_map, shapley_cam, smooth_grad_cam_plus_plus
from camwatch.cam.methods.gradients import GRADIENT_METHODS, Method
from camwatch.cam.methods.input_gradients import guided_backprop, guided_grad_cam, saliency, smooth_grad
from camwatch.cam.methods.linear_head import cam
from camwatch.cam.methods.masking import ablation_cam, is_cam, occlusion, score_cam, ss_cam
from camwatch.cam.methods.refinecam import refine_cam
from camwatch.cam.methods.runner import Access, Site
from camwatch.errors import InputError, unknown

# One layer: maps (N, K, *grid).
SITE_METHODS: dict[str, Callable[[Access, Site], Tensor]] = {
    "ablationcam": ablation_cam,
    "cam": cam,
    "finercam": finer_cam,
    "guidedgradcam": guided_grad_cam,
    "iscam": is_cam,
    "random": random_map,
    "scorecam": score_cam,
    "shapleycam": shapley_cam,
    "smoothgradcam++": smooth_grad_cam_plus_plus,
    "sscam": ss_cam,
}
# The deepest layer of every grid: one map from all.
STAGE_METHODS: dict[str, Callable[[Access, list[Site]], Tensor]] = {
    "refinecam": refine_cam,
}
# The whole model, no layer.
IMAGE_METHODS: dict[str, Callable[[Access], Tensor]] = {
    "fullgrad": fullgrad,
    "guidedbackprop": guided_backprop,
    "legrad": legrad,
    "occlusion": occlusion,
    "rollout": rollout,
    "saliency": saliency,
    "smoothgrad": smooth_grad,
}


def methods() -> tuple[str, ...]:
    """Returns the names that ``method=`` takes.

    Example:
        >>> "gradcam" in methods()
        True
    """
    return tuple(sorted([*GRADIENT_METHODS, *SITE_METHODS, *STAGE_METHODS, *IMAGE_METHODS]))


def check_method(method: str | Method) -> None:
    """Raises InputError for an unknown name; the message offers near names."""
    if not callable(method) and method not in methods():
        raise InputError(unknown("method", method, methods(), limit=99))


def needs_layer(method: str | Method) -> bool:
    """Tells whether a method explains a layer; the others explain the image itself."""
    return callable(method) or method not in (*IMAGE_METHODS, *STAGE_METHODS)
