"""The panel: the fixed images that are watched, with labels, regions and what is needed to show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camwatch.descriptions import fingerprint
from camwatch.errors import PanelError
from camwatch.panel.arguments import Statistics, own_images, own_labels, own_regions, shown_bands, statistics
from camwatch.panel.files import read_aligned
from camwatch.panel.normalization import find_normalization
from camwatch.regions.regions import Regions

if TYPE_CHECKING:
    from camwatch.archive.reading import ArchivedRun

STATE = ("images", "labels", "regions", "class_names", "ids", "denormalize", "rgb")


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Panel:
    """The fixed images that are watched.

    Attributes:
        images: (N, C, H, W) floating point, on the CPU, exactly as the model takes them.
        labels: (N,) int64, or None: then only the predicted class can be explained.
        regions: ``Regions`` of the images, or None. Given as anything that ``Regions.coerce`` takes.
        class_names: One name per class, or None.
        ids: One string per image; by default its position.
        denormalize: (mean, std), each one number per band, by which the images were normalized; for the eye
            only. None: images in [0, 1] are shown as they are, others stretched, each to its own range.
        rgb: Which three bands are shown as red, green and blue. Of a single band all three are shown as one.

    Raises:
        PanelError: An argument does not fit the images; the message says what arrived and what is valid.
        RegionError: A region does not fit its image.

    Example:
        >>> import torch
        >>> panel = Panel(torch.rand(2, 3, 8, 8), [0, 1], regions=[[(0, 0, 4, 4)], None])
        >>> panel
        Panel(2 images of 3 x 8 x 8, 1 with a region, 2 classes)
        >>> panel.regions.area()
        tensor([0.2500,    nan])
    """

    images: Tensor
    labels: Tensor | None
    regions: Regions | None
    class_names: tuple[str, ...] | None
    ids: tuple[str, ...]
    denormalize: Statistics | None
    rgb: tuple[int, int, int]

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        regions: Any = None,
        class_names: Sequence[str] | None = None,
        ids: Sequence[Any] | None = None,
        denormalize: tuple[Any, Any] | None = None,
        rgb: Sequence[int] = (0, 1, 2),
    ) -> None:
        images = own_images(images)
        n, bands, size = len(images), int(images.shape[1]), (int(images.shape[2]), int(images.shape[3]))
        names = None if class_names is None else tuple(str(name) for name in class_names)
        if ids is not None and len(ids) != n:
            raise PanelError(f"expected one id per image, {n} in all, got {len(ids)}")
        fields = {
            "images": images,
            "labels": None if labels is None else own_labels(labels, n, names),
            "regions": None if regions is None else own_regions(regions, n, size),
            "class_names": names,
            "ids": tuple(str(i) for i in (range(n) if ids is None else ids)),
            "denormalize": None if denormalize is None else statistics(denormalize, bands),
            "rgb": shown_bands(rgb, bands),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def coerce(cls, given: Any) -> Panel:
        """Makes a panel of a ``Panel`` or of (images, labels[, regions]).

        Raises:
            PanelError: Something else was given.
        """
        if isinstance(given, Panel):
            return given
        if isinstance(given, (tuple, list)) and len(given) in (2, 3):
            return cls(*given)
        what = f"{type(given).__name__} of length {len(given)}" if hasattr(given, "__len__") else repr(given)
        raise PanelError(f"expected a Panel or (images, labels[, regions]), got {what}")

    @classmethod
    def from_files(
        cls,
        paths: Sequence[Any],
        labels: Any = None,
        transform: Callable[..., Any] | None = None,
        regions: Mapping[str, Any] | Callable[[Any], Any] | Sequence[Any] | None = None,
        class_names: Sequence[str] | None = None,
        denormalize: tuple[Any, Any] | None = None,
        rgb: Sequence[int] = (0, 1, 2),
    ) -> Panel:
        """Reads images from files and takes their regions through the same geometry.

        Args:
            paths: Image files, read by Pillow as RGB; an orientation stored in EXIF is not applied, as in
                torchvision's ``ImageFolder``.
            labels: One label per path.
            transform: What the model's images go through. With regions it has to be of
                ``torchvision.transforms.v2``, which moves masks as it moves images, or a preset as
                ``weights.transforms()`` returns it. None: scaled to [0, 1], nothing else.
            regions: On the pixels of the files: one entry per path as in ``Regions.coerce``, a callable from
                path to entry, or a mapping from file name to entry as the readers in
                ``camwatch.regions.readers`` return it; a name that is missing there is an image without
                annotation. A region that a crop removed is none either, with a warning.
            class_names: One name per class.
            denormalize: By default found in ``transform``.
            rgb: Which three bands are shown.

        Raises:
            PanelError: The images differ in size, no file name is found in ``regions``, or the transform
                cannot move regions.
            RegionError: A region does not fit its file.
        """
        images, aligned = read_aligned(paths, transform, regions, labels)
        return cls(
            images,
            labels,
            aligned,
            class_names=class_names,
            ids=[str(path) for path in paths],
            denormalize=find_normalization(transform) if denormalize is None else denormalize,
            rgb=rgb,
        )

    @classmethod
    def from_archive(cls, run: ArchivedRun | str | Path, regions: Any = None) -> Panel:
        """Makes the panel of a run that is over, with its own regions or with ones drawn later.

        Args:
            run: As ``load_archive`` returns it, or the archive's folder.
            regions: One entry per image, a mapping from image id to entry, or the path of an annotation file, on the
                pixels of the images as the model takes them; None: those of the run.

        Raises:
            PanelError: The archive has no images, because they were not to be stored, or no image has a region.
            RegionError: A region does not fit its image.
        """
        from camwatch.archive.tensors import load_archive
        from camwatch.panel.archived import regions_of

        run = load_archive(run) if isinstance(run, (str, Path)) else run
        if run.panel.get("images") is None:
            raise PanelError(f"the archive {run.path} has no images: they were not stored (store_images=False)")
        own = cls.from_state({key: run.panel.get(key) for key in STATE})
        if regions is None:
            return own
        return cls.from_state({**own.state_dict(), "regions": regions_of(run, regions).state_dict()})

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = " x ".join(str(v) for v in self.images.shape[1:])
        parts = [f"{len(self)} images of {shape}"]
        if self.regions is not None:
            parts.append(f"{int(self.regions.annotated.sum())} with a region")
        if self.labels is not None:
            parts.append(f"{len(set(self.labels.tolist()))} classes")
        return f"Panel({', '.join(parts)})"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    def rgb_images(self) -> Tensor:
        """Returns (N, 3, H, W) in [0, 1], for the eye."""
        from camwatch.pictures.colours import true_colours

        known = self.denormalize
        if known is None and not self.stretched:
            known = ((0.0,), (1.0,))
        return true_colours(self.images, denormalize=known, rgb=self.rgb)

    @property
    def stretched(self) -> bool:
        """Whether each image is shown stretched to its own range: no normalization is known, and none was skipped."""
        return self.denormalize is None and not (float(self.images.min()) >= 0 and float(self.images.max()) <= 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain types and tensors, from which ``from_state`` makes the same panel."""
        return {
            "images": self.images,
            "labels": self.labels,
            "regions": None if self.regions is None else self.regions.state_dict(),
            "class_names": self.class_names,
            "ids": self.ids,
            "denormalize": self.denormalize,
            "rgb": self.rgb,
        }

    def describe(self) -> dict[str, str | None]:
        """Returns checksums by which another panel is recognized: of images, labels and regions.

        Example:
            >>> import torch
            >>> one, other = Panel(torch.zeros(1, 1, 4, 4), [0]), Panel(torch.zeros(1, 1, 4, 4), [1])
            >>> [key for key, value in one.describe().items() if value != other.describe()[key]]
            ['labels']
        """
        return {
            "images": fingerprint(self.images),
            "labels": None if self.labels is None else fingerprint(self.labels),
            "regions": None if self.regions is None else fingerprint(self.regions.state_dict()),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Panel:
        """Makes the panel that ``state_dict`` described."""
        regions = state["regions"]
        return cls(**{**state, "regions": None if regions is None else Regions.from_state(regions)})
