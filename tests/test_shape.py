"""The size of things: a function that is read at once, a file that is one subject."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST, PARAMETERS = 50, 8  # lines of a function without signature and docstring; its parameters
FILES = {"camwatch": 300, "tests": 500, "examples": 150}
# A quarter of it is the docstring of CAMMonitor, where help() shows what is logged.
TALL = {"camwatch/adapters/lightning/callback.py"}
# The public face has all its arguments in one place, where help() shows them.
TALL = {
    "camwatch/adapters/lightning/callback.py"
}  # a quarter is CAMMonitor's docstring, the reference of what is logged
EXEMPT = {"CAMMonitor.__init__", "Watcher.__init__", "audit", "explain", "layers", "Panel.from_files"}


def functions(path: Path) -> list[tuple[str, int, int]]:
    """Returns each function's name, its lines without signature and docstring, and its number of parameters."""
    found = []

    def look(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = inside
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{inside}.{child.name}" if inside else child.name
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = child.body[1:] if ast.get_docstring(child) is not None else child.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                given = child.args
                every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                found.append((name, lines, len([one for one in every if one.arg not in ("self", "cls")])))
            look(child, name)

    look(ast.parse(path.read_text()), "")
    return found


@pytest.mark.parametrize("folder", FILES)
def test_files_are_short(folder: str) -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    tall = {str(path.relative_to(ROOT)): n for path, n in sizes.items() if n > FILES[folder]}
    assert set(tall) <= TALL, tall


def test_functions_are_short_and_take_few_arguments() -> None:
    long, wide = [], []
    for path in sorted((ROOT / "camwatch").rglob("*.py")):
        for name, lines, parameters in functions(path):
            where = f"{path.relative_to(ROOT)}: {name}"
            long += [f"{where} has {lines} lines"] if lines > LONGEST and name not in EXEMPT else []
            wide += [f"{where} takes {parameters}"] if parameters > PARAMETERS and name not in EXEMPT else []
    assert long == [] and wide == []
