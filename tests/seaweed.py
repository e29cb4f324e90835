"""A real S3 server for the tests, which can be stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import s3fs

KEYS = {"AWS_ACCESS_KEY_ID": "archivist", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}
PORT = 8333


class Seaweed:
    """SeaweedFS with one bucket, `archive`."""

    environment = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}", "AWS_DEFAULT_REGION": "us-east-1"}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until the bucket is there."""
        weed = Path(sys.executable).parent / "weed"
        command = [weed, "mini", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=archive"]
        command += ["-admin.ui=false", "-webdav=false"]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, env=os.environ | KEYS, stdout=log, stderr=log)
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", PORT)) == 0 and self._answers():
                    return
            time.sleep(0.25)
        raise RuntimeError("the S3 server did not start")

    def stop(self) -> None:
        """Stop it; what was written stays."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(30)
            self._server = None

    def pause(self, seconds: float) -> None:
        """Let it answer nothing for so long; connections stay."""
        if self._server is not None:
            self._server.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self._server.send_signal(signal.SIGCONT)

    def table_bucket(self, name: str) -> dict[str, str]:
        """Make a bucket for tables, and return the properties of its REST catalog; REST_CREDENTIAL must be set."""
        command = f"s3tables.bucket -create -name {name} -account 000000000000"
        weed = Path(sys.executable).parent / "weed"
        subprocess.run([weed, "shell", "-master=127.0.0.1:9333"], input=command, text=True, check=True)
        place = {"uri": "http://127.0.0.1:8181", "warehouse": f"s3://{name}/"}
        return {"type": "rest", "credential": "${REST_CREDENTIAL}", **place}

    def store(self) -> s3fs.S3FileSystem:
        """A view of what is there, without a memory."""
        return s3fs.S3FileSystem(
            key=KEYS["AWS_ACCESS_KEY_ID"],
            secret=KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
        )

    def _answers(self) -> bool:
        try:
            return "archive" in self.store().ls("")
        except Exception:
            return False
