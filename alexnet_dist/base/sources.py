"""The sources of images by name: which settings each takes, and the module in data/sources/ that lists its images.

A new source is a file there and a line here. The table lies in base because two rooms that never import each other need
it: settings are checked against it, and data carries it out. It names modules instead of importing them, so that a
setting that is mistyped is refused before numpy and torch are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a source before its images are looked for.

    Args:
        module: its dotted name; it has a `SOURCE`, see data/sources/source.py.
        needs_root: data.root must be given; where data.download is taken, one of the two.
        has_folders: data.train, data.val and data.test are folders of the user's, below data.root.
        reads_list: it takes data.classes, data.columns, data.image_dir and data.image_suffix.
        reads_archives: it takes data.labels.
        has_columns: it takes data.columns.path and data.columns.label.
        can_download: it takes data.download.
        makes_val: it has a validation set that no setting names.
    """

    module: str
    needs_root: bool = False
    has_folders: bool = False
    reads_list: bool = False
    reads_archives: bool = False
    has_columns: bool = False
    can_download: bool = False
    makes_val: bool = False


SOURCES: dict[str, SourceFacts] = {
    "folder": SourceFacts("alexnet_dist.data.sources.folders", needs_root=True, has_folders=True),
    "manifest": SourceFacts("alexnet_dist.data.sources.manifest", needs_root=True, reads_list=True),
    "tar": SourceFacts("alexnet_dist.data.sources.tar", needs_root=True, reads_list=True, reads_archives=True),
    "parquet": SourceFacts("alexnet_dist.data.sources.parquet", needs_root=True, has_columns=True),
    "imagenet": SourceFacts("alexnet_dist.data.sources.imagenet", needs_root=True),
    "cifar10": SourceFacts("alexnet_dist.data.sources.arrays", needs_root=True, can_download=True),
    "fashion_mnist": SourceFacts("alexnet_dist.data.sources.arrays", needs_root=True, can_download=True),
    "digits": SourceFacts("alexnet_dist.data.sources.digits"),
    "synthetic": SourceFacts("alexnet_dist.data.sources.synthetic", makes_val=True),
}
