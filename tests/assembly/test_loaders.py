from __future__ import annotations

import pytest

from alexnet_dist.assembly.loaders import settle_batch_sizes, share_batch
from alexnet_dist.base.errors import UsageError


@pytest.mark.parametrize(
    ("global_size", "micro_size", "words"),
    [
        (
            13,
            None,
            "13 cannot be shared by 2 pairs of processes; use 12 or 14, or another number of pairs of processes: 1, 13",
        ),
        (12, 4, "train.micro_batch_size 4 does not divide 6: global batch 12 over 2 pairs of processes; use 3 or 2"),
    ],
)
def test_sizes_that_do_not_divide_name_what_shares_them(global_size: int, micro_size: int | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle_batch_sizes(global_size, micro_size, 2, num_train=100, holders="pairs of processes")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("micro_size", "replicas", "most", "expected"),
    [
        (None, 4, None, "128 = 32 x 4 replicas x 1 accumulation"),
        (None, 3, None, "128 = up to 43 x 3 replicas x 1 accumulation"),
        (None, 1, 32, "128 = 32 x 1 replicas x 4 accumulation"),  # no more at once than on four
        (None, 3, 32, "128 = up to 22 x 3 replicas x 2 accumulation"),
        (16, 2, 32, "128 = 16 x 2 replicas x 4 accumulation"),
        (16, 16, None, "128 = 8 x 16 replicas x 1 accumulation"),
        (None, 200, None, "128 = up to 1 x 200 replicas x 1 accumulation"),
    ],
)
def test_any_number_of_processes_shares_a_batch_where_machines_come_and_go(
    micro_size: int | None, replicas: int, most: int | None, expected: str
) -> None:
    sizes = share_batch(128, micro_size, replicas, most)
    assert str(sizes) == expected
    assert sizes.is_even == ("up to" not in expected)
    assert sizes.micro * sizes.accumulation * sizes.replicas >= 128
