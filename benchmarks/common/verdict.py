"""What limits training, in one sentence, from the speeds of its parts; the advice is that of `train --profile`."""

from __future__ import annotations

from alexnet_dist.runs.advice import Setup, find_faster_loader, find_faster_network


def judge(loader: float, network: float, setup: Setup) -> str:
    """The sentence.

    Args:
        loader: images per second of the loader alone.
        network: images per second of the network alone. On a GPU both work at the same time; on a CPU they share the
            cores.
        setup: what the advice depends on.
    """
    if setup.on_gpu:
        what, is_loader = f"loader {loader:,.0f} images/s, network {network:,.0f}", loader < network
    else:
        part = network / (loader + network)  # of the cores' time that goes to the loader
        is_loader = part >= 0.5
        what = f"{part if is_loader else 1 - part:.0%} of the cores' time"
    if is_loader:
        return f"The data loader limits the speed ({what}): next is {find_faster_loader(setup)}."
    return f"The network limits the speed ({what}): next is {find_faster_network(setup)}."
