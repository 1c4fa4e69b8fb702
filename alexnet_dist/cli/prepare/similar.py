"""`prepare similar`: finds pictures of the validation and test sets that nearly are training pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import write_csv
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.text import align, escape_text, join_names
from alexnet_dist.cli.options import (
    add_options,
    check_at_least_one,
    find_folder,
    import_shown,
    refuse_two_places,
    settle_out,
    show,
    take_model,
)
from alexnet_dist.cli.prepare.data_settings import DataSettings
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.settings.reader import build_config, new_parser, parse_arguments
from alexnet_dist.settings.schema import Config

if TYPE_CHECKING:
    from alexnet_dist.assembly.sets import Splits
    from alexnet_dist.inference.model_folder import ModelCard
    from alexnet_dist.runs.similar import Finding

logger = logging.getLogger("alexnet_dist")

EXAMPLES = """Find near-duplicates between training, validation and test images: what is measured on them says too much.

examples:
  python launch/prepare.py similar runs/flowers
  python launch/prepare.py similar runs/flowers data/photos --out similar.csv
  python launch/prepare.py similar runs/flowers --layer fc7 --threshold 0.99

The first word is a trained model, the second a folder of images; without it the images are those of the model's run.
Two pictures are alike where the cosine between their features is at least --threshold. A picture is compared as it is
and mirrored. Copies that were encoded again, resized or mirrored are found; so are frames of one film. The features are
those of --layer, less their mean; maps are averaged to 6 x 6. Those of the validation and test images are kept in
memory, 74 kB a picture of the network of 2012. The exit code is 0 whatever is found."""

SHOWN = 20  # pairs in the table
COLUMNS = ("similarity", "set", "path", "other_set", "other_path", "mirrored", "class", "other_class")


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare similar", EXAMPLES, "MODEL [FOLDER] [options] [--SETTING VALUE ...]")
    parser.add_argument("paths", type=str, nargs="*", help="the model, then a folder of images")
    add_options(parser, "model", "weights")
    parser.add_argument(
        "--layer", type=str, default="conv5", help="whose values are compared: conv1 to conv5, fc6, ..."
    )
    parser.add_argument("--threshold", type=float, default=0.98, help="the least cosine of pictures that are alike")
    parser.add_argument("--most", type=int, default=10_000, help="pairs of two sets in --out, the most alike first")
    parser.add_argument("--out", type=str, help="write the pairs to this CSV file")
    add_options(parser, "overwrite", "device", "quiet", "debug")
    arguments = parse_arguments(argv, parser, DataSettings)
    options = arguments.options
    take_model(options)
    check_at_least_one(options, "most")
    if not 0 < options.threshold <= 1:
        raise UsageError(f"--threshold is {options.threshold:g}", where="command line", remedy="give 0.98, or up to 1")
    if len(options.paths) > 1:
        raise UsageError("more than one folder", where="command line", why=join_names(options.paths), remedy="give one")
    out = settle_out(options)
    compare_sets(options, arguments.given, out)
    return 0


def compare_sets(options: Any, given: dict[str, Any], out: Path | None) -> None:
    """Compare the sets, print the pairs that are alike, and write them to a file.

    Args:
        options: of the command line.
        given: settings of the command line, {dotted name: value}.
        out: the file; None = none.

    Raises:
        CheckpointError: no model there, or a damaged one.
        UsageError: no such layer, or settings that cannot be meant.
        DataError: missing images, or one set alone.
        MachineError: the file cannot be written.
    """
    if given.get("data.workers") != 0:
        start_worker_server()
    import_shown("alexnet_dist.runs.similar")
    from alexnet_dist.assembly.evaluation import load_network
    from alexnet_dist.assembly.sets import find_root
    from alexnet_dist.inference.features import check_layer
    from alexnet_dist.inference.model_folder import find_model_folder, read_fitting_card
    from alexnet_dist.parallel.runtime import start_runtime
    from alexnet_dist.runs.folder import start_logging
    from alexnet_dist.runs.similar import FeatureReader, find_similar

    check_layer(options.layer, "--layer")
    start_logging(None)
    folder = find_model_folder(Path(options.model), options.weights)
    card = read_fitting_card(folder)
    config, splits = _find_images(folder, card, options.paths, given)
    runtime = start_runtime(options.device, "fp32")
    model = load_network(folder, card, runtime, channels_last=True).eval()
    data = replace(config.data, on_bad_file="skip")
    reader = FeatureReader(runtime, model, card, data, options.layer)
    findings = find_similar(reader, splits, options.threshold, options.most)
    for bad in sorted(reader.bad_files, key=lambda bad: bad.path):
        logger.warning("left out: %s: %s", bad.path, bad.reason)
    rows = [row for finding in findings for row in _list_pairs(finding, splits, find_root(data))]
    if out is not None:
        write_csv(out, COLUMNS, rows, "out")
    _report(findings, rows, options.threshold, out)


def _find_images(folder: Path, card: ModelCard, words: Sequence[str], given: dict[str, Any]) -> tuple[Config, Splits]:
    """The sets that are meant, with the settings that find them: those of the model's run, or those of a folder."""
    from alexnet_dist.assembly.sets import build_splits
    from alexnet_dist.base.run_record import find_run
    from alexnet_dist.data.sources.given_folder import recognize_folder
    from alexnet_dist.runs.evaluation import settle_settings
    from alexnet_dist.runs.held_out import restore_splits

    skipping = {"data.on_bad_file": "skip", **given}
    if words:
        refuse_two_places(words[0], given)
        found = recognize_folder(find_folder(words[0], given.get("data.cache_dir"))).settings
        config = build_config({"train.epochs": 1, **found, **skipping})
        return config, build_splits(config.data, config.seed, progress=True)
    config = settle_settings(folder, card, skipping)
    return config, restore_splits(config.data, config.seed, True, find_run(folder), card.data_fingerprint)


def _list_pairs(finding: Finding, splits: Splits, root: Path) -> Iterator[tuple[str, ...]]:
    """The rows of the CSV file, see `COLUMNS`; paths are those below data.root, where there are files."""
    from alexnet_dist.runs.folder import relative_path

    first, second = (splits.named()[name] for name in finding.names)
    places = [PurePosixPath(relative_path(index.root, root)) for index in (first, second)]
    for one, other, similarity, is_mirrored in zip(*finding.pairs, strict=True):
        sides = [(first, places[0], one), (second, places[1], other)]
        paths = [str(place / index.paths[sample]) for index, place, sample in sides]
        classes = [index.classes[index.labels[sample]] for index, _, sample in sides]
        names = finding.names
        yield f"{similarity:.4f}", names[0], paths[0], names[1], paths[1], str(bool(is_mirrored)), *classes


def _report(findings: Sequence[Finding], rows: Sequence[Sequence[str]], threshold: float, out: Path | None) -> None:
    if rows:
        head = ("similarity", "picture", "nearly the same picture")
        best = sorted(rows, key=lambda row: -float(row[0]))[:SHOWN]
        shown = [(row[0], row[2], row[4] + (" (mirrored)" if row[5] == "True" else "")) for row in best]
        show(align([head, *([escape_text(cell) for cell in row] for row in shown)], "<<<"))
    for finding in findings:
        (name, other), (size, _) = finding.names, finding.sizes
        text = f"{finding.num_alike:,} of {size:,} {name} images are nearly the same as one of {other}"
        show(f"{text}: {finding.num_pairs:,} pairs with a similarity of {threshold:g} or more")
    if out is not None:
        show(f"{len(rows):,} pairs are listed in {escape_text(out)}")
