"""What a small model says of itself."""

from __future__ import annotations

from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference.model_folder import ModelCard
from alexnet_dist.models import make_spec

CARD = ModelCard(
    variant="paper",
    spec=make_spec("paper", num_classes=3, image_size=64, fc_width=8),
    classes=("cat", "größe", "red fox"),
    evaluation=Augmentation(crop_size=64, resize=(70, 72)),
    normalization=Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
    source={"step": 12, "val_top1": 0.5},
)
