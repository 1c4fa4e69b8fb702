"""Triton's interpreter, made to round as a GPU does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch


@contextmanager
def rounding_to_nearest() -> Iterator[None]:
    """Within, it rounds float32 to the nearest bf16, and a tie to the even one. By itself it cuts the last 16 bits."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def round_or_convert(values: Any, from_type: Any, to_type: Any, mode: Any) -> Any:
        if (str(from_type), str(to_type)) != ("fp32", "bf16"):
            return convert(values, from_type, to_type, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", round_or_convert)
        yield
