"""A thin pool that LVM made: adopted with LVM's own backup, the same in names, sizes, origins and contents; written, and LVM has it back."""

import json
import os
import random
from pathlib import Path

from contents import Contents, load
from devices import Device, ram_disks
from thin import Failed, UthinPool, check, main, run, say, uthin

BLOCK = 64 << 10
SIZES = {"root": 40 << 20, "var": 24 << 20, "fixed": 8 << 20}


class Lvm:
    """LVM without udev, and with its own files in a folder: the guest's are not to be written."""

    def __init__(self, folder):
        home = Path(folder) / "lvm"
        home.mkdir()
        os.environ["LVM_SYSTEM_DIR"] = str(home)
        (home / "lvm.conf").write_text(
            "devices { use_devicesfile=0 scan=[\"/dev\"] external_device_info_source=\"none\" }\n"
            "activation { udev_sync=0 udev_rules=0 monitoring=0 }\n"
            "global { use_lvmpolld=0 locking_dir=\"/run/lock/lvm\" thin_check_executable=\"\" event_activation=0 }\n"
        )
        Path("/run/lock/lvm").mkdir(parents=True, exist_ok=True)

    def __call__(self, *words):
        return run(*words)


def write(name, held, chance):
    with Device(f"/dev/mapper/vg0-{name}") as device:
        load(device, held[name], chance, 40, BLOCK)


def story(folder, _):
    chance = random.Random(11)
    (disk,) = ram_disks(1, 512 << 20)
    run("modprobe", "dm-thin-pool")
    lvm = Lvm(folder)
    lvm("pvcreate", disk)
    lvm("vgcreate", "-s", "1m", "vg0", disk)
    lvm("lvcreate", "-L", "256m", "-c", "64k", "-T", "vg0/pool", "--poolmetadatasize", "4m")
    held = {}
    for name, size in SIZES.items():
        lvm("lvcreate", "-V", f"{size}b", "-n", name, "-T", "vg0/pool")
        held[name] = Contents(size)
        write(name, held, chance)
    lvm("lvcreate", "-s", "-n", "root.monday", "-kn", "vg0/root")
    held["root.monday"] = held["root"].copy()
    write("root", held, chance)
    lvm("lvremove", "-y", "vg0/fixed")
    del held["fixed"]
    lvm("lvcreate", "-V", "16m", "-n", "later", "-T", "vg0/pool")
    held["later"] = Contents(16 << 20)
    write("later", held, chance)
    lvm("lvchange", "-an", "vg0/root.monday")
    lvm("lvchange", "-pr", "vg0/root.monday")
    lvm("vgcfgbackup", "-f", f"{folder}/backup", "vg0")
    # Where pool and metadata lie: LVM would give its hidden volumes for reading only.
    tables = {part: run("dmsetup", "table", f"vg0-pool_{part}").strip() for part in ("tmeta", "tdata")}
    lvm("vgchange", "-an", "vg0")
    for part, table in tables.items():
        run("dmsetup", "create", part, "--table", table)
    say("made by LVM, and its devices mapped without it")

    devices = (Path("/dev/mapper/tmeta"), Path("/dev/mapper/tdata"))
    check(devices[0])
    path = Path(folder) / "pool"
    adopted = json.loads(
        uthin("pool", "adopt", path, "--metadata", devices[0], "--data", devices[1], "--lvm", f"{folder}/backup", "--json")
    )
    found = {volume["name"]: (volume["size_bytes"], volume["size_from"], volume["read_only"]) for volume in adopted["volumes"]}
    wanted = {name: (len(contents.bytes), "backup", name == "root.monday") for name, contents in held.items()}
    if found != wanted or adopted["notes"]:
        raise Failed(f"adopted {adopted}, expected {wanted} and nothing to note")
    with UthinPool(folder, *devices, exists=True) as pool:
        if pool.status()["notes"]:
            raise Failed(f"catalog and metadata are not in step: {pool.status()['notes']}")
        if pool.volumes()["root.monday"]["origin"] != "root":
            raise Failed(f"the snapshot's origin is lost: {pool.volumes()['root.monday']}")
        pool.serve()
        for name, contents in held.items():
            opened = pool.open(name)
            contents.compare(opened, f"uthin's volume {name}")
            if name != "root.monday":
                load(opened, contents, chance, 30, BLOCK)
            opened.shutdown()
        pool.close()
    say(f"{len(held)} volumes are what LVM's were, and are written")

    for part in tables:
        run("dmsetup", "remove", part)
    lvm("vgchange", "-ay", "vg0")
    lvm("lvchange", "-ay", "vg0/root.monday")
    for name, contents in held.items():
        with Device(f"/dev/mapper/vg0-{name}", writable=False) as device:
            contents.compare(device, f"LVM's volume {name}")
    lvm("vgchange", "-an", "vg0")
    print(f"{len(held)} volumes went from LVM to uthin and back, equal each time")


if __name__ == "__main__":
    main(story)
