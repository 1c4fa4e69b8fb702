from __future__ import annotations

from pathlib import Path

import pytest
from helpers.class_folders import write_class_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders, see `write_class_folders`."""
    folder = tmp_path / "train"
    write_class_folders(folder)
    return folder
