"""Which methods there are. A new one is a function, and its line in the table."""

from __future__ import annotations

from camwatch.cam.methods.attention import legrad, rollout
from camwatch.cam.methods.fullgrad import fullgrad
from camwatch.cam.methods.further_gradients import finer_cam, random_map, shapley_cam, smooth_grad_cam_plus_plus
from camwatch.cam.methods.gradients import (
    eigen_cam,
    eigen_grad_cam,
    elementwise_cam,
    fem_cam,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    kpca_cam,
    layer_cam,
    xgrad_cam,
)
from camwatch.cam.methods.input_gradients import guided_backprop, guided_grad_cam, saliency, smooth_grad
from camwatch.cam.methods.linear_head import cam
from camwatch.cam.methods.masking import ablation_cam, is_cam, occlusion, score_cam, ss_cam
from camwatch.cam.methods.method import MapFunction, Method, from_gradients, per_layer, whole
from camwatch.cam.methods.refinecam import refine_cam
from camwatch.errors import InputError, unknown

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("ablationcam", per_layer(ablation_cam), needs_gradient=False),
        Method("cam", per_layer(cam), needs_gradient=False),
        Method("eigencam", from_gradients(eigen_cam)),
        Method("eigengradcam", from_gradients(eigen_grad_cam)),
        Method("elementwise", from_gradients(elementwise_cam)),
        Method("fem", from_gradients(fem_cam)),
        Method("finercam", per_layer(finer_cam)),
        Method("fullgrad", whole(fullgrad), "input"),
        Method("gradcam", from_gradients(grad_cam)),
        Method("gradcam++", from_gradients(grad_cam_plus_plus)),
        Method("guidedbackprop", whole(guided_backprop), "input"),
        Method("guidedgradcam", per_layer(guided_grad_cam)),
        Method("hirescam", from_gradients(hires_cam)),
        Method("iscam", per_layer(is_cam), needs_gradient=False),
        Method("kpcacam", from_gradients(kpca_cam)),
        Method("layercam", from_gradients(layer_cam)),
        Method("legrad", whole(legrad), "input"),
        Method("occlusion", whole(occlusion), "input", needs_gradient=False),
        Method("random", per_layer(random_map), needs_gradient=False),
        Method("refinecam", whole(refine_cam), "stages"),
        Method("rollout", whole(rollout), "input", needs_gradient=False),
        Method("saliency", whole(saliency), "input"),
        Method("scorecam", per_layer(score_cam), needs_gradient=False),
        Method("shapleycam", per_layer(shapley_cam)),
        Method("smoothgrad", whole(smooth_grad), "input"),
        Method("smoothgradcam++", per_layer(smooth_grad_cam_plus_plus)),
        Method("sscam", per_layer(ss_cam), needs_gradient=False),
        Method("xgradcam", from_gradients(xgrad_cam)),
    )
}


def methods() -> tuple[str, ...]:
    """Returns the names that ``method=`` takes.

    Start with "gradcam". The others, by what they look at:

    - gradients at a layer: gradcam, gradcam++, hirescam, layercam, xgradcam, elementwise, eigengradcam, shapleycam,
      finercam, smoothgradcam++;
    - activations at a layer: eigencam, kpcacam, fem; cam (the head's own weights); random (the baseline to beat);
    - a layer, the model run again for each channel: ablationcam, scorecam, sscam, iscam;
    - the deepest layer of each grid: refinecam, and any method at a layer with ``fuse=``;
    - pixels: saliency, smoothgrad, guidedbackprop, occlusion, fullgrad; guidedgradcam (with a layer);
    - the attention of all blocks of a ViT: legrad, rollout.

    ``help(camwatch.cam.methods.registry.METHODS["gradcam"].maps)`` has a method's paper and when to choose it.

    To judge a model, take one whose maps depend on its weights. Once the head is drawn anew, the rank correlation with
    the trained net's map is at most .08 for ablationcam, xgradcam, gradcam, shapleycam, finercam, eigengradcam, legrad
    and occlusion; .17 to .35 for hirescam, cam and guidedgradcam; .56 for layercam and elementwise. It is .60 to .86
    for iscam, smoothgrad, guidedbackprop, scorecam, saliency and sscam, above .9 for fullgrad, smoothgradcam++,
    gradcam++ and refinecam, and 1 by definition for eigencam, kpcacam, fem and rollout, which look at no class: do not
    trust these to explain one (tests/benchmarks/randomization.py; three small nets). For fine maps that do depend on
    the class: ``layer=[...], method="gradcam", fuse="product"``.

    All give the maps of a plain call on frozen, checkpointed, compiled and data-parallel models, under no_grad,
    inference_mode, autocast and with weights in half precision, but for occlusion in half precision, which subtracts
    two nearly equal scores. cam and fullgrad read the weights of torch's own layers, which Keras does not use; legrad
    and rollout need attention between all patches, so that Swin, MobileViT, PVT, LeViT and XCiT are refused.

    A method of your own is a function (activations, gradients) -> maps; see ``camwatch.cam.methods.gradients``.

    Example:
        >>> "gradcam" in methods()
        True
    """
    return tuple(sorted(METHODS))


def find_method(method: str | Method | MapFunction) -> Method:
    """Returns the method of a name, or one made of a function (activations, gradients) -> maps.

    Raises:
        InputError: An unknown name; the message offers near names.

    Example:
        >>> find_method("saliency").explains
        'input'
    """
    if isinstance(method, Method):
        return method
    if callable(method):
        return Method(getattr(method, "__name__", type(method).__name__), from_gradients(method))
    if method not in methods():
        raise InputError(unknown("method", method, methods(), limit=99))
    return METHODS[method]


def check_method(method: str | Method | MapFunction) -> None:
    """Raises InputError for an unknown name."""
    find_method(method)


def needs_layer(method: str | Method | MapFunction) -> bool:
    """Tells whether a method explains a layer; the others explain the image itself."""
    return find_method(method).explains == "layer"
