# Every target installs what it needs first (tools/need says so aloud); only the Rust toolchain is assumed.

# libclang: the crate libublk-rs-sys reads the kernel's header with it.
RUST_NEEDS  := cargo gcc,libc6-dev=cc libclang-dev
CLIENTS     := fio libnbd-bin=nbdcopy e2fsprogs=mkfs.ext4 jq
TEST_NEEDS  := $(CLIENTS) qemu-utils=qemu-img nbdkit nbd-client openssl zstd python3 python3-libnbd
BENCH_NEEDS := $(CLIENTS) qemu-utils=qemu-nbd nbdkit python3

.PHONY: help build install lint test loom simulate torture fuzz-fsck vmtest bench-vm demo bench bench-fsck snapshots clean

help:
	@echo 'make build   release binaries: target/release/uthin and uthin-fsck'
	@echo 'make install PREFIX=/usr/local   them, their man pages, completion for bash, and links by the names of the thin_ tools in PREFIX/lib/uthin'
	@echo 'make demo    a pool, a volume, real NBD clients, a snapshot under load: under a minute'
	@echo 'make test    build, lint and all tests, real clients and independent checkers among them'
	@echo 'make loom    the lock-free parts in every order of their steps: seconds, once it is built'
	@echo 'make simulate SEEDS=1..10001   power cuts in a simulated world'
	@echo 'make fuzz-fsck IMAGES=1000000   mutated metadata through check, dump and repair, and every bit of a small pool flipped'
	@echo 'make torture ROUNDS=1000 SEED=1   the real daemon under several clients, killed with SIGKILL: about five seconds a round'
	@echo 'make vmtest KERNEL=stable   pools between us and the kernel'"'"'s own dm-thin, and block devices, in a virtual machine: half an hour'
	@echo 'make bench-vm   block devices beside the kernel'"'"'s dm-thin in the virtual machine; the table lands in bench/results/'
	@echo 'make bench   uthin beside its peers on this machine; the table lands in bench/results/'
	@echo 'make bench-fsck   uthin-fsck beside thin-provisioning-tools, 1 to 50 million mappings; needs 8 GB in /dev/shm, or see bench/fsck --help'
	@echo 'make snapshots COUNT=100000   that many snapshots of one volume, made and deleted beside a client that writes'
	@echo 'make lint    formatting and clippy'

build:
	@tools/need $(RUST_NEEDS)
	cargo build --locked --release --bins

PREFIX ?= /usr/local
install: build
	@tools/install "$(DESTDIR)$(PREFIX)"

lint:
	@tools/need $(RUST_NEEDS) rustfmt clippy
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

test: build lint
	@tools/need $(TEST_NEEDS)
	@tools/oracle >/dev/null
	cargo test --locked
	@$(MAKE) --no-print-directory loom
	@tests/bugs/run
	@tests/vm/lab --seconds 900 --quick || { [ $$? -eq 3 ] && echo 'test: LEFT OUT: the scenarios of tests/vm, no virtual machine can be had here'; }

# Threads are switched where they need not be three times at most; more with LOOM_MAX_PREEMPTIONS.
loom:
	@tools/need $(RUST_NEEDS)
	LOOM_LOG=0 cargo test --locked --manifest-path tests/loom/Cargo.toml --target-dir target/loom models::

# FIRST..END; a failing seed is named and replays exactly.
SEEDS ?= 1..10001
simulate:
	@tools/need $(RUST_NEEDS)
	UTHIN_SIM_SEEDS=$(SEEDS) cargo test --locked --release --lib sim:: -- --nocapture

# So many, or FIRST..END; a failing seed is named.
IMAGES ?= 1000000
fuzz-fsck:
	@tools/need $(RUST_NEEDS)
	UTHIN_FSCK_FUZZ=$(IMAGES) UTHIN_FSCK_FLIPS=all cargo test --locked --release --lib check::tests:: -- --nocapture

# The same seed does the same things to the daemon; the pool of a round that failed is kept in target/torture.
ROUNDS ?= 1000
SEED   ?=
torture: build
	@tools/need python3 python3-libnbd
	@tools/oracle >/dev/null
	UTHIN_KEEP=target/torture /usr/bin/python3 tests/live/torture.py $(ROUNDS) $(SEED)

# stable or newest: which of Debian's kernels. See tests/vm/lab.
KERNEL ?= stable
vmtest: build
	@tests/vm/lab --kernel $(KERNEL) --self-test
	@tests/vm/lab --kernel $(KERNEL)

bench-vm: build
	@bench/vm/run --kernel $(KERNEL)

demo: build
	@tools/need $(CLIENTS)
	@tools/demo

bench: build
	@tools/need $(BENCH_NEEDS)
	@bench/run
	cargo bench --locked --bench in_process

bench-fsck: build
	@tools/need python3
	@bench/fsck

COUNT ?= 100000
snapshots: build
	@tools/need fio python3
	@tools/oracle >/dev/null
	@bench/snapshots --count $(COUNT)

clean:
	cargo clean
