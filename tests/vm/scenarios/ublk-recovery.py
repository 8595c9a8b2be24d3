"""Devices of a pool with a journal outlive their daemon: it is killed with SIGKILL and served again, or another takes its place, under a load
that goes on meanwhile. Requests wait, none fails, the devices keep their numbers, and whatever was acknowledged, flushed or not, is there.

Writers with stamps keep book of v1, which has two queues. On v2, which has one, are an ext4, files, and fio that reads by checksum what it has
written. `still` is open for reading and left alone. At last the daemon is killed and the pool served without a journal: then devices fail and
go, in bounded time, and what was acknowledged is there all the same.
"""

import json
import random
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from devices import Device, ram_disks
from filesystem import compare, fill, mounted
from stamps import SECTOR, ZEROS, Model, compare_snapshot, sectors_of, stamps_in
from thin import Failed, check, main, run, say
from ublk import UblkPool, load_module, no_devices, refused

MIB = 1 << 20
VOLUME_BYTES = 16 * MIB
SECTORS = VOLUME_BYTES // SECTOR
FILES_BYTES = 96 * MIB
STILL_BYTES = MIB
BLOCK = 128  # sectors of the pool's blocks
WRITERS = 4
STRIPE = 32  # sectors: in the first three quarters of v1, four writers share each block
SHARED = SECTORS * 3 // 4
OWN = (SECTORS - SHARED) // WRITERS  # sectors at the end that are each writer's own, in whole blocks
SECONDS = 2
PATIENCE = 90  # seconds, for a request that waited and now has a daemon again, or an error
# What the kernel says when a request of a device or a filesystem on it has failed.
COMPLAINTS = ("I/O error", "EXT4-fs error", "Aborting journal")


