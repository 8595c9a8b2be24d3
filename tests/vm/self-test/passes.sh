# What the lab is for: a kernel with these, and device-mapper's thin pool at work.
set -eu
for module in dm-thin-pool ublk_drv nbd; do modprobe "$module"; done
modprobe brd rd_nr=2 rd_size=65536
[ -c /dev/ublk-control ] && [ -b /dev/nbd0 ]
dmsetup create pool --table '0 131072 thin-pool /dev/ram0 /dev/ram1 128 0'
dmsetup message pool 0 'create_thin 0'
dmsetup create thin --table '0 131072 thin /dev/mapper/pool 0'
dd if=/dev/urandom of=/dev/mapper/thin bs=64k count=3 oflag=direct status=none
dmsetup status thin | grep -qx '0 131072 thin 384 383'
dmsetup remove thin pool
echo 'the modules that the lab is for are there'
