"""What the documentation site has besides the pages of docs/.

README, CONTRIBUTING, CHANGELOG, the settings, the reference, and the notebook with what its cells show.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

import alexnet_dist
from alexnet_dist.settings.help import LOOSE, describe_settings, list_sections, split_choices
from alexnet_dist.settings.schema import Config

ROOT = Path(__file__).resolve().parent.parent
TOP_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
NOTEBOOK = "first_run"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    pages = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in TOP_PAGES.items()}
    pages |= {"settings.md": format_settings(), "reference.md": format_reference()}
    text, figures = convert_notebook()
    for name, content in {**pages, f"{NOTEBOOK}.md": text, **figures}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where a page lies on the site; a file of the checkout that is no page is named by its path."""
    folder = posixpath.dirname(page.file.src_uri)  # below docs/, "" at its top
    here = ROOT if page.file.src_uri in TOP_PAGES else ROOT / "docs" / folder

    def place(match: re.Match[str]) -> str:
        text, link = match.groups()
        name, _, heading = link.partition("#")
        if link.startswith("https://") or not name:
            return match[0]
        path = (here / name).resolve().relative_to(ROOT).as_posix()
        target = next((site for site, source in TOP_PAGES.items() if source == path), path.removeprefix("docs/"))
        target = target.replace(".ipynb", ".md")
        if target not in files.src_uris:
            return f"{text} (`{path}`)"
        return f"[{text}]({posixpath.relpath(target, folder or '.')}{'#' * bool(heading)}{heading})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", place, markdown).replace("](docs/", "](")


def convert_notebook() -> tuple[str, dict[str, bytes]]:
    """The notebook as a page, and its figures by name."""
    resources = {"output_files_dir": f"{NOTEBOOK}_files"}
    text, made = MarkdownExporter().from_filename(str(ROOT / "docs" / f"{NOTEBOOK}.ipynb"), resources)
    source = f'<a href="../{NOTEBOOK}.ipynb" download>The notebook of this page</a>\n'
    title, rest = text.lstrip().split("\n", 1)
    return f"{title}\n\n{source}\n{rest}", made["outputs"]


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
    told: dict[str, list[str]] = {name: [] for name in list_sections(Config)}
    for setting in describe_settings(Config):
        section = setting.key.partition(".")[0] if "." in setting.key else LOOSE
        meaning, choices = split_choices(setting)
        lines_of_meaning = "\n".join([meaning, *choices] if meaning else choices)
        cells = (f"`{setting.key}`", setting.values, setting.default, lines_of_meaning)
        cells_of_html = (cell.replace("|", "/").replace("<", "&lt;").replace("\n", "<br>") for cell in cells)
        told[section].append(f"| {' | '.join(cells_of_html)} |")
    for section, summary in list_sections(Config).items():
        lines += [
            f"## {section}",
            "",
            summary,
            "",
            "| setting | values | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        lines += [*told[section], ""]
    return "\n".join(lines)
