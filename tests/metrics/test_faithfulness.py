"""Insertion, deletion, drop, increase, ROAD and the randomization check, against peers and a trained net."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from camwatch.cam.engine import explain
from camwatch.errors import InputError, LayerError
from camwatch.metrics import (
    average_drop,
    average_increase,
    centre_prior,
    deletion_auc,
    insertion_auc,
    perturbation_curve,
    randomization_check,
    road,
    uniform_map,
)
from camwatch.metrics.imputation import filled, impute_linearly
from camwatch.metrics.sanity import RandomizationCheck

SIZE = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained():
    """A plain GAP network, and 64 digits at random places of a canvas that it was not trained on."""
    generator = torch.Generator().manual_seed(0)
    digits = load_digits()
    keep = digits.target < 5
    pictures = torch.from_numpy(digits.images[keep]).float() / 16
    labels = torch.from_numpy(digits.target[keep]).long()
    canvas = 0.1 * torch.rand(len(labels), 1, SIZE, SIZE, generator=generator)
    for i, (y, x) in enumerate(torch.randint(0, SIZE - 7, (len(labels), 2), generator=generator).tolist()):
        canvas[i, 0, y : y + 8, x : x + 8] += pictures[i]
    order = torch.randperm(len(labels), generator=generator)
    canvas, labels = canvas[order], labels[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip
        batches = torch.arange(len(labels) - 64).split(32)
        optimizer = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=8 * len(batches))
        for rows in batches * 8:
            loss = nn.functional.cross_entropy(net(canvas[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    images, targets = canvas[-64:], labels[-64:]
    with torch.no_grad():
        assert (net(images).argmax(1) == targets).float().mean() > 0.95
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = explain(net, images, target=targets, layer="8", method="gradcam").maps
    return net, images, targets, maps


def probabilities(net):
    return lambda images: net(images).softmax(1)


@pytest.fixture(scope="module")
def small():
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 16), nn.Tanh(), nn.Linear(16, 3))
    for parameter in net.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    images = torch.rand(4, 2, 5, 5, generator=generator)
    return net.eval(), images, torch.rand(4, 5, 5, generator=generator), torch.tensor([0, 2, 1, 1])


class Extractor:
    """What torch-cam's metrics ask of an extractor; its maps are given."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx=None, scores=None, normalized=True, **kwargs):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_insertion_and_deletion_equal_torch_cam(small, fill):
    peer = pytest.importorskip("torchcam.metrics")
    net, images, maps, targets = small
    baseline = None if fill == "zero" else lambda given: given.mean((2, 3), keepdim=True)
    expected = peer.DeletionInsertionMetric(
        Extractor(net, maps), lambda out: out.softmax(1), steps=25, baseline=baseline
    )
    expected.update(images, targets.tolist())
    for name, function in (("deletion_auc", deletion_auc), ("insertion_auc", insertion_auc)):
        found = function(probabilities(net), images, maps, targets, steps=25, fill=fill, batch_size=7)
        assert found.mean().item() == pytest.approx(expected.summary()[name], abs=1e-6)


def test_drop_and_increase_equal_torch_cam(small):
    peer = pytest.importorskip("torchcam.metrics")
    net, images, maps, targets = small
    maps = maps / maps.amax((1, 2), keepdim=True)
    expected = peer.ClassificationMetric(Extractor(net, maps), lambda out: out.softmax(1))
    expected.update(images, targets.tolist())
    found = [f(probabilities(net), images, 9 * maps, targets).mean().item() for f in (average_drop, average_increase)]
    summary = expected.summary()
    assert found == pytest.approx([summary["avg_drop"], summary["conf_increase"]], abs=1e-5)
    assert found[0] > 0


