"""Help, mistyped command lines, and the console script."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from camwatch.cli.entry import parse
from tests.cli.conftest import Run


@pytest.mark.parametrize("command", ["audit", "layers", "explain"])
def test_help_teaches_by_examples_that_parse(run: Run, command: str) -> None:
    code, out, _ = run(f"{command} --help")
    assert code == 0
    epilog = out.split("examples:")[1].replace("\\\n", " ")
    examples = [line.strip() for line in epilog.splitlines() if line.strip().startswith("camwatch ")]
    assert len(examples) >= 3
    for example in examples:
        assert parse(shlex.split(example)[1:]).command == command
    assert "exit codes: 0 done; 1 " in out


def test_help_shows_each_command_with_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "exit codes:" in out and "camwatch COMMAND --help" in out
    for example in re.findall(r"^  camwatch (.*?)(?:   .*)?$", out, re.M):
        assert parse(shlex.split(example)).command == example.split()[0]
    assert run("--version")[1].startswith("camwatch ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("audti last.ckpt", "camwatch: error: unknown command 'audti'; did you mean 'audit'? Valid: audit, layers"),
        ("layers resnet18 --sise 64", "camwatch layers: error: unknown option '--sise'; did you mean '--size'"),
        ("explain a.jpg --model resnet18 --colourmap=jet", "unknown option '--colourmap'; did you mean '--colormap'"),
        ("layers resnet18 resnet34", "camwatch layers: error: unrecognized arguments: resnet34"),
        ("layers resnet18 --size 6.5", "argument --size: expected a whole number of 1 or more, got '6.5'"),
        ("layers", "the following arguments are required: MODEL"),
    ],
)
def test_mistyped_command_or_option_exits_with_2_and_offers_near_names(run: Run, line: str, said: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "") and said in err


def test_console_script_runs() -> None:
    run = subprocess.run([sys.executable, "-m", "camwatch.cli", "--help"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and all(name in run.stdout for name in ("audit", "layers", "explain"))
    run = subprocess.run([sys.executable, "-m", "camwatch.cli"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "required: COMMAND" in run.stderr
