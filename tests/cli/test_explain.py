"""``camwatch explain``: what it prints, what it writes, its exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run


def test_explain_that_cannot_write_exits_with_1(run: Run, photos: Path) -> None:
    line = "explain DATA/val/cats/0.jpg --model tests.cli.nets.plain --weights none --size 32"
    code, out, err = run(f"{line} --output DATA/val/cats/0.jpg/a.png")
    assert (code, out) == (1, "") and re.search("Not a directory|File exists", err)


def test_explain_writes_the_overlay_and_prints_the_classes(run: Run, photos: Path, checkpoint: Path) -> None:
    code, out, _ = run(
        "explain DATA/val/cats/0.jpg --model tests.cli.nets.Net --weights last.ckpt --size 48 --output out/a.png"
    )
    assert code == 0 and out.startswith("out/a.png: gradcam at features, maps of 12 x 12\n")
    assert Image.open("out/a.png").size == (48, 48)
    assert sorted(float(share) for share in re.findall(r"([\d.]+)%", out))[1] >= 50
    code, out, _ = run("explain DATA/val/cats/0.jpg --model resnet18 --weights none --target 3 --layer layer3")
    assert code == 0 and "at layer3, maps of 14 x 14" in out
    assert Image.open("explanation.png").size == (224, 224)


def test_explain_warns_of_a_map_that_shows_nothing(run: Run, photos: Path) -> None:
    code, _, err = run("explain DATA/val/cats/0.jpg --model tests.cli.nets.blind --weights none --size 32")
    assert code == 0 and err.startswith("warning: 1 of 1 maps of gradcam at") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("explain lost.jpg", "image 'lost.jpg' cannot be read: .*No such file"),
        ("explain last.ckpt", "image 'last.ckpt' cannot be read"),
        ("explain DATA/val/cats/0.jpg --output a.jpg", "must end in .png"),
        ("explain DATA/val/cats/0.jpg --target label", "--target takes predicted or a class's number"),
        ("explain DATA/val/cats/0.jpg --target 9", "target 9 is out of range"),
        ("explain DATA/val/cats/0.jpg --colormap jett", "did you mean 'jet'"),
    ],
)
def test_explain_of_bad_input_says_why_and_exits_with_2(
    run: Run, photos: Path, checkpoint: Path, line: str, said: str
) -> None:
    code, _, err = run(f"{line} --model tests.cli.nets.Net --weights last.ckpt --size 32")
    assert code == 2 and re.search(said, err), err
