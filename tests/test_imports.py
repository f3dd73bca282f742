"""Rooms import only from rooms of a lower rank; importing camwatch is cheap; exports are sorted and real."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import camwatch

PACKAGE = Path(camwatch.__file__).parent
# The architecture in one table: a room may import from its own modules and from the tiers above its own.
TIERS = [
    {"errors"},
    {"records", "imaging", "isolation"},
    {"cam", "regions"},
    {"metrics", "panel"},
    {"probe", "drift"},
    {"watch"},
    {"auditing"},
    {"adapters"},
    {"cli"},
    {"__main__"},
]
ANNEXES = {"sampling": "panel"}  # drawing a panel from a data set belongs to the panel's room
RANKS = {room: rank for rank, tier in enumerate(TIERS) for room in tier}
HEAVY = ["lightning", "pytorch_lightning", "torchvision", "torchmetrics", "scipy", "matplotlib", "tensorboard", "PIL"]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ANNEXES.get(name, name)


def imports(path: Path) -> list[tuple[str, int]]:
    """The rooms that a module imports anywhere in it, also inside functions, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names if name.startswith("camwatch.") and name != "camwatch.__version__"]
        found += [(ANNEXES.get(one[1], one[1]), node.lineno) for one in parts]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_lower_rooms(path: Path) -> None:
    own = room(path)
    assert own in RANKS, f"{own} has no rank"
    for other, line in imports(path):
        allowed = other == own or RANKS.get(other, 0) < RANKS[own]
        where = f"{path.relative_to(PACKAGE)}:{line}"
        assert other in RANKS, f"{where} imports camwatch.{other}, which is no room"
        assert allowed, f"{where}: {own} (rank {RANKS[own]}) imports {other} (rank {RANKS[other]})"


@pytest.mark.parametrize("code", ["import camwatch", "from camwatch import Panel, Regions, explain"])
def test_import_loads_only_torch_and_numpy(code: str) -> None:
    check = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_exports_are_sorted_and_exist() -> None:
    assert camwatch.__all__ == sorted(camwatch.__all__)
    for name in camwatch.__all__:
        assert getattr(camwatch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        camwatch.nothing  # noqa: B018


def packages() -> list[str]:
    inits = [path.parent for path in PACKAGE.rglob("__init__.py")]
    return sorted(".".join(path.relative_to(PACKAGE.parent).parts) for path in inits)


@pytest.mark.parametrize("name", packages())
def test_package_exports_are_sorted_and_shadow_no_module(name: str) -> None:
    package = importlib.import_module(name)
    exported = list(getattr(package, "__all__", []))
    assert exported == sorted(exported)
    for one in exported:
        getattr(package, one)
    modules = {path.stem for path in Path(str(package.__file__)).parent.iterdir() if path.suffix in ("", ".py")}
    lazy = set(getattr(package, "_EXPORTS", ()))
    assert not lazy & modules, "after its import a module hides the lazy name"