def test_road_equals_pytorch_grad_cam(small, monkeypatch):
    peer = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets_of = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    net, images, maps, targets = small
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # its noise cannot be set from outside
    expected = peer.ROADCombined(percentiles=[20, 40, 60, 80])(
        images,
        maps.numpy(),
        [targets_of.ClassifierOutputTarget(int(target)) for target in targets],
        nn.Sequential(net, nn.Softmax(1)),
    )
    found = road(probabilities(net), images, maps, targets, shares=(0.2, 0.4, 0.6, 0.8), noise=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(expected).max() > 1e-3


def test_imputation_equals_pytorch_grad_cam_on_any_mask(monkeypatch):
    peer = pytest.importorskip("pytorch_grad_cam.metrics.road")
    generator = torch.Generator().manual_seed(0)
    for share in (0.05, 0.5, 0.95):
        image = torch.rand(3, 9, 11, generator=generator)
        missing = torch.rand(9, 11, generator=generator) < share
        expected = peer.NoisyLinearImputer(noise=0)(image, (~missing).float())
        torch.testing.assert_close(impute_linearly(image, missing, 0, generator), expected, atol=1e-5, rtol=1e-4)


def test_imputation_restores_a_constant_image_and_keeps_the_known_pixels():
    generator = torch.Generator().manual_seed(0)
    missing = torch.zeros(6, 6, dtype=torch.bool)
    missing[1:5, 1:5] = True
    flat = torch.full((2, 6, 6), 0.7)
    torch.testing.assert_close(impute_linearly(flat, missing, 0, generator), flat)
    image = torch.rand(2, 6, 6)
    noisy = impute_linearly(image, missing, 0.01, generator)
    assert noisy[:, ~missing].equal(image[:, ~missing]) and not noisy[:, missing].equal(image[:, missing])
    assert impute_linearly(image, torch.zeros_like(missing), 0.01, generator).equal(image)


def test_perturbation_curve_equals_the_hand_computation():
    image = torch.tensor([[[[0.8, 0.4], [0.2, 0.0]]]])
    maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])

    def predict(images):
        total = images.mean((1, 2, 3))
        return torch.stack([total, 1 - total], 1)

    def curve(mode):
        return perturbation_curve(predict, image, maps, torch.tensor([0]), mode=mode, steps=4, fill="zero")

    torch.testing.assert_close(curve("deletion"), torch.tensor([[0.35, 0.15, 0.05, 0.0, 0.0]]))
    torch.testing.assert_close(curve("insertion"), torch.tensor([[0.0, 0.2, 0.3, 0.35, 0.35]]))


def test_faithfulness_does_not_depend_on_batches_scale_or_the_random_state(small):
    net, images, maps, targets = small
    state = torch.get_rng_state()
    for function in (insertion_auc, deletion_auc, average_drop, average_increase, road):
        whole = function(probabilities(net), images, maps, targets)
        torch.rand(3)
        again = function(probabilities(net), images, 1e-20 * maps, targets, batch_size=3)
        torch.testing.assert_close(whole, again, atol=1e-5, rtol=1e-4)
    torch.set_rng_state(state)
    road(probabilities(net), images, maps, targets)
    assert torch.get_rng_state().equal(state)


def test_faithfulness_takes_no_images_and_half_precision(small):
    net, images, maps, targets = small
    predict = probabilities(net)
    for function in (insertion_auc, deletion_auc, average_drop, average_increase, road):
        assert function(predict, images[:0], maps[:0], targets[:0]).shape == (0,)
        whole = function(predict, images, maps, targets)
        half = function(lambda given: predict(given.float()), images.bfloat16(), maps.half(), targets.int())
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, whole, atol=0.02, rtol=0)


def test_faithfulness_of_an_unsound_map_is_undefined(small):
    net, images, maps, targets = small
    maps = maps.clone()
    maps[1], maps[2, 0, 0] = 0, torch.nan
    for function in (insertion_auc, deletion_auc, average_drop, average_increase, road):
        value = function(probabilities(net), images, maps, targets)
        assert value.isnan().tolist() == [False, True, True, False]


