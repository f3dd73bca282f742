"""Do the quick tests pass with the lowest versions that pyproject.toml names, and with the newest?

python tests/benchmarks/versions.py            # both, each in a new environment below build/
python tests/benchmarks/versions.py --only lowest
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]


def lowest() -> list[str]:
    """Returns a pin for each dependency at run time, at its lower bound."""
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = [re.fullmatch(r"([\w.-]+)>=([\w.]+)", one) for one in described]
    return [f"{pin[1]}=={pin[2]}" for pin in pins if pin]


def quick_tests(name: str, pins: list[str]) -> int:
    """Makes an environment, installs camwatch with its tests into it, and runs these."""
    folder = ROOT / "build" / f"versions-{name}"
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    (folder / "pins.txt").write_text("\n".join(pins))
    install = [python, "-m", "pip", "install", "-q", "-c", str(folder / "pins.txt"), "-e", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    names = {re.split("[=>]", one)[0] for one in lowest()}
    print(name, *[line for line in listed.splitlines() if line.split("==")[0] in names], flush=True)
    return subprocess.run([python, "-m", "pytest", "-m", "not slow"], cwd=ROOT, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["lowest", "newest"])
    only = parser.parse_args().only
    codes = [quick_tests(name, pins) for name, pins in (("lowest", lowest()), ("newest", [])) if only in (None, name)]
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
