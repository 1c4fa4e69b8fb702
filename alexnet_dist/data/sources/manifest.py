"""Images that a list names: a text file with a `path label` a line, or CSV."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
from alexnet_dist.data.files.index_files import FileRules, index_files
from alexnet_dist.data.files.scan import FileSet
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_labels import derive_classes, find_class_lists, number_labels
from alexnet_dist.data.sources.manifest_read import (
    Listed,
    ListForm,
    find_first_mentions,
    is_integer,
    read_manifest,
    refuse_other_root,
)
from alexnet_dist.data.sources.manifest_table import ColumnNames
from alexnet_dist.data.sources.source import Source, SourceOptions, find_given_root

logger = logging.getLogger("alexnet_dist")


def scan_manifest(
    root: Path,
    manifest: Path,
    *,
    classes: Sequence[str] | None,
    form: ListForm,
    on_bad_file: Literal["fail", "skip"],
    cache_dir: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = False,
) -> SampleIndex:
    """Index the images that a manifest lists, reading every header that is new or changed.

    The order of its lines does not matter. A picture that is listed twice counts once.

    Args:
        root: folder that the manifest's paths are relative to.
        manifest: the file; see data/sources/manifest_read.py for its form.
        classes: in the order of their numbers; None derives them from the labels.
        form: how the manifest is to be read.
        on_bad_file: raise on an unreadable or missing file, or leave it out and list it in `bad_files`.
        cache_dir: where header sizes are remembered.
        max_pixels: an image with more pixels is unreadable.
        progress: show a bar when the scan takes longer than two seconds.

    Raises:
        DataError: a manifest, line or label that cannot be meant, or nothing readable.
        BadFilesError: unreadable files under `fail`; all of them.
    """
    pictures, labels, class_names = _list_pictures(root, manifest, classes, form)
    refuse_other_root(manifest, pictures)
    return index_files(
        FileSet(root, [picture.file for picture in pictures], listed_in=manifest),
        labels,
        class_names,
        FileRules(cache_dir, on_bad_file, max_pixels, progress),
        [picture.reason for picture in pictures],
    )


def _list_pictures(
    root: Path, manifest: Path, classes: Sequence[str] | None, form: ListForm
) -> tuple[list[Listed], npt.NDArray[np.int64], tuple[str, ...]]:
    """What a manifest lists, each picture once, by class and path; their labels; the classes."""
    listed = read_manifest(root, manifest, classes or (), form, tell=True)
    class_names = tuple(derive_classes(manifest, listed) if classes is None else classes)
    has_positions = form.has_positions or class_names == tuple(map(str, range(len(class_names))))
    labels = number_labels(manifest, listed, class_names, has_positions)
    first = find_first_mentions(manifest, listed, labels)
    if len(first) < len(listed):
        logger.warning("%s lists pictures more than once: %d lines passed over", manifest, len(listed) - len(first))
    first.sort(key=lambda position: (labels[position], listed[position].file.path))
    return [listed[position] for position in first], labels[first], class_names


# -- as a source ------------------------------------------------------------------------------------------------------


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    """With a class list, integers are positions in it; a list that goes with training says what its classes are."""
    root, rules = find_given_root(options), options.rules
    lists = _read_class_lists(options, ["train"] if key == "train" else list(options.parts))
    return scan_manifest(
        root,
        root / options.parts[key],
        classes=next(iter(lists.values()), None) if classes is None else classes,
        form=make_form(options, key, has_positions=bool(lists)),
        on_bad_file=rules.on_bad_file,
        cache_dir=rules.cache_dir,
        max_pixels=rules.max_pixels,
        progress=rules.progress,
    )


def make_form(options: SourceOptions, key: str, has_positions: bool = False) -> ListForm:
    """How the manifest of train, val or test is to be read."""
    given = options.columns
    columns = ColumnNames(path=given.get("path"), label=given.get("label"), split=given.get("split"))
    return ListForm(
        part=key,
        wanted=tuple(options.parts),
        columns=columns,
        image_dir=options.image_dir,
        image_suffix=options.image_suffix,
        has_positions=has_positions,
    )


def _check(options: SourceOptions) -> None:
    _read_class_lists(options, list(options.parts))


def _read_class_lists(options: SourceOptions, keys: Sequence[str]) -> dict[Path, tuple[str, ...]]:
    root = find_given_root(options)
    manifests = [root / options.parts[key] for key in keys if key in options.parts]
    return find_class_lists(manifests, root / options.classes if options.classes is not None else None)


def _list_files(options: SourceOptions, key: str) -> FileSet:
    root = find_given_root(options)
    manifest = root / options.parts[key]
    classes = next(iter(_read_class_lists(options, list(options.parts)).values()), ())
    listed = read_manifest(root, manifest, classes, make_form(options, key))
    pictures = {picture.file.path: picture for picture in listed}.values()
    return FileSet(
        root,
        files=[picture.file for picture in pictures if not picture.reason],
        missing=[(picture.file.path, picture.reason) for picture in pictures if picture.reason],
        listed_in=manifest,
    )


def _name_classes(options: SourceOptions, key: str, classes: Sequence[str]) -> Sequence[str]:
    root = find_given_root(options)
    listed = read_manifest(root, root / options.parts[key], classes, make_form(options, key))
    return sorted({picture.label for picture in listed if not is_integer(picture.label)})


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    return None, "manifests are not read here"


SOURCE = Source(
    list_split=_list_split,
    check=_check,
    list_files=_list_files,
    read_class_lists=_read_class_lists,
    name_classes=_name_classes,
    count_classes=_count_classes,
)
