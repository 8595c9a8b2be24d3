"""An ordinary user's block devices: made without root, by the rules of dist/udev; a filesystem's worth of writes, a kill, another user kept out.

There is no udev in the machine. In its place the rule's own PROGRAM is run for each new node, and the node given to whom it names.
"""

import os
import re
import subprocess
import threading
import time
from pathlib import Path

from devices import Device
from filesystem import MIB
from pool import Pool
from thin import ROOT, Failed, main, run, say
from ublk import load_module, no_devices

VOLUME_BYTES = 64 * MIB
USER, GROUP, STRANGER = 4711, 4712, 4713
RULES = ROOT / "dist/udev/60-uthin-ublk.rules"


class Udev(threading.Thread):
    """Gives nodes of ublk devices to their makers, as the rules say."""

    def __init__(self, program):
        super().__init__()
        rules = RULES.read_text()
        installed = set(re.findall(r'PROGRAM="(\S+) ublk-owner %k"', rules))
        if installed != {"/usr/local/bin/uthin"}:
            raise Failed(f"the rules run {installed}")
        os.chown("/dev/ublk-control", 0, GROUP)
        os.chmod("/dev/ublk-control", 0o660)
        self.program, self.over, self.failure = program, threading.Event(), None

    def run(self):
        seen = set()
        try:
            while not self.over.wait(0.02):
                # Number and all: a node may go and one of its name come between two looks.
                nodes = {(entry.name, entry.inode()) for entry in os.scandir("/dev") if re.fullmatch("ublk[bc][0-9]+", entry.name)}
                for name, _ in nodes - seen:
                    self.give(name)
                seen = nodes
        except Exception as error:
            self.failure = error

    def give(self, name):
        told = subprocess.run([self.program, "ublk-owner", name], capture_output=True, text=True, timeout=60)
        if told.returncode == 0 and told.stdout.split():
            owner, group = told.stdout.split()
            try:
                os.chown(f"/dev/{name}", int(owner), int(group))
                os.chmod(f"/dev/{name}", 0o660)
            except FileNotFoundError:
                say(f"{name} has gone again")
                return
        say(f"{name} belongs to {told.stdout.strip() or told.stderr.strip() or 'root'}")


def by(user, *command):
    return ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={GROUP}", *map(str, command)]


class OrdinaryPool(Pool):
    """A pool of files; whoever serves it and asks for things is not root."""

    def __init__(self, folder, program):
        self.path, self.program, self.daemon = Path(folder) / "pool", program, None
        self.uthin("pool", "create", self.path, "--size", "256M")
        self.uthin("volume", "create", self.path / "v1", "--size", VOLUME_BYTES)

    def uthin(self, *words):
        return run(*by(USER, self.program, *words)).strip()

    def start(self, *options):
        with open(Path(os.environ["KEEP"]) / "daemon.log", "a") as log:
            self.daemon = subprocess.Popen(by(USER, self.program, "serve", self.path, *options), stdout=subprocess.PIPE, stderr=log, text=True)

    def log_tail(self):
        return (Path(os.environ["KEEP"]) / "daemon.log").read_text()[-3000:]

    def export(self):
        device = Path(self.uthin("export", self.path / "v1", "--ublk"))
        deadline = time.monotonic() + 20
        while device.stat().st_uid != USER:
            if time.monotonic() > deadline:
                raise Failed(f"{device} belongs to user {device.stat().st_uid}")
            time.sleep(0.02)
        return device


def use(device):
    """What the user writes is there; a stranger may not look."""
    words = ["fio", "--name=own", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randwrite", "--bs=4k"]
    run(*by(USER, *words, "--size=16m", "--verify=crc32c", "--do_verify=1", "--fsync=64"))
    refused = subprocess.run(by(STRANGER, "dd", f"if={device}", "of=/dev/null", "count=1"), capture_output=True, text=True)
    if "Permission denied" not in refused.stderr:
        raise Failed(f"a stranger reads {device}: {refused.stderr}")


def story(folder, _):
    load_module()
    home = Path(folder)
    home.chmod(0o755)
    own = home / "own"
    own.mkdir()
    os.chown(own, USER, USER)
    program = Path("/tmp/uthin")
    program.write_bytes((ROOT / "target/release/uthin").read_bytes())
    program.chmod(0o755)

    pool = OrdinaryPool(own, program)
    with pool:
        pool.serve()
        refused = subprocess.run(by(USER, program, "export", pool.path / "v1", "--ublk"), capture_output=True, text=True, timeout=120)
        say(refused.stderr.strip())
        if refused.returncode == 0 or "hint:" not in refused.stderr:
            raise Failed(f"without the rules: {refused.returncode}, {refused.stderr}")
        no_devices("none could be made")

        udev = Udev(program)
        udev.start()
        try:
            device = pool.export()
            use(device)
            said = run(*by(USER, program, "doctor"))
            say(said)
            pool.uthin("unexport", pool.path / "v1")
            no_devices("taken away")

            flushed = os.urandom(MIB)
            with Device(pool.export()) as opened:
                opened.pwrite(flushed, 32 * MIB)
                opened.flush()
            pool.kill()
            pool.serve()
            no_devices("left by the killed daemon")
            with Device(pool.export()) as opened:
                if opened.pread(MIB, 32 * MIB) != flushed:
                    raise Failed("what was flushed is gone")
            pool.uthin("pool", "close", pool.path)
            if pool.daemon.wait(60) != 0:
                raise Failed(f"the daemon ended with {pool.daemon.returncode}:\n{pool.log_tail()}")
            pool.daemon = None
            no_devices("at the end")
        finally:
            udev.over.set()
            udev.join()
            if udev.failure:
                raise Failed("udev's place is empty") from udev.failure
    print("an ordinary user's device was made, used, taken away, killed and found again; nobody else could look")


if __name__ == "__main__":
    main(story)
