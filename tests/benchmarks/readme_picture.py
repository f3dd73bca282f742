"""Draws the README's picture from the archives of two runs of examples/catch_shortcut.py.

python examples/catch_shortcut.py && python examples/catch_shortcut.py --control
python tests/benchmarks/readme_picture.py lightning_logs/version_0 lightning_logs/version_1 examples/catch_shortcut.png
"""

import sys
from pathlib import Path

import torch

from camwatch import Panel, load_archive
from camwatch.pictures.encoding import to_png
from camwatch.watch.film_strip import FilmStrip
from camwatch.watch.publish import sheet_images

ROWS = 3


def strip(folder: str, what: str) -> torch.Tensor:
    run = load_archive(folder)
    panel = Panel.from_state(run.panel)
    film = FilmStrip()
    for snapshot in run.snapshots:
        right = (snapshot.predicted == snapshot.labels)[:ROWS]
        film.add(snapshot.epoch, snapshot.global_step, snapshot.maps[run.layers[0]][:ROWS], right)
    last = run.snapshots[-1].scalars
    title = (
        f"{what}: accuracy {last['correct']:.0%}, digit hidden {last['hide']:.0%} (chance 20%), "
        f"map inside {last['relevance_mass_accuracy']:.0%}: "
        + (f"ALARM in epoch {run.alarms[0].epoch}" if run.alarms else "no alarm")
    )
    return film.render(sheet_images(panel, torch.arange(ROWS)), title)


if __name__ == "__main__":
    cheat = strip(sys.argv[1], "tag coloured by class")
    control = strip(sys.argv[2], "tag coloured at random")
    width = max(cheat.shape[2], control.shape[2])
    parts = [torch.nn.functional.pad(part, (0, width - part.shape[2]), value=255) for part in (cheat, control)]
    Path(sys.argv[3]).write_bytes(to_png(torch.cat(parts, 1)))
