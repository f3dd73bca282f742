"""Error rates of the alarms: trains many small runs whose reliance on a cue is known, and judges them.

python tests/benchmarks/drift run                 # tier S; goes on where it stopped
python tests/benchmarks/drift run --tier P
python tests/benchmarks/drift run --tier added
python tests/benchmarks/drift report              # tables and figures from the runs that there are
"""

from __future__ import annotations

import argparse
import multiprocessing
from functools import partial
from pathlib import Path

from plan import TIERS
from tqdm import tqdm
from training import ensure, name_cue, train


def run_all(tier: str, folder: Path, workers: int, only: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    runs = [run for run in TIERS[tier]() if only in (None, "reported" if run.seed % 2 else "tuning")]
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        for step, ending, what in ((train, ".pt", "training"), (name_cue, ".place", "naming cues")):
            with tqdm(total=len(runs), desc=what) as bar:
                for key in pool.imap_unordered(partial(ensure, step, ending, folder), runs):
                    bar.set_postfix_str(key)
                    bar.update()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--tier", choices=list(TIERS), default="S")
    parser.add_argument("--folder", type=Path, default=Path("build/alarms"), help="where runs are kept")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--half", choices=["tuning", "reported"], help="only the even or the odd seeds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run_all(arguments.tier, arguments.folder, arguments.workers, arguments.half)
    else:
        from report import report

        report(arguments.folder, arguments.out, arguments.half)


if __name__ == "__main__":
    main()
