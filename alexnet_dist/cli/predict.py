"""`predict`: class and confidence of image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.durable import format_csv, format_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.places import find_cache_dir
from alexnet_dist.base.progress import Progress
from alexnet_dist.base.terminal import find_columns, wrap_line
from alexnet_dist.base.text import align, escape_text, shorten
from alexnet_dist.cli.explanations import (
    Drawing,
    check_explained,
    explain_batch,
    place_explanations,
    write_explanation,
)
from alexnet_dist.cli.features import check_features, save_features
from alexnet_dist.cli.networks import open_network
from alexnet_dist.cli.options import add_options, check_at_least_one, hand_over, import_shown, settle_out, take_model
from alexnet_dist.data.class_words import describe_class, find_words
from alexnet_dist.settings.reader import new_parser, parse_options

if TYPE_CHECKING:
    from alexnet_dist.data.sources.loose import Unpacking
    from alexnet_dist.inference.predict import Prediction

EXAMPLES = """Name what is on a picture.

examples:
  python launch/predict.py runs/digits picture.jpg
  python launch/predict.py --model runs/imagenet_subset/model --topk 3 pictures/*.jpg --out rows.csv
  python launch/predict.py --model runs/digits pictures "holidays/**/*.jpg"
  find . -name '*.png' | python launch/predict.py --model runs/digits --format jsonl --list -
  python launch/predict.py runs/flowers pictures --explain explained
  python launch/predict.py runs/flowers pictures --features fc7 --out features.npz

A path is an image file, a folder (its images at any depth, sorted), an archive (tar or zip), a parquet file, a picture
of one of these (train-0000.tar!cat/1.jpg, val.parquet!7) or a quoted pattern ("train-{0000..0003}.tar", "*.parquet").
Where the name of a class is an ImageNet id, its words are shown, too. With --explain a PNG for each picture shows where
the evidence for its class lies (LayerCAM at conv5), under the path that the picture has below the folder which all of
them share. With --features the file of --out, an .npz or .parquet, has for each picture its path and the values of a
layer behind its ReLU, and nothing is predicted. A file that cannot be read gets a row with its error; the exit code is
then 3. Where the network's output for a picture is not finite, the row says so; the exit code is then 4, or 3 if there
are files that cannot be read, too."""


NAMED = 0.0005  # the least confidence of another class in the table: a smaller one rounds to 0.0 %
_SHORTEST_PATH = 20  # columns
_GLUE = "\0"  # a blank at which no line is broken: within a class and its confidence


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("predict", EXAMPLES, "MODEL PATH ... [options]")
    words = "the model, then image files, folders, archives, parquet files, quoted patterns"
    parser.add_argument("paths", type=str, nargs="*", help=words)
    add_options(parser, "model", "weights")
    parser.add_argument("--list", type=str, help="file with the path of an image file on each line; - = standard input")
    parser.add_argument("--topk", type=int, default=5, help="classes in a row")
    parser.add_argument(
        "--format",
        default="auto",
        choices=["auto", *FORMATS],
        help="of the rows; auto = as --out ends, or table",
    )
    parser.add_argument("--out", type=str, help="write the rows to this file instead of the terminal")
    parser.add_argument(
        "--features", type=str, metavar="LAYER", help="write what this layer gives (fc7, fc6, conv5, ...) to --out"
    )
    parser.add_argument("--explain", type=str, metavar="FOLDER", help="draw what speaks for the class of each picture")
    where = "where the pictures of parquet files are unpacked, once"
    parser.add_argument("--data.cache_dir", dest="cache_dir", type=str, help=where)
    what = "column of parquet files that holds the pictures, where it is not found by itself"
    parser.add_argument("--data.columns.path", dest="column", type=str, metavar="COLUMN", help=what)
    add_options(parser, "overwrite", "device", "quiet", "debug")
    options = parse_options(argv, parser)
    if options.model is None and len(options.paths) > (options.list is None):
        take_model(options)
    if options.model is None or not (options.paths or options.list):
        raise UsageError("--model and at least one image are needed", remedy="see --help")
    check_at_least_one(options, "topk")
    out = settle_out(options)
    if options.features is not None:
        check_features(options.features, out, options.explain, options.format)
    drawing = None
    if options.explain is not None:
        drawing = Drawing(check_explained(options.explain, options.paths), options.overwrite)
    from alexnet_dist.cli.picture_paths import find_pictures  # numpy; --help should not wait for it
    from alexnet_dist.data.sources.loose import Unpacking

    paths = find_pictures(options.paths, options.list)
    unpacking = Unpacking(find_cache_dir(options.cache_dir), options.column)
    if options.features is not None:
        assert out is not None
        return save_features(
            Path(options.model), paths, options.features, out, options.device, options.weights, unpacking
        )
    predictions = list(
        predict_files(Path(options.model), paths, options.topk, options.device, options.weights, drawing, unpacking)
    )
    count = f"{len(predictions):,} row{'s' if len(predictions) != 1 else ''}"
    if (form := choose_format(options.format, out)) != "table":
        hand_over(FORMATS[form](predictions), out, is_table=False, what=count)
    else:
        columns = find_columns(sys.stdout) if out is None else None
        hand_over(format_table(predictions, columns), out, is_table=True, what=count)
    return min((prediction.exit_code for prediction in predictions if prediction.error), default=0)


def predict_files(
    model_path: Path,
    paths: Sequence[str],
    topk: int,
    device: str = "auto",
    weights: str = "best",
    drawing: Drawing | None = None,
    unpacking: Unpacking | None = None,
) -> Iterator[Prediction]:
    """The predictions for image files, in their order, with the preprocessing of evaluation.

    Args:
        model_path: a run folder, a model folder or a checkpoint.
        paths: image files, archives, parquet files; see `open_pictures`.
        topk: classes in each prediction.
        device: auto, cpu or cuda.
        weights: best or last, of a run folder.
        drawing: where explanations are drawn; None = nowhere.
        unpacking: of parquet files.

    Raises:
        CheckpointError: no model there, or a damaged one.
        UsageError: an explanation would replace a file.
        MachineError: an explanation cannot be written.
    """
    import_shown("alexnet_dist.inference.predict")
    from alexnet_dist.data.sources.loose import open_pictures
    from alexnet_dist.inference.predict import load_pictures, predict_batch

    model, card = open_network(model_path, device, weights)
    images = open_pictures(paths, unpacking)
    names = [file.path for some in images for file in some.files]
    figures = {} if drawing is None else place_explanations(drawing, names)
    with Progress("predicting", len(names)) as progress:
        for batch in load_pictures(model, card, images):
            predictions = predict_batch(model, card, batch, topk)
            explained = explain_batch(model, card, batch, predictions) if drawing else {}
            for position, prediction in enumerate(predictions):
                if position in explained:
                    write_explanation(figures[prediction.path], prediction, explained[position])
                yield prediction
                progress.advance()


def choose_format(requested: str, out: Path | None) -> str:
    """The format that was asked for; auto is the one that a file's name ends in, or a table."""
    ending = out.suffix.lower().removeprefix(".") if out is not None else ""
    return requested if requested != "auto" else ending if ending in FORMATS else "table"


