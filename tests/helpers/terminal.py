"""A terminal that a test can look at."""

from __future__ import annotations

import io
import re


class Terminal(io.StringIO):
    """What is written to a terminal; it has no width of its own, so that lines are made for 80 columns."""

    def isatty(self) -> bool:
        """It is one."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """With block letters for bars."""
        return "utf-8"

    def screens(self) -> list[str]:
        """Every line that stood there, in order: a carriage return begins it again."""
        return [line.rstrip() for line in re.split("[\r\n]", self.getvalue()) if line.strip()]