def test_fills_are_what_their_names_say():
    images = torch.rand(2, 3, 30, 40)
    assert filled(images, "zero").eq(0).all()
    torch.testing.assert_close(filled(images, "mean")[1, 2, 3, 4], images[1, 2].mean())
    torchvision = pytest.importorskip("torchvision.transforms.v2.functional")
    padded = nn.functional.pad(images, (6,) * 4, mode="replicate")
    expected = torchvision.gaussian_blur(padded, [13, 13], [2.0, 2.0])[:, :, 6:-6, 6:-6]
    torch.testing.assert_close(filled(images, "blur"), expected, atol=1e-5, rtol=1e-4)
    assert filled(images, lambda given: given + 1).equal(images + 1)


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
def test_insertion_and_deletion_by_the_map_beat_random_order_and_centre_prior(trained, fill):
    """Paired over the images of one net, whose seed is 0.

    Over the seeds 0 to 4 the mean favours the map in all of the 90 comparisons. Four have a paired t below 3:
    insertion with the mean fill against the centre prior (2.5 and 1.5), and deletion with zeros against the
    random and the uniform order (2.8 and 2.2).
    """
    net, images, targets, maps = trained
    rivals = {
        "random": torch.rand(64, SIZE, SIZE, generator=torch.Generator().manual_seed(3)),
        "uniform": uniform_map(64, maps.shape[1:]),
        "centre": centre_prior(64, maps.shape[1:]),
    }

    def curve(function, given):
        return function(probabilities(net), images, given, targets, steps=16, fill=fill)

    for function, sign in ((insertion_auc, 1), (deletion_auc, -1)):
        ours = curve(function, maps)
        for name, rival in rivals.items():
            gain = sign * (ours - curve(function, rival))
            gain = gain[gain.isfinite()]
            assert len(gain) > 50
            assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5, (function.__name__, name)


def test_road_prefers_the_map_to_its_baselines(trained):
    net, images, targets, maps = trained
    rows = slice(0, 16)

    def mean(given):
        found = road(probabilities(net), images[rows], given[rows], targets[rows], shares=(0.1, 0.3, 0.5))
        return found.nanmean().item()

    assert mean(maps) > 0.1
    assert mean(maps) > mean(centre_prior(64, maps.shape[1:])) + 0.1
    assert abs(mean(uniform_map(64, maps.shape[1:]))) < 0.1


def test_average_drop_of_a_uniform_map_is_zero(trained):
    net, images, targets, maps = trained
    flat = uniform_map(64, maps.shape[1:])
    assert average_drop(probabilities(net), images, flat, targets).abs().max() < 1e-5
    assert average_increase(probabilities(net), images, flat, targets).max() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"predict": lambda images: images.flatten(1) * 9 - 3}, "return probabilities, got values from -"),
        ({"predict": lambda images: images}, r"return \(4, classes\), got \(4, 2, 5, 5\)"),
        ({"maps": torch.ones(3, 5, 5)}, r"as many maps \(N, h, w\), got \(4, 2, 5, 5\) and \(3, 5, 5\)"),
        ({"steps": 0}, "at least 1 step, got 0"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"targets": torch.tensor([0, 1])}, r"targets of shape \(4,\), one class index per image, got torch.int64"),
        ({"targets": torch.rand(4)}, r"targets of shape \(4,\).*got torch.float32"),
        ({"targets": torch.tensor([0, 1, 3, 2])}, "targets from 0 to 2, got . to 3"),
        ({"mode": "deleton"}, "unknown mode 'deleton'; did you mean 'deletion'"),
        ({"fill": "blurr"}, "unknown fill 'blurr'; did you mean 'blur'"),
        ({"fill": lambda images: images[:, :1]}, r"the fill returned \(4, 1, 5, 5\) for images of \(4, 2, 5, 5\)"),
    ],
)
def test_faithfulness_names_what_does_not_fit(small, change, message):
    net, images, maps, targets = small
    given = {"predict": probabilities(net), "images": images, "maps": maps, "targets": targets, "batch_size": 4}
    with pytest.raises(InputError, match=message):
        perturbation_curve(**{**given, **change})


def test_road_refuses_shares_that_leave_no_pixel(small):
    net, images, maps, targets = small
    with pytest.raises(InputError, match=r"shares in \(0, 1\), got \(0.5, 1.0\)"):
        road(probabilities(net), images, maps, targets, shares=(0.5, 1.0))


def fingerprint(net):
    modes = [module.training for module in net.modules()]
    return [tensor.clone() for tensor in (*net.parameters(), *net.buffers())], modes, torch.get_rng_state()


def same(before, after):
    return (
        all(a.equal(b) for a, b in zip(before[0], after[0], strict=True))
        and before[1] == after[1]
        and before[2].equal(after[2])
    )


