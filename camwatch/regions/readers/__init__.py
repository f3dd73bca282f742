"""Regions from annotation files, one module per format, each with one function ``read``.

Every ``read`` returns a ``FileRegions``: a mapping from image file name to region, which
``Panel.from_files(paths, labels, transform, regions=...)`` takes as it is. A new format is one module whose
``read`` yields the ``Shape`` objects of a file, and a line in the table of ``formats``, whose ``read_regions`` finds
out what a path holds. All but ``boxes`` (which knows no classes) take the same three arguments:

- ``class_ids``: annotation class (its id or its name) -> class index of the model, as in ``{91: 0}`` or
  ``{"cat": 0}``. Annotations of other classes are left out. None: all are used, with their own ids.
- ``zones``: annotation class -> ``"allowed"``, ``"forbidden"`` or ``"ignore"``, as in
  ``{"watermark": "forbidden"}``. The others are allowed.
- ``per_class``: keep on each image only annotations of its own label. An image without any has no region.
"""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "FileRegions": "base",
        "Shape": "base",
    },
)