def format_table(predictions: Sequence[Prediction], columns: int | None = None) -> str:
    """Aligned columns: path, class, confidence, the other likely classes without those at 0.0 %.

    Args:
        predictions: a row each.
        columns: of a terminal. Where they are too few, the other classes stand below the row, and paths are shortened.
    """
    rows = [["path", "class", "confidence", "other classes"]]
    for row in predictions:
        others = ", ".join(f"{find_words(name) or name} {value:.1%}" for name, value in row.top[1:] if value >= NAMED)
        said = f"error: {row.error}" if row.label is None else describe_class(row.label)
        rows.append([escape_text(cell) for cell in (row.path, said, _percent(row.confidence), others)])
    table = align(rows, "<")
    return table if columns is None or max(map(len, table.splitlines())) <= columns else _fold_table(rows, columns)


def _fold_table(rows: Sequence[Sequence[str]], columns: int) -> str:
    """The table with the last cell of a row, or its error, on lines of its own."""
    heads, tails = [], []
    for path, said, confidence, others in rows:
        is_error = not confidence
        heads.append([path, "" if is_error else said, confidence])
        tails.append(said if is_error else others.replace(" ", _GLUE).replace(f",{_GLUE}", ", "))
    rest = max(len(said) for _, said, _ in heads) + len("confidence") + 4
    room = max(columns - rest, _SHORTEST_PATH)
    lines = align([[shorten(path, room), *cells] for path, *cells in heads], "<").splitlines()
    folded = [[line, *wrap_line(f"    {tail}", columns)] for line, tail in zip(lines, tails, strict=True)]
    return "\n".join(line for part in folded for line in part if line.strip()).replace(_GLUE, " ") + "\n"


def format_rows_as_csv(predictions: Sequence[Prediction]) -> str:
    """A header and a row per file: the likeliest class, the top k, the error, and the class in words."""
    places = range(1, 1 + max((len(row.top) for row in predictions), default=0))
    ranked = [f"top{place}_{what}" for place in places for what in ("class", "confidence")]
    rows = [["path", "class", "confidence", *ranked, "error", "words"]]
    for row in predictions:
        cells = [cell for name, value in row.top for cell in (name, f"{value:.6f}")]
        said = ["", ""] if row.label is None else [row.label, f"{row.confidence:.6f}"]
        words = find_words(row.label or "") or ""
        rows.append([row.path, *said, *cells, *[""] * (len(ranked) - len(cells)), row.error or "", words])
    return format_csv(rows)


def format_rows_as_json(predictions: Sequence[Prediction]) -> str:
    """A JSON object a line: path, class, its words, confidence, topk (of each the same three), error."""
    from alexnet_dist.inference.predict import describe_prediction  # which the predictions have brought

    lines = []
    for row in predictions:
        values = {"path": row.path, **describe_prediction(row), "error": row.error}
        lines.append(format_json(values, row.path) + "\n")
    return "".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


FORMATS = {"table": format_table, "csv": format_rows_as_csv, "jsonl": format_rows_as_json}
