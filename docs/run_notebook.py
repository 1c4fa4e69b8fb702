"""Execute docs/first_run.ipynb in a fresh folder and keep what its cells show: `make notebook`."""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parent / "first_run.ipynb"
COLORS = 32  # of a figure in the notebook's file
CELL_SECONDS = 600


def main() -> int:
    """Execute the notebook, and write it with its outputs; the exit code."""
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )  # as in a shell
    with tempfile.TemporaryDirectory() as folder:
        notebook = run_notebook(NOTEBOOK, Path(folder))
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)  # when it began and ended
        cell.outputs = [output for output in cell.outputs if output.get("data") != {"text/plain": " "}]
        for output in cell.outputs:
            tidy_output(output)
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    return 0


def run_notebook(path: Path, folder: Path) -> Any:
    """A notebook after all its cells were executed by this Python's kernel, with `folder` as the working folder.

    Raises:
        CellExecutionError: of the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=CELL_SECONDS, coalesce_streams=True, resources=place)
    client.create_kernel_manager().kernel_spec.argv[0] = sys.executable  # not that of another environment
    return client.execute()


def tidy_output(output: Any) -> None:
    """Make an output small, and the same on each machine as far as it can be."""
    home = os.path.expanduser("~")
    if output.output_type == "stream":
        output.text = output.text.replace(home, "~")
    if "image/png" in output.get("data", {}):
        with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as figure:
            small = figure.convert("RGB").quantize(COLORS)
        small.save(file := io.BytesIO(), "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
