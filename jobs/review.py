"""review: serve a local page on which a person accepts or rejects rows marked `review`."""

from __future__ import annotations

import argparse
import getpass
import signal
import sys
import threading

from jobs.console import OK, main
from jobs.report import finished_output
from pipeline.errors import OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("output", metavar="TABLE", help="what --output was in the run, or its data folder")
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="of this machine; 0: any that is free")
    parser.add_argument("--reviewer", default=None, metavar="NAME", help="who decides; default: who is logged in")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from pipeline.review import Review, ReviewServer

    output, recipe, _ = finished_output(arguments.output)
    review = Review(output, recipe, arguments.reviewer or getpass.getuser())
    try:
        server = ReviewServer(review, arguments.port)
    except OSError as error:
        raise OutputError(f"port {arguments.port} cannot be used ({error.strerror}); give another --port") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"{server.url} is the page; Ctrl-C ends it", flush=True)
    with server:
        server.serve_forever()
    print(f"{review.close()} rows are decided; the next conservator restore does as it was said")
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
