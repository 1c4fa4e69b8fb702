"""What tests do with errors that a user meets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from alexnet_dist.base.errors import AlexNetDistError, DataError


def refused(action: Callable[[], object], kind: type[AlexNetDistError] = DataError) -> str:
    """The one line with which something is refused."""
    with pytest.raises(kind) as error:
        action()
    line = str(error.value)
    assert "\n" not in line
    assert ";" in line  # a remedy
    return line
