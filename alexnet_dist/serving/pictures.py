"""What the network makes of one picture that somebody sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.decode import NoImageError, TooLargeImageError, UnreadableImageError, read_header
from alexnet_dist.data.engines.finish import show_images
from alexnet_dist.data.files.scan import FileSet, FoundFile
from alexnet_dist.figures.filters import arrange_filters
from alexnet_dist.figures.overlay import blend_evidence
from alexnet_dist.inference.explain import explain_classes, find_filter_answers
from alexnet_dist.inference.model_folder import ModelCard
from alexnet_dist.inference.predict import PictureBatch, Prediction, load_pictures, predict_batch
from alexnet_dist.models import AlexNet, named_layers
from alexnet_dist.serving.refusal import BROKEN, NO_PICTURE, TOO_LARGE, UNREADABLE, RefusedError

TOPK = 5
FILTERS = 8  # of conv1, that are shown

Picture = npt.NDArray[np.uint8]
_STATUS = {NoImageError: NO_PICTURE, TooLargeImageError: TOO_LARGE}


class FilterView(NamedTuple):
    """A filter of conv1 beside what it answers to."""

    number: int
    strength: float  # the largest value of its map
    weights: Picture  # (H, W, C)
    places: Picture  # (S, S, 3) the picture, in color where the filter answers


class Examination(NamedTuple):
    """What is shown of a picture."""

    prediction: Prediction
    picture: Picture  # (S, S, C) as the network sees it
    evidence: Picture  # (S, S, 3) the same, in color where the evidence for its class lies
    filters: list[FilterView]


@dataclass(frozen=True, eq=False)
class Examiner:
    """Works for one request at a time.

    Args:
        network: in evaluation mode.
        card: its classes and preprocessing.
    """

    network: AlexNet
    card: ModelCard

    def classify(self, path: Path) -> Prediction:
        """The likeliest classes of a picture.

        Raises:
            RefusedError: it cannot be used.
        """
        return self._predict(self._load(path))

    def examine(self, path: Path) -> Examination:
        """The classes of a picture, and what speaks for the likeliest.

        Raises:
            RefusedError: it cannot be used.
        """
        batch = self._load(path)
        prediction = self._predict(batch)
        picture = show_images(batch.images, self.card.normalization)[0]
        evidence = explain_classes(self.network, batch.images).cpu().numpy()  # (1, S, S)
        return Examination(
            prediction, picture, blend_evidence(picture[None], evidence)[0], self._show_filters(batch, picture)
        )

    def _load(self, path: Path) -> PictureBatch:
        try:
            read_header(path, self.card.max_pixels)
        except UnreadableImageError as error:
            raise RefusedError(_STATUS.get(type(error), UNREADABLE), str(error)) from error
        file = FoundFile(str(path), 0, 0)  # not `open_pictures`, which would take some names for archives
        (batch,) = load_pictures(self.network, self.card, [FileSet(Path(), [file])])
        if batch.reasons[0]:
            raise RefusedError(UNREADABLE, batch.reasons[0])
        return batch

    def _predict(self, batch: PictureBatch) -> Prediction:
        (prediction,) = predict_batch(self.network, self.card, batch, TOPK)
        if prediction.error is not None:
            raise RefusedError(BROKEN, prediction.error)
        return prediction

    def _show_filters(self, batch: PictureBatch, picture: Picture) -> list[FilterView]:
        found = find_filter_answers(self.network, batch.images[0], FILTERS)
        weights = (
            named_layers(self.network)["conv1"].get_parameter("weight").detach()[found.filters].float().cpu().numpy()
        )
        shown = np.rint(255 * np.stack([arrange_filters(one[None], 1) for one in weights])).astype(np.uint8)
        places = blend_evidence(np.repeat(picture[None], len(shown), 0), found.places.cpu().numpy())
        return list(map(FilterView, found.filters.tolist(), found.strengths.tolist(), shown, places))
