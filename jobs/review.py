"""review: serve a local page on which a person accepts or rejects rows marked `review`."""

from __future__ import annotations

import argparse
import getpass
import signal
import sys
import threading

from jobs.console import OK, main
from jobs.report import add_place, output_at
from pipeline.errors import OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_place(parser)
    parser.add_argument("--port", type=_port, default=8765, metavar="N", help="of this machine; 0: any that is free")
    parser.add_argument("--reviewer", default=None, metavar="NAME", help="who decides; default: who is logged in")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from pipeline.review import Review, ReviewServer

    output, recipe = output_at(arguments.output, arguments.set)
    review = Review(output, recipe, arguments.reviewer or _who())
    try:
        server = ReviewServer(review, arguments.port)
    except OSError as error:
        raise OutputError(f"port {arguments.port} cannot be used ({error.strerror}); give another --port") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"{server.url} is the page, for whom you tell; Ctrl-C ends it", flush=True)
    with server:
        server.serve_forever()
    print(f"{review.close()} rows are decided; the next conservator restore does as it was said")
    return OK


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65_536:
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535, not {number}")
    return number


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "somebody"


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
