"""What every sector of a volume may hold while several clients write it and the daemon may die at any moment.

A write puts a stamp of its own, repeated, into each sector. A sector's history is what was acknowledged since the last flush
that is known to cover it; after a crash it may hold any of that, or what was in flight.
"""

import threading

SECTOR = 512
ZEROS = 0  # the stamp of a sector that nobody wrote, or that was discarded


def sectors_of(stamp, count):
    return stamp.to_bytes(8, "little") * (SECTOR // 8 * count)


def stamps_in(data):
    """The stamp of each sector; None for a sector that is torn."""
    stamps = []
    for at in range(0, len(data), SECTOR):
        sector = data[at : at + SECTOR]
        first = sector[:8]
        stamps.append(int.from_bytes(first, "little") if sector == first * (SECTOR // 8) else None)
    return stamps


class Model:
    """Thread-safe; writes in flight never overlap (each writer has sectors of its own)."""

    def __init__(self, sectors, keeps_all=False):
        self.keeps_all = keeps_all  # a crash leaves whatever was acknowledged, flushed or not
        self.lock = threading.Lock()
        self.clock = 0
        self.next_stamp = 1
        self.history = [[(0, ZEROS)] for _ in range(sectors)]
        self.in_flight = {}
        self.taking = []  # snapshots under way: each a dict of sector -> set of stamps written meanwhile

    def write_begins(self, first, count, stamp=None):
        """Returns the stamp to write; zeroes and discards bring their own, ZEROS."""
        with self.lock:
            if stamp is None:
                stamp = self.next_stamp
                self.next_stamp += 1
            for sector in range(first, first + count):
                self.in_flight[sector] = stamp
                for taking in self.taking:
                    taking.setdefault(sector, set()).add(stamp)
            return stamp

    def write_ends(self, first, count, stamp, forced=False):
        with self.lock:
            self.clock += 1
            for sector in range(first, first + count):
                del self.in_flight[sector]
                if forced:
                    self.history[sector] = [(self.clock, stamp)]
                else:
                    self.history[sector].append((self.clock, stamp))

    def flush_begins(self):
        with self.lock:
            return self.clock

    def flush_ends(self, covers):
        with self.lock:
            for history in self.history:
                while len(history) > 1 and history[1][0] <= covers:
                    history.pop(0)

    def snapshot_begins(self):
        """Returns what snapshot_ends wants."""
        with self.lock:
            meanwhile = {sector: {stamp} for sector, stamp in self.in_flight.items()}
            self.taking.append(meanwhile)
            return [history[-1][1] for history in self.history], meanwhile

    def snapshot_ends(self, begun):
        """The snapshot's contents: what was acknowledged before, or what was written meanwhile."""
        with self.lock:
            self.taking = [taking for taking in self.taking if taking is not begun[1]]
            return begun

    def _allowed(self, sector):
        """What a crash may have left."""
        history = self.history[sector]
        allowed = {stamp for _, stamp in (history[-1:] if self.keeps_all else history)}
        if sector in self.in_flight:
            allowed.add(self.in_flight[sector])
        return allowed

    def or_after_crash(self, begun):
        """The contents of a snapshot that was begun before a crash, and of which nobody knows whether it was taken after it."""
        before, meanwhile = begun
        both = {sector: meanwhile.get(sector, set()) | self._allowed(sector) for sector in range(len(before))}
        return before, both

    def after_crash(self, found):
        """Returns a complaint, or None; takes what was found as what is there now."""
        for sector, stamp in enumerate(found):
            allowed = self._allowed(sector)
            if stamp not in allowed:
                return f"sector {sector} holds {stamp}, may hold {sorted(allowed)}"
        self.history = [[(self.clock, stamp)] for stamp in found]
        self.in_flight.clear()
        self.taking.clear()
        return None

    def last(self, first, count):
        """What was acknowledged last, of sectors that nobody is writing."""
        with self.lock:
            return [history[-1][1] for history in self.history[first : first + count]]

    def now(self):
        return [history[-1][1] for history in self.history]


def compare_snapshot(contents, found):
    """Returns a complaint, or None."""
    before, meanwhile = contents
    for sector, stamp in enumerate(found):
        if stamp != before[sector] and stamp not in meanwhile.get(sector, ()):
            return f"sector {sector} holds {stamp}, may hold {before[sector]} or {sorted(meanwhile.get(sector, ()))}"
    return None
