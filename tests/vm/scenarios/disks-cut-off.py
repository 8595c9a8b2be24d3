"""uthin's disks fail under load: data, metadata or both are cut off (dm-error), refuse writes, or come and go (dm-flakey). Nothing flushed is lost.

Each round: writers with stamps, snapshots and deletions; the disks fail at a random moment, and a while later the daemon is killed or told to
end. Then the disks are there again, checkers find nothing wrong with the metadata, and a new daemon shows every acknowledged flush. At no
time may a client hang, or the daemon fail to end.
"""

import random
import signal
import time

from devices import ram_disks
from thin import Cut, Failed, UthinPool, check, main, say, uthin
from torture import VOLUME_BYTES, Torture

ROUNDS = [
    ("data", "come_and_go"),
    ("metadata", "cut"),
    ("both", "cut"),
    ("metadata", "refuse_writes"),
    ("data", "refuse_writes"),
    ("both", "come_and_go"),
]


def end(pool, gently):
    """Whatever state the daemon is in, it ends; told to, it may say that it could not close the pool well."""
    if not gently:
        return pool.kill()
    pool.daemon.send_signal(signal.SIGTERM)
    status = pool.daemon.wait(timeout=90)
    pool.daemon = None
    if status not in (0, 1):
        raise Failed(f"told to end, the daemon did so with status {status}\n{pool.log_tail()}")


def story(folder, _):
    metadata, data = ram_disks(2, 256 << 20)[::-1]
    cuts = {"metadata": Cut(metadata), "data": Cut(data)}
    chance = random.Random(17)
    failed = 0
    with UthinPool(folder, cuts["metadata"].path, cuts["data"].path, "--journal", "none") as pool:
        pool.create("v1", VOLUME_BYTES)
        torture = Torture(pool, chance)
        pool.serve()
        for which, way in ROUNDS:
            gently = chance.random() < 0.5
            hurt = list(cuts.values()) if which == "both" else [cuts[which]]
            chance.shuffle(hurt)

            def disks_fail():
                nonlocal failed
                for cut in hurt:
                    getattr(cut, way)()
                time.sleep(chance.random() * 3)
                failed += pool.status()["mode"] != "rw"
                end(pool, gently)

            torture.load(1 + chance.random() * 3, disks_fail)
            for cut in hurt:
                cut.restore()
            when = f"{which} {way}, {'ended' if gently else 'killed'}"
            pool.check()
            if pool.status()["needs_check"]:
                uthin("pool", "doctor", pool.path, "--mend")  # it has just been checked
            pool.serve()
            torture.compare_served(when)
            say(f"{when}: {torture.model.next_stamp} writes, {torture.operations} commands so far; nothing lost")
        torture.delete_all()
        pool.close()
        check(cuts["metadata"].path, thorough=True)
    for cut in cuts.values():
        cut.remove()
    writes = torture.model.next_stamp
    if writes < 30 * len(ROUNDS) or not failed:
        raise Failed(f"only {writes} writes, and {failed} pools that failed: this shows nothing")
    print(f"disks failed in {len(ROUNDS)} ways under {writes} writes, {failed} times the pool stopped: nothing flushed was lost")


if __name__ == "__main__":
    main(story)
