"""A pool served by the real daemon, for tests that drive it with real clients and kill it.

UTHIN_BIN_DIR names the directory of the binaries under test; tools/oracle finds thin_check.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("UTHIN_BIN_DIR", ROOT / "target" / "release")).resolve()


class Failed(Exception):
    """What the product did wrong."""


def run(*command, timeout=120, check=True):
    """Runs a command to its end; its output goes into the error if it fails."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(str(c) for c in command)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def uthin(*words, timeout=120):
    return run(BIN / "uthin", *words, timeout=timeout)


class Pool:
    """A pool directory and, at times, the daemon that serves it."""

    def __init__(self, folder, size="1G", *options):
        self.path = Path(folder) / "pool"
        self.daemon = None
        uthin("pool", "create", self.path, "--size", size, *options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.daemon:
            self.kill()

    def start(self, *options):
        """Starts the daemon."""
        with open(self.path.parent / "daemon.log", "a") as log:
            self.daemon = subprocess.Popen([BIN / "uthin", "serve", self.path, *options], stdout=subprocess.PIPE, stderr=log, text=True)

    def serve(self, *options):
        """Starts the daemon and waits until it says that it is ready."""
        self.start(*options)
        for line in self.daemon.stdout:
            if line.strip() == "ready":
                return
        status = self.daemon.wait()
        self.daemon = None
        raise Failed(f"the daemon ended with status {status} before it was ready:\n{self.log_tail()}")

    def log_tail(self):
        return "\n".join((self.path.parent / "daemon.log").read_text().splitlines()[-20:])

    def kill(self):
        """SIGKILL, as the OOM killer would."""
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()
        self.daemon = None

    def close(self):
        """Stops the daemon in order."""
        uthin("pool", "close", self.path)
        status = self.daemon.wait(timeout=60)
        self.daemon = None
        if status != 0:
            raise Failed(f"the daemon ended with status {status}:\n{self.log_tail()}")

    def uri(self, volume):
        return f"nbd+unix:///{volume}?socket={self.path}/nbd.sock"

    def status(self):
        return json.loads(uthin("pool", "status", self.path, "--json"))

    def ask(self, *requests):
        """Requests (method, path, body) to the control socket, one after the other on one connection."""
        connection = http.client.HTTPConnection("uthin")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.path / "control.sock"))
        for method, path, body in requests:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status >= 300:
                raise Failed(f"{method} {path}: {answer.status}: {text}\n{self.log_tail()}")
        connection.close()

    def check(self):
        """Three checkers look at the metadata of the pool, which nobody has open. With partial blocks in it, two would not know it."""
        metadata = self.path / "metadata"
        run(BIN / "uthin-fsck", "check", metadata)
        with open(metadata, "rb") as file:
            features = file.read(4096)[360:364]
        if any(features):
            return
        oracle = run(ROOT / "tools" / "oracle").strip().splitlines()[-1]
        run(Path(oracle) / "thin_check", metadata)
        run(sys.executable, ROOT / "tests" / "oracle" / "verify.py", metadata, timeout=300)


def main(story):
    """Runs `story(folder, arguments)` in a temporary directory; exit status 1 and a reason if the product fails it."""
    import tempfile

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no daemon outlives its story
    with tempfile.TemporaryDirectory(prefix="uthin-live.", dir=os.environ.get("UTHIN_TEST_DIR"), ignore_cleanup_errors=True) as folder:
        try:
            story(folder, sys.argv[1:])
        except Failed as wrong:
            if kept := os.environ.get("UTHIN_KEEP"):
                Path(kept).mkdir(parents=True, exist_ok=True)
                run("cp", "--recursive", "--sparse=always", folder, kept)
            print(f"FAILED: {wrong}", file=sys.stderr)
            sys.exit(1)
