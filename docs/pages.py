"""What the documentation site has besides the pages of docs/: README, CONTRIBUTING, CHANGELOG, settings, reference."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import alexnet_dist
from alexnet_dist.settings.schema import Config

ROOT = Path(__file__).resolve().parent.parent
TOP_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
KINDS = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    pages = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in TOP_PAGES.items()}
    pages |= {"settings.md": format_settings(), "reference.md": format_reference()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where a page lies on the site; a file of the checkout that is no page is named by its path."""
    here = ROOT if page.file.src_uri in TOP_PAGES else ROOT / "docs"

    def place(match: re.Match[str]) -> str:
        text, link = match.groups()
        name, _, heading = link.partition("#")
        if link.startswith("https://") or not name:
            return match[0]
        path = (here / name).resolve().relative_to(ROOT).as_posix()
        target = next((site for site, source in TOP_PAGES.items() if source == path), path.removeprefix("docs/"))
        if target not in files.src_uris:
            return f"{text} (`{path}`)"
        return f"[{text}]({target}{'#' * bool(heading)}{heading})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", place, markdown).replace("](docs/", "](")


def format_reference() -> str:
    """The page of the public names, which mkdocstrings fills from their docstrings."""
    names = [name for name in alexnet_dist.__all__ if not name.startswith("_")]
    return "# Reference\n\n" + "\n\n".join(f"::: alexnet_dist.{name}" for name in names) + "\n"


def format_settings() -> str:
    """The page of all settings, a table for each section."""
    lines = [
        "# Settings",
        "",
        "Each setting can stand in a configuration or on the command line: `--train.epochs 20`.",
        "",
    ]
    for title, prefix, section in _walk_sections(Config):
        hints = get_type_hints(section)
        summary = " ".join((section.__doc__ or "").split())
        told = {item.arg_name: " ".join((item.description or "").split()) for item in parse_from_object(section).params}
        lines += [
            f"## {title}",
            "",
            summary,
            "",
            "| setting | values | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{prefix}{item.name}` | {_format_values(hints[item.name])} | {_format_default(item)} | "
            f"{_escape(told[item.name])} |"
            for item in dataclasses.fields(section)
            if not _is_section(item)
        ]
        lines.append("")
    return "\n".join(lines)


def _walk_sections(section: Any, title: str = "The run", prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    yield title, prefix, section
    for item in dataclasses.fields(section):
        if _is_section(item):
            yield from _walk_sections(item.default_factory, f"{prefix}{item.name}", f"{prefix}{item.name}.")


def _format_values(hint: Any) -> str:
    """What a setting takes: its words, or the kind of value."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (list, dict):
        return f"{'a list of' if origin is list else 'name: '} {_format_values(parts[-1])}"
    if parts:
        return " or ".join(_format_values(part) for part in parts)
    return KINDS[hint]


def _is_section(item: dataclasses.Field[Any]) -> bool:
    return dataclasses.is_dataclass(item.default_factory)


def _format_default(item: dataclasses.Field[Any]) -> str:
    default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
    if default is None:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
