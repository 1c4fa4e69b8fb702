from __future__ import annotations

import pytest

from alexnet_dist.assembly.loaders import settle_batch_sizes
from alexnet_dist.base.errors import UsageError


@pytest.mark.parametrize(
    ("global_size", "micro_size", "words"),
    [
        (13, None, "13 cannot be shared by 2 pairs of processes; use 12 or 14, or another number of pairs"),
        (12, 4, "train.micro_batch_size 4 does not divide 6: global batch 12 over 2 pairs of processes; use 3 or 2"),
    ],
)
def test_sizes_that_do_not_divide_name_what_shares_them(global_size: int, micro_size: int | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle_batch_sizes(global_size, micro_size, 2, num_train=100, holders="pairs of processes")
    assert words in str(caught.value)
