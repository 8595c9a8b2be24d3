"""As interchange-kernel-to-ours, with blocks of 512 KiB, and with data on a loop device whose length is no multiple of it."""

import random
from pathlib import Path

from devices import loop_device, ram_disks
from from_kernel import round_trip
from thin import main


def story(folder, _):
    file = Path(folder) / "data.img"
    with open(file, "wb") as image:
        image.truncate((200 << 20) + (64 << 10) + 512)
    metadata = ram_disks(1, 16 << 20)[0]
    held = round_trip(folder, (metadata, loop_device(file)), random.Random(3), 512 << 10)
    print(f"{len(held)} volumes with blocks of 512 KiB went to uthin and back, equal each time")


if __name__ == "__main__":
    main(story)
