"""Annotation files: each format against its own tools, or against the same scene in the others."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from camwatch.errors import CamwatchWarning, RegionError, UnsupportedError
from camwatch.panel import Panel
from camwatch.regions import Regions
from camwatch.regions.readers import coco, labelme, masks, voc, yolo
from camwatch.regions.readers.base import FileRegions
from camwatch.regions.shapes import polygon_mask

HEIGHT, WIDTH = 30, 40
# Two images: a cat (class 3) and a dog (class 7) on the first, a dog on the second, as x1, y1, x2, y2.
SCENE = {"a": [(3, "cat", (4, 6, 14, 16)), (7, "dog", (20, 10, 36, 28))], "b": [(7, "dog", (1, 2, 9, 12))]}


def corners(box: tuple[int, ...]) -> list[int]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def image_files(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in (*SCENE, "c"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in (*SCENE, "c")]


def write_coco(folder: Path, **changes: Any) -> Path:
    annotations = [
        {"image_id": i, "category_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        | {"segmentation": [corners((x1, y1, x2, y2))], **changes}
        for i, objects in enumerate(SCENE.values())
        for k, _, (x1, y1, x2, y2) in objects
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH}
            for i, name in enumerate((*SCENE, "c"))
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [{**annotation, "id": i + 1} for i, annotation in enumerate(annotations)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def read_coco(folder: Path, **options: Any) -> FileRegions:
    return coco.read(write_coco(folder), **options)


def read_coco_boxes(folder: Path, **options: Any) -> FileRegions:
    return coco.read(write_coco(folder), boxes=True, **options)


def read_voc(folder: Path, **options: Any) -> FileRegions:
    for name, objects in SCENE.items():
        inner = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for _, kind, (x1, y1, x2, y2) in objects
        )
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.png</filename>{inner}</annotation>")
    return voc.read(folder, **options)


def read_yolo_boxes(folder: Path, **options: Any) -> FileRegions:
    for name, objects in SCENE.items():
        lines = [
            f"{k} {(x1 + x2) / 2 / WIDTH:.6f} {(y1 + y2) / 2 / HEIGHT:.6f} "
            f"{(x2 - x1) / WIDTH:.6f} {(y2 - y1) / HEIGHT:.6f}"
            for k, _, (x1, y1, x2, y2) in objects
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n\n")
    return yolo.read(folder, folder / "images", **options)


def read_yolo_polygons(folder: Path, **options: Any) -> FileRegions:
    for name, objects in SCENE.items():
        lines = [
            f"{k} " + " ".join(f"{v / (HEIGHT if i % 2 else WIDTH):.6f}" for i, v in enumerate(corners(box)))
            for k, _, box in objects
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return yolo.read(folder, image_files(folder / "images"), **options)


def write_labelme(folder: Path, shape_type: str) -> Path:
    for name, objects in SCENE.items():
        shapes = []
        for _, kind, (x1, y1, x2, y2) in objects:
            points = [[x1, y1], [x2, y2]]
            shape = {"label": kind, "points": points, "shape_type": shape_type}
            if shape_type == "polygon":
                shape["points"] = np.reshape(corners((x1, y1, x2, y2)), (4, 2)).tolist()
            if shape_type == "mask":
                file = io.BytesIO()
                Image.fromarray(np.ones((y2 - y1, x2 - x1), bool)).save(file, "png")
                shape |= {"mask": base64.b64encode(file.getvalue()).decode(), "points": [[x1, y1], [x2 - 1, y2 - 1]]}
            shapes.append(shape)
        content = {"shapes": shapes, "imagePath": f"..\\images\\{name}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def labelme_reader(shape_type: str) -> Callable[..., FileRegions]:
    return lambda folder, **options: labelme.read(write_labelme(folder, shape_type), **options)


def read_masks(folder: Path, **options: Any) -> FileRegions:
    for name, objects in SCENE.items():
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        for k, _, (x1, y1, x2, y2) in objects:
            values[y1:y2, x1:x2] = k
        image = Image.fromarray(values)
        image.putpalette([0] * 768)
        image.save(folder / f"{name}_mask.png")
    return masks.read(folder, suffix="_mask", pattern="*_mask.png", **options)


def boxes_of(regions: FileRegions, tmp_path: Path, **arguments: Any) -> list[list[int]]:
    panel = Panel.from_files(image_files(tmp_path / "images"), regions=regions, **arguments)
    assert panel.regions is not None
    return panel.regions.boxes().tolist()  # type: ignore[no-any-return]


BY_ID = [read_coco, read_coco_boxes, read_yolo_boxes, read_yolo_polygons, read_masks]
BY_NAME = [read_voc, *[labelme_reader(kind) for kind in ("polygon", "rectangle", "mask")]]
READERS = [(read, {3: 0, 7: 1}) for read in BY_ID] + [(read, {"cat": 0, "dog": 1}) for read in (*BY_NAME, read_coco)]
NONE = [0, 0, 0, 0]


@pytest.mark.parametrize(("read", "ids"), READERS)
def test_every_format_reads_the_same_scene(read: Any, ids: dict[Any, int], tmp_path: Path) -> None:
    image_files(tmp_path / "images")
    cat, dog = ids
    both = Regions.coerce([[box for _, _, box in objects] for objects in SCENE.values()], 2, (HEIGHT, WIDTH))
    panel = Panel.from_files(image_files(tmp_path / "images"), regions=read(tmp_path, class_ids=ids))
    assert torch.equal(panel.regions[:2].allowed, both.allowed)
    assert panel.regions.annotated.tolist() == [True, True, False]

    only_cats = read(tmp_path, class_ids={cat: 0})
    assert boxes_of(only_cats, tmp_path) == [[4, 6, 14, 16], NONE, NONE]

    own = read(tmp_path, class_ids=ids, per_class=True)
    assert boxes_of(own, tmp_path, labels=[1, 1, 0]) == [[20, 10, 36, 28], [1, 2, 9, 12], NONE]
    assert boxes_of(own, tmp_path, labels=[0, 1, 0]) == [[4, 6, 14, 16], [1, 2, 9, 12], NONE]

    zoned = Panel.from_files(
        image_files(tmp_path / "images"), regions=read(tmp_path, class_ids={cat: 0}, zones={dog: "forbidden"})
    ).regions
    x1, y1, x2, y2 = SCENE["a"][1][2]
    assert zoned.forbidden[0, y1:y2, x1:x2].all() and zoned.forbidden[0].sum() == (x2 - x1) * (y2 - y1)
    assert zoned.boxes()[0].tolist() == [4, 6, 14, 16]
    with pytest.raises(RegionError, match="unknown zone 'forbiden'; did you mean 'forbidden'"):
        read(tmp_path, zones={dog: "forbiden"})


@pytest.mark.parametrize("read", BY_NAME[:2])
def test_per_class_needs_ids_where_classes_have_names(read: Any, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match=r"per_class needs class_ids, such as \{'cat': 0\}"):
        read(tmp_path, per_class=True)["a.png"]


def test_file_regions_move_with_the_images(tmp_path: Path) -> None:
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    assert boxes_of(read_voc(tmp_path), tmp_path, transform=flip)[1] == [31, 2, 39, 12]


def test_coco_masks_equal_pycocotools(tmp_path: Path) -> None:
    from pycocotools import mask as tools
    from pycocotools.coco import COCO

    blob = np.asfortranarray(np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.7).astype(np.uint8)
    compressed = tools.encode(blob)
    triangles = [[3.2, 4.1, 20.7, 8.3, 9.9, 25.0], [30, 5, 38, 6, 33.5, 20]]
    counts = [int(n) for n in np.diff(np.flatnonzero(np.diff(np.r_[2, blob.ravel("F"), 2])))]
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": counts if blob[0, 0] == 0 else [0, *counts]}
    for segmentation in (
        triangles,
        uncompressed,
        {"size": compressed["size"], "counts": compressed["counts"].decode()},
    ):
        path = write_coco(tmp_path, segmentation=segmentation)
        truth = COCO(str(path))
        region = coco.read(path)["b.png"]["allowed"].any(0)
        assert torch.equal(region, torch.from_numpy(truth.annToMask(truth.anns[3])).bool())


def test_coco_crowds_are_ignored_and_objects_without_mask_count_by_box(tmp_path: Path) -> None:
    assert list(coco.read(write_coco(tmp_path, iscrowd=1))["b.png"]) == ["ignore"]
    for nothing in ([], None, [[1, 2, 3, 4]]):  # the last one is a line
        assert boxes_of(coco.read(write_coco(tmp_path, segmentation=nothing)), tmp_path)[1] == [1, 2, 9, 12]


def test_coco_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text('{"info": {}}')
    with pytest.raises(RegionError, match=r"expected COCO's keys annotations, images, got \['info'\]"):
        coco.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RegionError, match=r"x.json: expected COCO's JSON, which this is not"):
        coco.read(tmp_path / "x.json")
    broken = coco.read(write_coco(tmp_path, segmentation={"size": [HEIGHT, WIDTH], "counts": "abc"}))
    with pytest.raises(RegionError, match=r"b.png, annotation 3: pycocotools cannot read its segmentation"):
        broken["b.png"]
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'camwatch\[coco\]'.*boxes=True"):
        read_coco(tmp_path)
    assert read_coco_boxes(tmp_path)["b.png"]["allowed"].tolist() == [[1, 2, 9, 12]]


def test_voc_origin_says_how_numbers_are_read(tmp_path: Path) -> None:
    assert read_voc(tmp_path, origin=0)["b.png"]["allowed"].tolist() == [[2, 3, 9, 12]]
    assert voc.read(tmp_path / "b.xml")["b.png"]["allowed"].tolist() == [[1, 2, 9, 12]]


def read_yolo(folder: Path) -> FileRegions:
    return yolo.read(folder, image_files(folder / "images")[:1])


@pytest.mark.parametrize(
    ("name", "text", "read", "message"),
    [
        ("a.xml", "<annotation>", voc.read, "expected VOC's XML, which this is not .no element found"),
        ("a.json", '{"shapes"', labelme.read, "a.json: expected LabelMe's JSON, which this is not"),
        ("a.xml", "<html/>", voc.read, "root element annotation, got html"),
        ("a.xml", "<annotation><object/></annotation>", voc.read, "expected xmin, ymin"),
        ("a.txt", "x", voc.read, "a folder with .xml files"),
        ("a.txt", "3 0.5 0.5 0.1", read_yolo, "line 1: expected class cx cy"),
        ("a.txt", "cat 0.5 0.5 0.1 0.1", read_yolo, "got 'cat 0.5"),
        ("b.txt", "", read_yolo, "has the name of one of the 1 images"),
        ("a.txt", "x", labelme.read, "a folder with .json files"),
        ("a.json", "[]", labelme.read, "LabelMe's keys imageHeight, imageWidth, shapes, got list"),
        ("a.txt", "x", masks.read, r"found no file \*.png"),
    ],
)
def test_broken_files_are_named(name: str, text: str, read: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RegionError, match=message):
        dict(read(tmp_path))


def test_labelme_circles_have_their_area_and_points_are_left_out(tmp_path: Path) -> None:
    shapes = [
        {"label": "eye", "points": [[20, 15], [29.5, 15]], "shape_type": "circle"},
        {"label": "nose", "points": [[5, 5]], "shape_type": "point"},
    ]
    content = {"shapes": shapes, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.warns(CamwatchWarning, match="left out shapes without an area, point"):
        region = labelme.read(tmp_path)["a.png"]["allowed"]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert region[0].tolist() == ((x - 20) ** 2 + (y - 15) ** 2 < 9.5**2).tolist()


def test_labelme_reads_oriented_rectangles_and_leaves_out_what_is_unfinished(tmp_path: Path) -> None:
    shapes = [
        {"label": "a", "points": [[4, 4], [9, 4], [9, 8], [4, 8]], "shape_type": "oriented_rectangle"},
        {"label": "b", "points": [], "shape_type": "polygon"},
        {"label": "c", "points": [[1, 1], [20, 20]], "shape_type": "mask", "mask": None},
    ]
    content = {"shapes": shapes, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.warns(CamwatchWarning, match="without an area, mask, polygon"):
        region = labelme.read(tmp_path)["a.png"]["allowed"]
    assert region.shape == (1, HEIGHT, WIDTH) and region[0, 4:8, 4:9].all() and region.sum() == 20


def test_yolo_labels_may_hold_a_confidence_and_lie_beside_the_images(tmp_path: Path) -> None:
    image_files(tmp_path)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2 0.93\n")
    regions = yolo.read(tmp_path, tmp_path)
    assert list(regions) == ["a.png"]
    assert Regions.coerce([regions["a.png"]], 1, (HEIGHT, WIDTH)).boxes().tolist() == [[16, 12, 24, 18]]


def test_masks_with_several_values_ask_for_their_meaning(tmp_path: Path) -> None:
    trimap = np.full((HEIGHT, WIDTH), 2, np.uint8)
    trimap[4:20, 4:20], trimap[6:18, 6:18] = 3, 1
    Image.fromarray(trimap).save(tmp_path / "a.png")
    with pytest.raises(RegionError, match=r"holds the values 1, 2, 3, .*class_ids=\{value: class\}"):
        masks.read(tmp_path)["a"]
    pet = Regions.coerce([masks.read(tmp_path, class_ids={1: 0}, zones={3: "ignore"})["a"]], 1, (HEIGHT, WIDTH))
    assert pet.allowed.sum() == 144 and pet.ignore.sum() == 256 - 144
    Image.fromarray((trimap == 1).astype(np.uint8) * 255).save(tmp_path / "a.png")
    assert masks.read(tmp_path / "a.png")["a"]["allowed"].sum() == 144
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    with pytest.raises(RegionError, match=r"one band, got an image of shape \(30, 40, 3\)"):
        masks.read(tmp_path)["a"]


@settings(deadline=None, max_examples=30)
@example(4, 0.0, 6.0, 0.0, 0.0)
@given(st.integers(3, 8), st.floats(0, 6), st.floats(6, 13), st.floats(0, 1), st.floats(0, 1))
def test_polygons_keep_their_area(corners: int, turn: float, radius: float, dx: float, dy: float) -> None:
    angles = turn + np.linspace(0, 2 * np.pi, corners + 1)[:-1]
    points = np.stack([20 + dx + radius * np.cos(angles), 15 + dy + radius * np.sin(angles)], axis=1)
    x, y = points.T
    shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    perimeter = np.linalg.norm(points - np.roll(points, 1, 0), axis=1).sum()
    # An edge at 45 degrees through the centres of its pixels counts each of them whole: perimeter / sqrt(8) too much.
    assert abs(polygon_mask(points, (HEIGHT, WIDTH)).sum().item() - shoelace) < 0.36 * perimeter
