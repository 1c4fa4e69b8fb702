"""The first weights of a run, in every process alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alexnet_dist.base.errors import AlexNetDistError
from alexnet_dist.inference.pretrained import load_pretrained, read_pretrained
from alexnet_dist.models import AlexNet
from alexnet_dist.parallel.runtime import Runtime

logger = logging.getLogger("alexnet_dist")


def load_starting_weights(
    runtime: Runtime, model: AlexNet, name: str, cache_dir: Path, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Load what `model.pretrained` names into the whole network; what run.json says of it.

    Args:
        runtime: this process among the others.
        model: the network, with fresh weights.
        name: see `read_pretrained`.
        cache_dir: see `read_pretrained`.
        classes: of the data.

    Raises:
        CheckpointError: missing or damaged weights, or weights that do not fit; all processes raise it.
        MachineError: weights that cannot be fetched; likewise.
    """
    facts, error = {}, None
    try:
        pretrained = runtime.main_first(lambda: read_pretrained(name, cache_dir))  # one process downloads
        notes = load_pretrained(model, pretrained, classes)
        facts = {"weights": name, "sha256": pretrained.sha256, "changes": notes}
    except AlexNetDistError as caught:
        error = caught
    runtime.raise_together(error)
    for line in (f"begins with the weights of {name}", *facts["changes"]):
        logger.info("weights   %s", line)
    return facts
