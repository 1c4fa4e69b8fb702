"""`serve`: a web page and an HTTP API that name what is on a picture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.base.extras import is_installed
from alexnet_dist.base.progress import phase
from alexnet_dist.base.text import escape_text, join_names
from alexnet_dist.cli.networks import open_network
from alexnet_dist.cli.options import add_options, import_shown, take_model
from alexnet_dist.settings.reader import new_parser, parse_options

if TYPE_CHECKING:
    import socket

EXAMPLES = """Show a trained network as a web page: give it a picture, see its classes and what speaks for them.

examples:
  python launch/serve.py runs/flowers
  python launch/serve.py --model runs/flowers/model --port 8000
  curl --data-binary @picture.jpg http://127.0.0.1:7860/api/predict

The page shows the five likeliest classes, where the evidence for the first one lies, and what the filters of conv1
answer to. Beside it an HTTP API answers a POST of a picture with JSON. Nothing is asked of another host. The extra
`demo` installs what it needs. Ctrl-C ends it."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("serve", EXAMPLES, "MODEL [options]")
    parser.add_argument("paths", type=str, nargs="*", help="the model")
    add_options(parser, "model", "weights")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="where to listen; 0.0.0.0 = everywhere")
    parser.add_argument("--port", type=int, help="where to listen (default: the first free one from 7860 on)")
    add_options(parser, "device", "quiet", "debug")
    options = parse_options(argv, parser)
    take_model(options)
    if options.paths:
        raise UsageError("more than one model", where="command line", why=join_names(options.paths), remedy="give one")
    if options.port is not None and not 0 <= options.port < 2**16:
        raise UsageError(f"--port is {options.port}", where="command line", remedy="give a number from 0 to 65535")
    if not is_installed("gradio"):
        raise MachineError("gradio is not installed", remedy="pip install 'alexnet_dist[demo]'")
    import_shown("alexnet_dist.serving.server")
    from alexnet_dist.runs.folder import start_logging
    from alexnet_dist.serving.server import listen

    start_logging(None)
    listener = listen(options.host, options.port)
    try:
        return serve_model(Path(options.model), options.weights, options.device, listener)
    finally:
        listener.close()


def serve_model(model: Path, weights: str, device: str, listener: socket.socket) -> int:
    """Serve a network until a signal comes.

    Args:
        model: a run folder, a model folder or a checkpoint.
        weights: best or last, of a run folder.
        device: auto, cpu or cuda.
        listener: a socket that listens.

    Raises:
        CheckpointError: no model there, or a damaged one.
        MachineError: no such device; Gradio cannot be used.
    """
    import_shown("alexnet_dist.serving.pictures")
    from alexnet_dist.serving.desk import Desk
    from alexnet_dist.serving.page import build_application, import_gradio
    from alexnet_dist.serving.pictures import Examiner
    from alexnet_dist.serving.server import find_address, is_private, serving

    network, card = open_network(model, device, weights)
    with (
        tempfile.TemporaryDirectory(prefix="alexnet-serve-", ignore_cleanup_errors=True) as name,
        closing(Desk()) as desk,
    ):
        folder = Path(os.path.realpath(name))
        with phase("importing Gradio"):
            gradio = import_gradio(folder)
        application = build_application(gradio, Examiner(network, card), desk, escape_text(name_model(model)), folder)
        with serving(application, listener) as has_ended:
            if not is_private(listener):
                print("Everybody who reaches this machine over the network may send pictures.")
            print(f"Serving at {find_address(listener)} (Ctrl-C ends it)", flush=True)
            has_ended.wait()
    raise MachineError("the server has ended", remedy="see the lines above")


def name_model(model: Path) -> str:
    """The name of a run or of a model that stands alone: a run's is not `model`."""
    place = Path(os.path.abspath(model))
    return place.parent.name if place.name == "model" and place.parent.name else place.name
