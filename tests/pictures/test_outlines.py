import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from camwatch.pictures.outlines import LINES, legend, outline
from camwatch.regions.annotations import ZONES


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), width=st.integers(1, 3), h=st.integers(1, 12), w=st.integers(1, 12))
def test_outline_is_the_mask_less_its_erosion(seed, width, h, w):
    mask = torch.rand(1, h, w, generator=torch.Generator().manual_seed(seed)) < 0.8
    image = torch.full((1, 3, h, w), 9, dtype=torch.uint8)
    got = outline(image, mask, (1, 2, 3), width)
    inner = binary_erosion(mask[0].numpy(), np.ones((2 * width + 1,) * 2), border_value=0)
    edge = torch.from_numpy(mask[0].numpy() & ~inner)
    assert (got[0, :, edge] == torch.tensor([[1], [2], [3]])).all()
    assert (got[0, :, ~edge] == 9).all()
    assert (image == 9).all()


def test_outline_dashes_leave_gaps():
    mask, image = torch.ones(1, 8, 8, dtype=torch.bool), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    whole = outline(image, mask, (255, 0, 0))[0, 0] > 0
    dashed = outline(image, mask, (255, 0, 0), dash=2)[0, 0] > 0
    assert 0 < dashed.sum() < whole.sum()
    assert not (dashed & ~whole).any()


def test_every_zone_has_a_line_of_its_own():
    assert list(LINES) == list(ZONES) and len({line.color for line in LINES.values()}) == len(ZONES)
    [told] = legend(ZONES)
    assert all(f"{zone} {line.words}" in told for zone, line in LINES.items())
    assert legend([]) == []