class Writer(threading.Thread):
    """One client, with sectors of its own that it writes, zeroes, discards, reads back and flushes. Ends with the first error."""

    def __init__(self, load, device, model, number, seed):
        super().__init__(daemon=True)
        self.load = load
        self.device = device
        self.model = model
        self.number = number
        self.chance = random.Random(seed)
        self.turn = threading.Lock()  # held while a request is under way
        self.longest = 0.0  # seconds that a request took
        self.error = None

    def run(self):
        try:
            with Device(self.device) as opened:
                while self.load.going.wait():
                    with self.turn:
                        if self.load.going.is_set():
                            begin = time.monotonic()
                            self._request(opened)
                            self.longest = max(self.longest, time.monotonic() - begin)
        except (Failed, OSError) as error:
            self.error = f"writer {self.number}: {error}"

    def _request(self, opened):
        dice = self.chance.random()
        if dice < 0.02:
            covers = self.model.flush_begins()
            opened.flush()
            self.model.flush_ends(covers)
        elif dice < 0.80:
            stripe = (self.chance.randrange(SHARED // STRIPE // WRITERS) * WRITERS + self.number) * STRIPE
            first = stripe + self.chance.choice([0, 8, self.chance.randrange(STRIPE)])
            count = min(self.chance.choice([1, 8, 8, STRIPE]), stripe + STRIPE - first)
            self._look(opened, first, count) if dice < 0.20 else self._write(opened, first, count)
        else:
            self._change_own(opened, SHARED + self.number * OWN, dice)

    def _change_own(self, opened, begin, dice):
        first = self.chance.randrange(OWN)
        count = min(self.chance.choice([1, 8, BLOCK, 3 * BLOCK]), OWN - first)
        if dice < 0.85:
            return self._look(opened, begin + first, count)
        if dice < 0.93:
            return self._write(opened, begin + first, count)
        change = opened.zero
        if dice < 0.97:  # of a part of a block a discard need not change anything
            first = first // BLOCK * BLOCK
            count = min(self.chance.choice([1, 1, 4]) * BLOCK, OWN - first)
            change = opened.trim
        self.model.write_begins(begin + first, count, ZEROS)
        change(count * SECTOR, (begin + first) * SECTOR)
        self.model.write_ends(begin + first, count, ZEROS)

    def _write(self, opened, first, count):
        forced = self.chance.random() < 0.03
        stamp = self.model.write_begins(first, count)
        opened.pwrite(sectors_of(stamp, count), first * SECTOR, forced)
        self.model.write_ends(first, count, stamp, forced)

    def _look(self, opened, first, count):
        expected = self.model.last(first, count)
        found = stamps_in(opened.pread(count * SECTOR, first * SECTOR))
        if found != expected:
            at = next(at for at in range(count) if found[at] != expected[at])
            raise Failed(f"sector {first + at} holds {found[at]}, and {expected[at]} was acknowledged")


class Load:
    """The writers, all together."""

    def __init__(self, device, model, chance):
        self.going = threading.Event()
        self.writers = [Writer(self, device, model, number, chance.random()) for number in range(WRITERS)]
        self.go_on()
        for writer in self.writers:
            writer.start()

    def stop_soon(self):
        """Requests under way come to their end, and no more are begun."""
        self.going.clear()

    def pause(self):
        """As `stop_soon`, and waits for that."""
        self.stop_soon()
        for writer in self.writers:
            if not writer.turn.acquire(timeout=PATIENCE):
                raise Failed(f"a request of writer {writer.number} does not come to its end")
            writer.turn.release()

    def under_way(self):
        return sum(writer.turn.locked() for writer in self.writers)

    def go_on(self):
        self.going.set()

    def longest(self):
        return max(writer.longest for writer in self.writers)

    def forget_longest(self):
        for writer in self.writers:
            writer.longest = 0.0

    def fails(self):
        """Every writer must get an error, and in bounded time."""
        end = time.monotonic() + PATIENCE
        for writer in self.writers:
            writer.join(timeout=max(0.0, end - time.monotonic()))
            if writer.is_alive():
                raise Failed(f"the device is gone, and a request of writer {writer.number} does not fail")


class Fio:
    """fio on a file: again and again it writes all of it in random order, and reads it back by checksum. One process, to be halted as one."""

    def __init__(self, place, file):
        self.output = place / f"{file.name}.json"
        words = [f"--filename={file}", "--size=4M", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=io_uring", "--iodepth=8"]
        words += ["--thread", "--fsync=64", "--loops=1000000", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
        words += ["--output-format=json", f"--output={self.output}"]
        self.process = subprocess.Popen(["fio", "--name=goes-on", *words], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("fio does not come to its end") from None

    def end(self):
        """How much it has written and read back; it must not have met an error."""
        self.signal(signal.SIGINT)
        self.wait()
        told = self.output.read_text()
        job = json.loads(told[told.index("{") :])["jobs"][0]  # notes come before
        written, verified = job["write"]["total_ios"], job["read"]["total_ios"]
        if job["error"] or not verified:
            raise Failed(f"fio: error {job['error']}, {written} writes, {verified} of them read back")
        return written, verified


class Stage:
    """A pool with three devices, what is at them, and what they must be like whoever serves them."""

    def __init__(self, pool, chance, place):
        self.pool = pool
        self.chance = chance
        self.place = place
        self.mount = place / "mounted"
        self.model = Model(SECTORS, keeps_all=True)
        self.files = {}

    def begin(self):
        pool = self.pool
        for name, size in (("v1", VOLUME_BYTES), ("v2", FILES_BYTES), ("still", STILL_BYTES)):
            pool.create(name, size)
        pool.serve()
        self.still = self.chance.randbytes(STILL_BYTES)
        client = pool.open("still")
        client.pwrite(self.still, 0)
        client.shutdown()
        self.v1 = pool.export("v1", "--queues", "2")
        self.v2 = pool.export("v2")
        self.reader = Device(pool.export("still", "--read-only", "--depth", "16", "--logical-block", "4K"), writable=False)
        self.exported = pool.exports()
        self.numbers = self.disk_sequence_numbers()
        self.as_before("at the beginning")
        run("mkfs.ext4", "-q", self.v2)
        mounted(self.v2, self.mount, "ext4", "errors=remount-ro")
        (self.mount / "files").mkdir()
        self.load = Load(self.v1, self.model, self.chance)
        self.fio = Fio(self.place, self.mount / "fio")
        time.sleep(SECONDS)
        self.goes_on("at the beginning")

    def disk_sequence_numbers(self):
        """The kernel gives each block device another one."""
        blocks = [Path("/sys/block") / Path(export["device"]).name / "diskseq" for export in self.exported.values()]
        return [int(path.read_text()) for path in blocks]

    def goes_on(self, when):
        """Nobody has met an error, and no device has gone."""
        wrong = [writer.error for writer in self.load.writers if writer.error]
        if self.fio.process.poll() is not None:
            wrong.append(f"fio ended with {self.fio.process.returncode}")
        wrong += [line for line in run("dmesg").splitlines() if any(words in line for words in COMPLAINTS)]
        if wrong:
            raise Failed(f"{when}: {wrong}\n{self.pool.log_tail()}")
        if self.disk_sequence_numbers() != self.numbers:
            raise Failed(f"{when}: these are other devices than before")

    def waits(self, when):
        """The daemon is dead, and the writers want something: they have neither an answer nor an error."""
        time.sleep(1)
        clock = self.model.clock
        time.sleep(0.5 + self.chance.random())
        acknowledged, under_way = self.model.clock - clock, self.load.under_way()
        if acknowledged or under_way != WRITERS:
            raise Failed(f"{when}: nobody serves v1; {acknowledged} writes were acknowledged, {under_way} requests are under way")
        self.goes_on(when)

    def as_before(self, when):
        """A daemon serves all devices, as they were made, and remembers them."""
        found = self.pool.exports()
        if found != self.exported or not all(export["outlives_daemon"] for export in found.values()):
            raise Failed(f"{when}: exported are {found}, and were {self.exported}")
        numbers = sorted(int(export["device"].removeprefix("/dev/ublkb")) for export in found.values())
        if self.pool.remembered() != numbers:
            raise Failed(f"{when}: the devices {numbers} are exported, {self.pool.remembered()} are remembered")

    def survives(self, when, replaced):
        """The devices as they are when another daemon serves them, which `replaced()` sees to."""
        self.load.forget_longest()
        begin = time.monotonic()
        replaced(when)
        took = time.monotonic() - begin
        self.as_before(when)
        self.files |= fill(self.mount / "files", self.chance, 4)
        time.sleep(SECONDS)
        self.load.pause()
        self.goes_on(when)
        self.compare(self.v1, when)
        if self.reader.pread(STILL_BYTES, 0) != self.still:
            raise Failed(f"{when}: the volume that nobody writes has changed")
        say(f"{when}: took {took:.1f} s, the longest request {self.load.longest():.1f} s; {self.model.next_stamp} writes so far")
        self.load.go_on()

    def compare(self, device, when):
        """Every sector of v1, whose writers rest, holds what was acknowledged last."""
        with Device(device, writable=False) as opened:
            complaint = self.model.after_crash(stamps_in(opened.pread(VOLUME_BYTES, 0)))
        if complaint:
            raise Failed(f"{when}: {complaint}")

    # --- how a daemon is replaced ---

    def killed(self, when):
        """Writers want more while nobody is there."""
        self.pool.kill()
        self.waits(when)
        self.pool.serve()

    def killed_and_no_more_begun(self, when):
        """Nothing covers up what becomes of the requests that the kill found under way."""
        self.pool.kill()
        self.waits(when)
        self.load.stop_soon()
        self.pool.serve()

    def killed_while_idle(self, when):
        """No request is under way when the daemon dies; they come afterwards."""
        self.load.pause()
        self.fio.signal(signal.SIGSTOP)
        run("sync", "-f", self.mount)
        time.sleep(2.5)  # all is committed, the journal is empty
        self.pool.kill()
        self.load.go_on()
        self.fio.signal(signal.SIGCONT)
        self.waits(when)
        self.pool.serve()

    def killed_twice(self, when):
        """The second time as soon as the daemon is ready."""
        self.pool.kill()
        self.pool.serve()
        self.pool.kill()
        self.waits(when)
        self.pool.serve()

    def killed_before_commands(self, when):
        """Commands do what they can with the pool, and leave alone what a device stands on that waits."""
        self.pool.kill()
        self.waits(when)
        if set(self.pool.volumes()) != {"v1", "v2", "still"}:
            raise Failed(f"{when}: there are the volumes {sorted(self.pool.volumes())}")
        refused(6, str(self.v1), "volume", "delete", self.pool.path / "v1")
        refused(6, str(self.v2), "volume", "set", self.pool.path / "v2", "--read-only")
        self.pool.create("between", MIB)
        begun = self.model.snapshot_begins()
        self.pool.snapshot("v1", "s1")
        snapshot = self.model.snapshot_ends(begun)
        self.goes_on(when)
        self.pool.serve()
        client = self.pool.open("s1")
        found = b"".join(bytes(client.pread(4 * MIB, at)) for at in range(0, VOLUME_BYTES, 4 * MIB))
        client.shutdown()
        complaint = compare_snapshot(snapshot, stamps_in(found))
        if complaint:
            raise Failed(f"{when}: the snapshot: {complaint}")
        for name in ("s1", "between"):
            self.pool.delete(name)

    def taken_over(self, _):
        self.pool.take_over()

    def taken_over_and_killed(self, when):
        self.pool.take_over()
        self.pool.kill()
        self.waits(when)
        self.pool.serve()

    # --- the end ---

    def end_of_load(self):
        """fio and the filesystem were never hurt."""
        self.load.pause()
        written, verified = self.fio.end()
        self.goes_to_rest()
        say(f"fio: {written} writes, {verified} of them read back; {len(self.files)} files; the filesystem is sound")
        return written

    def goes_to_rest(self):
        """The filesystem is mounted no more, and is sound."""
        compare(self.mount / "files", self.files, "the filesystem's files")
        run("umount", self.mount)
        run("fsck.ext4", "-f", "-n", self.v2)

    def without_a_journal(self):
        """Whoever uses the devices gets errors now; whoever asks the pool gets what was acknowledged."""
        when = "killed, and served without a journal"
        pool = self.pool
        mounted(self.v2, self.mount)
        hurt = Fio(self.place, self.mount / "hurt")
        self.load.go_on()
        time.sleep(SECONDS)
        if hurt.process.poll() is not None:
            raise Failed(f"fio ended with {hurt.process.returncode} while it was served")
        self.reader.close()
        pool.kill()
        time.sleep(1)
        begin = time.monotonic()
        pool.serve("--journal", "none")
        self.load.fails()
        hurt.wait()
        took = time.monotonic() - begin
        run("umount", "-l", self.mount)
        no_devices(when)
        log = pool.log_tail()
        if pool.exports() or pool.remembered() or not all(device.name in log for device in (self.v1, self.v2)):
            raise Failed(f"{when}: exported are {sorted(pool.exports())}, remembered {pool.remembered()}, and the log is\n{log}")
        device = pool.export("v1")
        self.compare(device, when)
        if pool.exports()["v1"]["outlives_daemon"] or pool.remembered():
            raise Failed(f"{when}: a device is to outlive a daemon without a journal")
        pool.keeps(5, f"{device} was made without a journal")
        self.compare(device, "after a takeover that was refused")
        say(f"{when}: requests failed and devices were gone within {took:.1f} s; v1 holds all that was acknowledged")
        pool.close()
        no_devices("after a daemon without a journal")

    def at_last(self):
        """With a journal again, and closed in order."""
        pool = self.pool
        pool.serve()
        self.v1, self.v2 = pool.export("v1"), pool.export("v2")
        self.compare(self.v1, "at last")
        mounted(self.v2, self.mount)
        self.goes_to_rest()
        pool.close()
        no_devices("after a clean end")
        if pool.remembered():
            raise Failed(f"after a clean end the pool remembers {pool.remembered()}")


def tell(stage):
    stage.begin()
    stage.survives("killed", stage.killed_and_no_more_begun)
    stage.survives("killed while idle", stage.killed_while_idle)
    stage.survives("killed twice", stage.killed_twice)
    stage.survives("killed, and commands", stage.killed_before_commands)
    stage.pool.keeps(5, "cannot be taken over without a journal", "--journal", "none")
    stage.survives("taken over", stage.taken_over)
    stage.survives("taken over and killed", stage.taken_over_and_killed)
    stage.survives("killed again", stage.killed)
    written = stage.end_of_load()
    stage.without_a_journal()
    stage.at_last()
    return written


def story(folder, _):
    metadata, data = ram_disks(2, 256 * MIB)[::-1]
    load_module()
    # Nobody cleans up here: what lies on a device that waits would keep him.
    place = Path(tempfile.mkdtemp(prefix="recovery."))
    with UblkPool(folder, metadata, data, "--journal", "file") as pool:
        stage = Stage(pool, random.Random(23), place)
        try:
            written = tell(stage)
        except Exception as wrong:
            say(f"FAILED: {wrong}")
            if pool.daemon:
                pool.kill()
            pool.serve("--journal", "none")  # else whoever waits for a device keeps the machine from its end
            raise
        check(metadata)
    writes = stage.model.next_stamp
    if writes < 500:
        raise Failed(f"only {writes} writes: this shows nothing")
    print(f"8 kills and 2 takeovers under {writes} writes, a filesystem and {written} writes of fio: nobody saw an error, nothing was lost")


if __name__ == "__main__":
    main(story)
