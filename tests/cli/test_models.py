"""Models and weights by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from camwatch.cli.models import load_model, load_object
from camwatch.errors import CamwatchError, InputError
from tests.cli.conftest import Run


def test_weights_that_cannot_be_downloaded_exit_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)
    with pytest.raises(CamwatchError, match=r"cannot be downloaded.*no network.*'none' for random weights"):
        load_model("resnet18")
    assert run("layers resnet18 --weights default")[0] == 1


def test_timm_models_go_by_their_prefix() -> None:
    pytest.importorskip("timm")
    assert type(load_model("timm/resnet18", "none")[0]).__module__.startswith("timm.")
    with pytest.raises(InputError, match="unknown timm model 'resnet1'"):
        load_model("timm/resnet1", "none")


def test_import_error_inside_the_users_module_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_project.py").write_text("import there_is_no_such_thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_thing"):
        load_object("broken_project.Net", "model")
    with pytest.raises(InputError, match="expected an import path"):
        load_object(".Net", "model")
