"""What several of these tests need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.data.captions.copies import NET, add_photos, names


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small net, in a file."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(timm.create_model(NET).state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twenty photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    add_photos(folder, names(20))
    return [folder / name for name in names(20)]
