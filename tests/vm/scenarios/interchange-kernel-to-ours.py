"""A pool that the kernel made (two thins, a snapshot, discards, a transaction id): uthin uses it without a catalog, and gives it back."""

import random

from devices import ram_disks
from from_kernel import round_trip
from thin import main


def story(folder, _):
    data, metadata = ram_disks(2, 256 << 20)
    held = round_trip(folder, (metadata, data), random.Random(2), 64 << 10)
    print(f"{len(held)} volumes went to uthin and back, equal each time")


if __name__ == "__main__":
    main(story)