def test_randomization_check_sees_grad_cam_depend_on_the_weights(trained):
    net, images, targets, _ = trained
    before = fingerprint(net)
    check = randomization_check(net, images[:16], target=targets[:16], layer="8")
    assert same(before, fingerprint(net))
    assert check.stages == ("11", "6", "3", "0")
    assert check.cascading.shape == check.independent.shape == (4, 16)
    assert check.cascading[0].equal(check.independent[0])
    assert check.cascading[-1].nanmean() < 0.5 and check.independent[1].nanmean() < 0.9
    assert (check.layer, check.method) == ("8", "gradcam")


def test_randomization_check_exposes_a_method_that_shows_the_image(trained):
    net, images, _, _ = trained

    def edges(activations, gradients):
        return images[: len(activations), 0]

    check = randomization_check(net, images[:8], layer="8", method=edges, stages=["11", "3"])
    assert check.stages == ("11", "3")
    torch.testing.assert_close(check.cascading, torch.ones(2, 8))
    torch.testing.assert_close(check.independent, torch.ones(2, 8))


def test_randomization_check_restores_everything_after_an_exception(trained):
    net, images, _, _ = trained
    net.train()
    calls = []

    def failing(activations, gradients):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("in the middle")
        return activations.mean(1).clamp(min=0)

    before = fingerprint(net)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            randomization_check(net, images[:4], layer="8", method=failing)
        assert same(before, fingerprint(net))
    finally:
        net.eval()


def test_randomization_check_randomizes_parameters_of_modules_without_a_reset(trained):
    _, images, _, _ = trained

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.5 * torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, given):
            return nn.functional.conv2d(given, self.weight)

    net = nn.Sequential(Scaled(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    seen = []

    def watching(activations, gradients):
        seen.append(net[0].weight.detach().clone())
        return activations.mean(1)

    randomization_check(net, images[:2], layer="1", method=watching, stages=["0"])
    trained_weight, random_weight = seen[0], seen[1]
    assert not trained_weight.equal(random_weight)
    assert 0.5 < random_weight.std() / trained_weight.std() < 2
    assert net[0].weight.equal(trained_weight)


def test_randomization_check_draws_a_figure_of_both_modes(trained):
    net, images, targets, _ = trained
    check = randomization_check(net, images[:4], target=targets[:4], layer="8")
    axes = check.figure().axes[0]
    assert [line.get_label() for line in axes.lines[:2]] == ["cascading", "independent"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), check.cascading.nanmean(1))
    np.testing.assert_allclose(axes.lines[1].get_ydata(), check.independent.nanmean(1))
    assert [label.get_text() for label in axes.get_xticklabels()] == list(check.stages)
    values = torch.tensor([[0.5, 0.7], [torch.nan, torch.nan], [0.1, torch.nan]])
    blank = RandomizationCheck(("c", "b", "a"), values, torch.ones(3, 2), "b", "gradcam").figure()
    (crosses,) = [line for line in blank.axes[0].lines if line.get_label() == "cascading: no contrast"]
    assert crosses.get_xdata().tolist() == [1]
    blank.canvas.draw()
    box = blank.axes[0].yaxis.label.get_window_extent()
    assert box.y0 >= 0 and box.y1 <= blank.bbox.height, "the whole label is on the figure"


def test_randomization_check_prints_a_line_per_stage():
    values = torch.tensor([[0.5, 0.75], [0.25, torch.nan]])
    check = RandomizationCheck(("head", "stem"), values, values.flip(1), "stem", "gradcam")
    head, titles, *rows = str(check).splitlines()
    assert head.startswith("gradcam at stem, 2 images") and titles.split()[:3] == [
        "randomized", "cascading", "independent",
    ]  # fmt: skip
    assert [row.split()[:3] for row in rows] == [["head", "0.62", "0.62"], ["stem", "0.25", "0.25"]]
    assert rows[1].endswith("1 maps without contrast") and "contrast" not in rows[0]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"stages": ["2"]}, InputError, "the stage '2', a ReLU, has no parameter"),
        ({"stages": ["heat"]}, LayerError, "unknown layer of Sequential 'heat'"),
        ({"stages": []}, InputError, "to randomize"),
        ({"target": torch.zeros(4, 2, dtype=torch.long)}, InputError, "one map per image"),
    ],
)
def test_randomization_check_names_what_does_not_fit(trained, change, error, message):
    net, images, _, _ = trained
    with pytest.raises(error, match=message):
        randomization_check(net, images[:4], **{"layer": "8", **change})
