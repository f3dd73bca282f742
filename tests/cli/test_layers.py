"""``camwatch layers``."""

from __future__ import annotations

import re

from tests.cli.conftest import Run


def test_layers_lists_the_grid_and_marks_the_default(run: Run) -> None:
    code, out, _ = run("layers resnet18 --size 64")
    assert code == 0 and "(resnet18, images of 64 x 64)" in out
    assert re.search(r"^layer4 +2 x 2 +512 +<- default$", out, re.M)
    code, out, _ = run("layers tests.support.nets.SmallNet --model-args '{\"channels\": 1}' --channels 1 --size 16")
    assert code == 0 and re.search(r"^features +4 x 4 +16 +<- default$", out, re.M)
    code, _, err = run("layers resnet")
    assert (code == 2 and "did you mean 'resnet50'" in err) or "did you mean" in err
    assert run("layers tests.support.nets.SmallNet")[0] == 0
    assert "no such file; valid are a file, 'default' and 'none'" in run("layers resnet18 --weights best.pth")[2]
    assert "has no weights of its own" in run("layers tests.support.nets.SmallNet --weights default")[2]
