"""The architecture, enforced: who may import whom, what a package's face is, and what an import loads."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import camwatch

PACKAGE = Path(camwatch.__file__).parent
# A room imports only from rooms above it in this list, and from its own files.
ORDER = [
    "errors",
    "records",
    "files",
    "descriptions",
    "isolation",
    "progress",
    "parallel",
    "statistics",
    "archive",
    "regions",
    "pictures",
    "panel",
    "cam",
    "run",
    "metrics",
    "probes",
    "measures",
    "detectors",
    "watch",
    "auditing",
    "adapters",
    "cli",
]
# The same inside a room: floors that stand on those above them in the list, then the room's own files.
FLOORS = {"cam": ["cam/model", "cam/methods", "cam"], "regions": ["regions", "regions/readers"]}
FRAMEWORKS = {"lightning", "pytorch_lightning", "lightning_fabric", "transformers", "accelerate"}
HEAVY = ["lightning", "pytorch_lightning", "torchvision", "torchmetrics", "scipy", "matplotlib", "tensorboard", "PIL"]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("_lazy.py", "__main__.py"))
FACES = [path for path in FILES if path.name == "__init__.py"]
MODULES = [path for path in FILES if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in FILES}


def folder(name: str) -> str:
    """The folder below the package that a module's file lies in; a file beside the folders is a room of its own."""
    return "/".join(NAMES[name].relative_to(PACKAGE).parts[:-1]) or room(name)


def room(name: str) -> str:
    return name.split(".")[1]


@functools.cache
def face(name: str) -> dict[str, str]:
    """A package's public names and the modules that define them, read off its lazy table."""
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attach":
            return {public: f"{name}.{module}" for public, module in ast.literal_eval(node.args[1]).items()}
    return {}


def loaded(module: str, public: str | None = None) -> Iterator[str]:
    """The modules that ``from module import public`` stands for, through faces; all of a package's without a name."""
    if public is not None and f"{module}.{public}" in NAMES:
        yield from loaded(f"{module}.{public}")
    elif module in NAMES and NAMES[module].name == "__init__.py":
        table = face(module)
        yield from table.values() if public is None else [table[public]] if public in table else []
    elif module in NAMES:
        yield module


@functools.cache
def imports(name: str) -> dict[str, int]:
    """The modules that a module imports anywhere in it, with a line: under conditions, in functions, by name too."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                found |= dict.fromkeys(loaded(str(node.module), alias.name), node.lineno)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found |= dict.fromkeys(loaded(alias.name), node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("camwatch."):
            start = node.value  # import_module("camwatch.x.y"), or f"camwatch.x.{name}", which may be any below
            below = [other for other in NAMES if start.endswith(".") and other.startswith(start)]
            found |= dict.fromkeys([*below, *loaded(start)], node.lineno)
    return found


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room(name) for name in NAMES if "." in name} == set(ORDER)


@pytest.mark.parametrize("name", [name_of(path) for path in MODULES])
def test_module_imports_only_rooms_above_it(name: str) -> None:
    own = room(name)
    for other, line in imports(name).items():
        assert ORDER.index(room(other)) <= ORDER.index(own), f"{name}:{line}: {own} imports {other}, a room below it"
        floors = FLOORS.get(own, [])
        if room(other) == own and {folder(name), folder(other)} <= set(floors):
            assert floors.index(folder(other)) <= floors.index(folder(name)), f"{name}:{line} imports {other}"


def test_no_circle_of_files() -> None:
    TopologicalSorter({name: set(imports(name)) - {name} for name in map(name_of, MODULES)}).prepare()


def test_no_circle_of_folders() -> None:
    graph: dict[str, set[str]] = {}
    for name in map(name_of, MODULES):
        graph.setdefault(folder(name), set()).update(folder(other) for other in imports(name))
    TopologicalSorter({one: others - {one} for one, others in graph.items()}).prepare()


@pytest.mark.parametrize("path", FACES, ids=name_of)
def test_face_is_a_lazy_table_and_nothing_else(path: Path) -> None:
    docstring, *rest = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    written = [
        ast.unparse(node).replace("(__all__, __getattr__, __dir__)", "__all__, __getattr__, __dir__") for node in rest
    ]
    allowed = (
        "from camwatch._lazy import attach",
        "__version__ = ",
        "__all__, __getattr__, __dir__ = attach(__name__, {",
    )
    assert all(line.startswith(allowed) for line in written), written


@pytest.mark.parametrize("name", [name_of(path) for path in FACES])
def test_face_exports_real_sorted_names_that_no_module_hides(name: str) -> None:
    package = importlib.import_module(name)
    exported = list(getattr(package, "__all__", []))
    assert exported == sorted(exported) and set(exported) <= set(dir(package))
    for one in exported:
        assert getattr(package, one) is not None
    modules = {path.stem for path in Path(str(package.__file__)).parent.iterdir() if path.suffix in ("", ".py")}
    assert not set(exported) & modules, "after its import a module hides the lazy name"
    if exported:
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            package.nothing  # noqa: B018


@pytest.mark.parametrize("name", [name_of(path) for path in MODULES])
def test_only_adapters_and_the_command_line_know_a_framework(name: str) -> None:
    nodes = list(ast.walk(ast.parse(NAMES[name].read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    frameworks = {one.split(".")[0] for one in found} & FRAMEWORKS
    assert not frameworks or room(name) in ("adapters", "cli")


@pytest.mark.parametrize(
    "dotted",
    ["cam", "metrics", "panel", "regions", "regions.readers", "errors", "records", "adapters.lightning"],
)
def test_public_paths_exist(dotted: str) -> None:
    assert importlib.import_module(f"camwatch.{dotted}")


def loaded_after(code: str, packages: list[str]) -> set[str]:
    """Which packages a fresh interpreter has loaded after running some code."""
    program = f"{code}\nimport sys\nprint(*[name for name in {packages!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name", ["camwatch", "camwatch.records", "camwatch.errors", "camwatch.files", "camwatch.archive.reading"]
)
def test_import_loads_no_torch(name: str) -> None:
    assert loaded_after(f"import {name}", ["torch", "numpy"]) <= {"numpy"}


@pytest.mark.parametrize("code", ["import camwatch", "from camwatch import Panel, Regions, explain"])
def test_import_loads_only_torch_and_numpy(code: str) -> None:
    assert loaded_after(code, HEAVY) == set()
