from __future__ import annotations

import pytest
from helpers.one_run import train_undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two processes end with that no engine started."""
    return train_undisturbed(tmp_path_factory.mktemp("undisturbed") / "run")
