"""`export`: a trained network as one file for other programs, compared with PyTorch before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.errors import CheckpointError, DataError, UsageError
from alexnet_dist.base.progress import phase
from alexnet_dist.base.text import escape_text
from alexnet_dist.cli.options import add_options, import_shown, show
from alexnet_dist.runs.targets import check_target
from alexnet_dist.settings.reader import new_parser, parse_options

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped option should not wait for it
    from torch import Tensor

    from alexnet_dist.inference.export import Difference
    from alexnet_dist.inference.model_folder import ModelCard

EXAMPLES = """Write a trained network as one file for other programs.

examples:
  python launch/export.py --model runs/digits --out digits.onnx --check
  python launch/export.py --model runs/digits/model --format torch_export --out digits.pt2 --check --images 3.png 7.png
  python launch/export.py --model runs/cat_dog --format torchvision --out cat_dog.safetensors

onnx and torch_export take the bytes of pictures that are resized and cropped, (batch, channels, side, side) uint8, and
give logits and probabilities; names of the classes and what to do before stand in the file. torchvision is the state
dict of torchvision.models.alexnet. --check runs the file on pictures and writes it only if it agrees with PyTorch."""

FORMATS = ("onnx", "torch_export", "torchvision")
NUM_CHECKED = 16  # pictures of a validation set
TOLERANCE = 1e-4  # of probabilities, and of logits in units of the largest where that is above 1


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("export", EXAMPLES, "--model FOLDER --out FILE [options]")
    add_options(parser, "model", "weights")
    parser.add_argument("--format", default="onnx", choices=list(FORMATS), help="of the file")
    parser.add_argument("--out", type=str, help="file to write")
    add_options(parser, "overwrite")
    parser.add_argument("--check", action="store_true", help="compare the file with PyTorch on pictures")
    parser.add_argument(
        "--images", type=str, nargs="*", default=[], help="to check with (default: of the run's validation set)"
    )
    add_options(parser, "quiet", "debug")
    options = parse_options(argv, parser)
    if options.model is None or options.out is None:
        raise UsageError("--model and --out are needed", remedy="see --help")
    if options.images and not options.check:
        raise UsageError("--images has no effect", why="nothing is checked", remedy="add --check")
    out = check_target(options.out, options.overwrite)
    export_model(Path(options.model), options.format, out, options.check, options.images, options.weights)
    return 0


def export_model(
    path: Path, kind: str, out: Path, check: bool = False, images: Sequence[str] = (), weights: str = "best"
) -> None:
    """Write a trained network as one file, and say so.

    Args:
        path: run folder, model folder or checkpoint.
        kind: one of FORMATS.
        out: file to write.
        check: compare with PyTorch first.
        images: files to compare on; without any, pictures of the run's validation set.

    Raises:
        CheckpointError: no model there, a damaged one, one that the format cannot hold, or a file that disagrees.
        DivergedError: weights, or outputs on the pictures to compare on, are not finite.
        UsageError: nothing to compare on.
        DataError: a picture that cannot be used.
        MachineError: a package is missing, or the file cannot be written.
    """
    import_shown("alexnet_dist.inference.export")
    from alexnet_dist.base.durable import write_file
    from alexnet_dist.inference import export
    from alexnet_dist.inference.model_folder import find_model_folder, read_fitting_card, read_model_weights
    from alexnet_dist.inference.weights import check_finite, load_weights
    from alexnet_dist.models import AlexNet

    folder = find_model_folder(path, weights)
    card = read_fitting_card(folder)
    network = AlexNet(card.spec).eval()
    tensors = read_model_weights(folder)
    check_finite(tensors, str(folder), remedy="export weights of an earlier step")
    load_weights(network, tensors, str(folder))
    pixels = find_pixels(folder, card, images) if check else None
    with phase(f"writing {kind}"):
        data = export.FORMATS[kind].pack(network, card)
    if pixels is not None:
        with phase(f"checking {kind} on {len(pixels)} pictures"):
            difference = export.compare(export.FORMATS[kind], data, network, card, pixels)
        report_difference(difference, len(pixels), kind)
    write_file(out, data, setting="out")
    size = f"{len(data) / 1e6:.1f} MB"
    shape = f"{card.spec.in_channels} x {card.spec.image_size} x {card.spec.image_size}"
    show(f"wrote {escape_text(out)}: {kind}, {size}, pictures of {shape}, {card.spec.num_classes} outputs")


def report_difference(difference: Difference, num_pictures: int, kind: str) -> None:
    """Print how far the file is from PyTorch.

    Raises:
        CheckpointError: further than it may be.
    """
    logit, largest, probability = difference
    text = (
        f"largest difference from PyTorch on {num_pictures} pictures: {logit:.1e} of a logit (the largest is "
        f"{largest:.3g}), {probability:.1e} of a probability"
    )
    if not (logit <= TOLERANCE * max(1.0, largest) and probability <= TOLERANCE):  # nor with NaN
        raise CheckpointError(
            "the exported network is another", where=kind, why=text, remedy="nothing was written; please report it"
        )
    show(text)


def find_pixels(folder: Path, card: ModelCard, images: Sequence[str]) -> Tensor:
    """The pictures to check on, (B, C, S, S) uint8.

    Raises:
        UsageError: none are named, and the run's validation set is not there.
        DataError: a file that cannot be used.
    """
    pixels = _read_images(card, images) if images else _read_validation_set(folder, card)  # (B, S, S, C)
    return pixels.permute(0, 3, 1, 2).contiguous()


def _read_images(card: ModelCard, images: Sequence[str]) -> Tensor:
    import torch

    from alexnet_dist.data.decode import UnreadableImageError
    from alexnet_dist.data.preprocess import crop_pictures

    made = []
    for image in images:
        try:
            made.append(crop_pictures([image], card.evaluation, card.spec.in_channels, card.max_pixels))
        except UnreadableImageError as error:
            raise DataError(
                "cannot read a picture", where=image, why=str(error), remedy="leave it out of --images"
            ) from None
    return torch.cat(made)  # (B, S, S, C)


def _read_validation_set(folder: Path, card: ModelCard) -> Tensor:
    import numpy as np
    import torch

    from alexnet_dist.base.run_record import find_run
    from alexnet_dist.data.engines.torchvision import PixelBatches
    from alexnet_dist.data.plan import Plan
    from alexnet_dist.runs.evaluation import find_split, settle_settings

    try:
        index = find_split(settle_settings(folder, card, {}), card, "val", progress=False, run=find_run(folder))
    except (DataError, UsageError, CheckpointError) as error:
        why = str(error).partition(";")[0]
        raise UsageError("no pictures to check on", why=why, remedy="name some: --images PATH...") from None
    plan = Plan(index.sizes, card.evaluation, global_batch_size=1, seed=0, shuffle=False)
    batches = PixelBatches(plan, index, card.spec.in_channels, card.max_pixels, shard_id=0, num_shards=1)
    chosen = np.unique(np.linspace(0, len(index) - 1, NUM_CHECKED).astype(int))  # spread over the classes
    made = [batches[step] for step in chosen.tolist()]
    readable = [batch.pixels for batch in made if batch.mask.all()]  # (1, S, S, C) each
    if not readable:
        raise DataError("no pictures to check on", why="none can be read", remedy="name some: --images PATH...")
    return torch.cat(readable)
