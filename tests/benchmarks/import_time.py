"""What ``import camwatch`` takes over ``import torch``: CPU time in fresh interpreters, medians.

python tests/benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENTS = (
    "import camwatch",
    "from camwatch import Panel, Regions, explain, layers",
    "from camwatch import Watcher",
    "from camwatch import CAMMonitor",
)


def seconds(statement: str, before: str) -> float:
    """CPU time of one statement in an interpreter that has run another."""
    program = f"import time\n{before}\nt = time.process_time()\n{statement}\nprint(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = range(parser.parse_args().rounds)
    print(f"{statistics.median(seconds('import torch', '') for _ in rounds):8.4f} s  import torch")
    for statement in STATEMENTS:
        before = "import torch, pytorch_lightning" if "CAMMonitor" in statement else "import torch"
        spent = statistics.median(seconds(statement, before) for _ in rounds)
        print(f"{spent:8.4f} s  {statement}, after {before}")


if __name__ == "__main__":
    main()
