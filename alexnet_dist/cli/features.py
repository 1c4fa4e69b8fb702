"""`predict --features`: a file with what a layer makes of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.progress import Progress
from alexnet_dist.base.text import align, escape_text, format_bytes
from alexnet_dist.cli.networks import open_network
from alexnet_dist.cli.options import import_shown, show

if TYPE_CHECKING:
    from alexnet_dist.data.sources.loose import Unpacking
    from alexnet_dist.inference.features import FeatureBatch
    from alexnet_dist.inference.features_file import Rows


def check_features(layer: str, out: Path | None, explain: str | None, form: str) -> None:
    """Refuse options that do not go together, before anything slow is done.

    Raises:
        UsageError: no such layer, or no file that could hold its values, or rows are asked for, too.
        MachineError: .parquet, and there is no pyarrow.
    """
    other = "--explain" if explain is not None else "--format" if form != "auto" else ""
    if other:
        what, remedy = f"--features and {other} exclude each other", "run predict once for each"
        raise UsageError(what, where="command line", remedy=remedy)
    if out is None:
        raise UsageError("--features needs --out", where="command line", remedy="give a file: FILE.npz or FILE.parquet")
    import_shown("alexnet_dist.inference.features")
    from alexnet_dist.inference.features import check_layer
    from alexnet_dist.inference.features_file import check_ending

    check_layer(layer)
    check_ending(out)


def save_features(
    model_path: Path,
    paths: Sequence[str],
    layer: str,
    out: Path,
    device: str,
    weights: str,
    unpacking: Unpacking | None = None,
) -> int:
    """Write what a layer makes of image files, and say which of them could not be read; the exit code.

    Args:
        model_path: a run folder, a model folder or a checkpoint.
        paths: image files, archives, parquet files; see `open_pictures`.
        layer: conv1 to conv5, fc6, fc7 or fc8.
        out: the file, see `check_ending`.
        device: auto, cpu or cuda.
        weights: best or last, of a run folder.
        unpacking: of parquet files.

    Raises:
        CheckpointError: no model there, or a damaged one.
        MachineError: the file cannot be written.
    """
    from alexnet_dist.data.sources.loose import open_pictures
    from alexnet_dist.inference.features import read_features
    from alexnet_dist.inference.features_file import write_features

    model, card = open_network(model_path, device, weights)
    images = open_pictures(paths, unpacking)
    left_out: list[tuple[str, str, int]] = []

    def pass_on(batches: Iterator[FeatureBatch], bar: Progress) -> Iterator[Rows]:
        for batch in batches:
            left_out.extend(batch.left_out)
            yield batch.paths, batch.features
            bar.advance(len(batch.paths) + len(batch.left_out))

    with Progress("reading features", sum(len(some.files) for some in images)) as bar:
        count, width = write_features(out, pass_on(read_features(model, card, images, layer), bar), layer)
    if left_out:
        show(align([(escape_text(path), f"error: {escape_text(reason)}") for path, reason, _ in left_out], "<"))
    size = format_bytes(out.stat().st_size)
    show(f"{layer}: {count:,} pictures, {width:,} values each; {escape_text(out)}, {size}")
    return min((code for *_, code in left_out), default=0)
