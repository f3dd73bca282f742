"""The command line: ``camwatch COMMAND …``.

Exit codes: 0, all is well; 1, the work failed, or an audit found more than ``--fail-above`` allows; 2, what was
given cannot be used.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from camwatch import __version__
from camwatch.errors import CamwatchError, CamwatchWarning, InputError, unknown

# A command is a module of this package: BRIEF, ABOUT and EXAMPLES are its help, ``add_options(parser)`` says what can
# be typed, ``run(options)`` does it and returns the exit code. None loads torch before it runs.
COMMANDS = ("audit", "layers", "explain")
EXAMPLES = """\
examples:
  camwatch explain cat.jpg --model resnet50                  where does the model look?
  camwatch layers resnet50                                   which layers can be explained?
  camwatch audit last.ckpt --module my_project.models.Net --data DATA
                                                             on which images is it right for the wrong reason?

camwatch COMMAND --help explains a command, with examples.
exit codes: 0 all is well; 1 the work failed; 2 what was given cannot be used
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; a user's mistake is told in one line, without a traceback."""
    sys.path.insert(0, os.getcwd())  # so that import paths mean what they mean to `python -m`
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what concerns the libraries' developers
            warnings.simplefilter("always", CamwatchWarning)
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            return int(_module(options.command).run(options))
    except InputError as error:
        print(f"camwatch {options.command}: {error}", file=sys.stderr)
        return 2
    except (CamwatchError, OSError) as error:
        print(f"camwatch {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"camwatch {options.command}: interrupted", file=sys.stderr)
        return 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses a command line; near names are offered for a command or an option that does not exist."""
    parser, known = _parser()
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    if wanted is not None and wanted not in known:
        parser.error(unknown("command", wanted, known))
    options, rest = parser.parse_known_args(arguments)
    command = known[options.command]
    odd = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
    if odd is not None:
        names = [name for action in command._actions for name in action.option_strings if name.startswith("--")]
        command.error(unknown("option", odd, names))
    if rest:
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def commands() -> dict[str, argparse.ArgumentParser]:
    """Returns each command's parser by name.

    Example:
        >>> sorted(commands())
        ['audit', 'explain', 'layers']
    """
    return _parser()[1]


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser, and that of each command."""
    lines = argparse.RawDescriptionHelpFormatter
    about = "See where an image model looks."
    parser = argparse.ArgumentParser("camwatch", description=about, epilog=EXAMPLES, formatter_class=lines)
    parser.add_argument("--version", action="version", version=f"camwatch {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        command = subparsers.add_parser(
            name, help=module.BRIEF, description=module.ABOUT, epilog=module.EXAMPLES, formatter_class=lines
        )
        module.add_options(command)
    return parser, dict(subparsers.choices)


def _module(command: str) -> Any:
    return importlib.import_module(f"camwatch.cli.{command}")
