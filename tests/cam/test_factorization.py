"""Deep feature factorization: as good as scikit-learn's, exact where there is an exact answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from camwatch.cam import LayerCapture, factorize
from camwatch.cam.factorization import nonnegative_factors
from camwatch.errors import InputError
from tests.support.cam_nets import Staged, ViT

IMAGES = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_factors_are_as_good_as_scikit_learns(rank: int) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    values = torch.rand(60, 12, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    peer = decomposition.NMF(rank, init="nndsvd", max_iter=2000, tol=1e-8)
    theirs = torch.from_numpy(peer.fit_transform(values.numpy()) @ peer.components_)
    places, vectors = nonnegative_factors(values, rank)
    assert bool((places >= 0).all()) and bool((vectors >= 0).all())
    assert (values - places @ vectors).norm() <= 1.01 * (values - theirs).norm()


def test_factors_find_parts_that_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(1)
    places, vectors = torch.zeros(30, 3, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.float64)
    for k in range(3):
        places[10 * k : 10 * k + 10, k] = torch.rand(10, generator=generator, dtype=torch.float64) + 0.1
        vectors[k, 3 * k : 3 * k + 3] = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    found, concepts = nonnegative_factors(places @ vectors, 3)
    torch.testing.assert_close(found @ concepts, places @ vectors, rtol=1e-6, atol=1e-9)
    assert sorted((found > 1e-6).int().argmax(1).unique().tolist()) == [0, 1, 2]
    assert bool(((found > 1e-6).sum(1) == 1).all())


class Painted(nn.Module):
    """The three colours are its channels; each class reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.head.weight.copy_(torch.eye(3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).relu().mean((2, 3)))


def test_factorize_finds_painted_regions_and_what_they_speak_for() -> None:
    images = torch.zeros(2, 3, 6, 6)
    images[0, 0, :3], images[0, 1, 3:], images[1, 2] = 2.0, 1.0, 3.0
    found = factorize(Painted(), images, concepts=3, layer="body")
    assert found.residue < 1e-9 and found.layer == "body"
    assert found.scores.argmax(1).tolist() == [2, 0, 1]  # the largest concept first: 36 x 3, 18 x 2, 18 x 1
    for k, colour in enumerate([2, 0, 1]):
        torch.testing.assert_close(found.maps[:, k], (images[:, colour] > 0).float())
    torch.testing.assert_close(found.scores, torch.tensor([[0, 0, 3.0], [2.0, 0, 0], [0, 1.0, 0]]))


@pytest.mark.parametrize("model", [Staged(), ViT()], ids=["cnn", "vit"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_factorize_rebuilds_the_activations(model: nn.Module, batch_size: int | None) -> None:
    model.eval()
    found = factorize(model, IMAGES, concepts=8, batch_size=batch_size)
    with LayerCapture(model, found.layer) as capture:
        model(IMAGES)
    floor = capture.activations.amin((0, 2, 3)).clamp(max=0).view(1, -1, 1, 1)
    rebuilt = torch.einsum("nkhw,kc->nchw", found.maps, found.concepts) + floor
    share = (rebuilt - capture.activations).square().sum() / (capture.activations - floor).square().sum()
    assert float(share) == pytest.approx(found.residue, rel=1e-2, abs=1e-6)
    assert found.residue < 0.1 and found.maps.shape[1] == 8
    again = factorize(model, IMAGES, concepts=8, batch_size=batch_size)
    assert torch.equal(found.maps, again.maps)


def test_factorize_refuses_more_concepts_than_channels() -> None:
    with pytest.raises(InputError, match="concepts must be 1 to 8 for"):
        factorize(Staged(), IMAGES, concepts=9)
