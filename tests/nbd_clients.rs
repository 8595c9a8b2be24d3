//! Real NBD clients against the server: what they write is what they read, and what they are told is true.
//!
//! A client that is missing fails its test with the package that has it: nothing is skipped.

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "nbd/harness.rs"]
mod harness;

use harness::{MIB, Served};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use uthin::frontend::nbd::{Address, Limits};
use uthin::units::BlockSize;

/// Runs a client to its end, which must be a good one; returns what it printed. `timeout` ends one that hangs.
fn client(package: &str, program: &str, arguments: &[impl AsRef<OsStr>]) -> String {
    let (good, output) = attempt(package, program, arguments);
    assert!(good, "{program} failed:\n{output}");
    output
}

/// Runs a client; whether it ended well, and what it printed.
fn attempt(package: &str, program: &str, arguments: &[impl AsRef<OsStr>]) -> (bool, String) {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().expect("sh starts");
    assert!(found.status.success(), "{program} is missing: apt-get install {package}");
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120", program])
        .args(arguments)
        .output()
        .expect("timeout starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn served(size_bytes: u64) -> Served {
    let mut served = Served::new(2 * size_bytes);
    served.volume("v1", size_bytes);
    served
}

/// A sparse file with runs of random bytes, some at odd places.
fn image(path: &Path, size_bytes: u64, seed: u64) {
    let file = File::create(path).expect("a file");
    file.set_len(size_bytes).expect("room");
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..40 {
        let mut bytes = vec![0; random.random_range(1..400_000)];
        random.fill(&mut bytes[..]);
        let at = random.random_range(0..size_bytes - bytes.len() as u64);
        file.write_all_at(&bytes, at).expect("room");
    }
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).expect("readable") == fs::read(other).expect("readable")
}

#[test]
fn nbdinfo_is_told_what_there_is() {
    let mut served = served(64 * MIB);
    served.volume("v2", MIB);
    served.snapshot("v2", "s2");
    let info = client("libnbd-bin", "nbdinfo", &["--json", &served.uri("v1")]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let export = &info["exports"][0];
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!((info["structured"].as_bool(), info["TLS"].as_bool()), (Some(true), Some(false)));
    assert_eq!(export["export-size"], 64 * MIB);
    assert_eq!(export["description"], "thin volume v1");
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation", "uthin:mapping"]));
    for able in [
        "can_cache",
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_df",
        "can_multi_conn",
    ] {
        assert_eq!(export[able], true, "{able}");
    }
    for not in ["is_read_only", "is_rotational"] {
        assert_eq!(export[not], false, "{not}");
    }
    let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"]
        .map(|size| export[size].as_u64());
    assert_eq!(sizes, [Some(512), Some(65_536), Some(32 << 20)]);
    let list = client("libnbd-bin", "nbdinfo", &["--list", "--json", &served.uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let names: Vec<_> =
        list["exports"].as_array().expect("a list").iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["v1", "v2", "s2"]);
    assert_eq!(list["exports"][2]["is_read_only"], true);
    let (good, message) = attempt("libnbd-bin", "nbdinfo", &[served.uri("nope")]);
    assert!(!good && message.contains("No such file or directory for export: nope"), "{message}");
    // QEMU's tools show the server's own words.
    let (good, message) = attempt("qemu-utils", "qemu-img", &["info", &served.uri("nope")]);
    assert!(!good && message.contains("there is no volume `nope`"), "{message}");
    let (good, message) = attempt("qemu-utils", "qemu-img", &["info", &served.uri("")]);
    assert!(!good && message.contains("name an export: there are v1, v2, s2"), "{message}");
    served.close();
}

#[test]
fn nbdcopy_there_and_back_is_byte_exact() {
    let served = served(96 * MIB);
    let (there, back) = (served.path("there"), served.path("back"));
    for (seed, options) in [(1, &["--connections=1", "--requests=1"][..]), (2, &["--allocated"]), (3, &[])] {
        image(&there, 96 * MIB, seed);
        let uri = served.uri("v1");
        let arguments = |from: &OsStr, to: &OsStr| {
            let options = options.iter().map(|option| OsStr::new(*option).to_owned());
            options
                .chain([OsStr::new("--flush").to_owned(), from.to_owned(), to.to_owned()])
                .collect::<Vec<_>>()
        };
        client("libnbd-bin", "nbdcopy", &arguments(there.as_os_str(), uri.as_ref()));
        File::create(&back).expect("a file").set_len(96 * MIB).expect("room");
        client("libnbd-bin", "nbdcopy", &arguments(uri.as_ref(), back.as_os_str()));
        assert!(same(&there, &back), "{options:?}");
    }
    served.close();
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let served = served(64 * MIB);
    let (there, back) = (served.path("there"), served.path("back"));
    let (there_text, back_text) = (there.display().to_string(), back.display().to_string());
    let uri = served.uri("v1");
    let qemu = |arguments: &[&str]| client("qemu-utils", "qemu-img", arguments);
    image(&there, 64 * MIB, 7);
    // Twice: onto nothing, and onto what the first left, with zeroes to be made where there was data.
    for _ in 0..2 {
        qemu(&["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", &there_text, &uri]);
        qemu(&["compare", "-f", "raw", "-F", "raw", &there_text, &uri]);
        image(&there, 64 * MIB, 8);
    }
    image(&there, 64 * MIB, 8);
    qemu(&["convert", "-f", "raw", "-O", "raw", &uri, &back_text]);
    assert!(same(&there, &back));
    let (good, message) =
        attempt("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", "-s", &uri, "/dev/null"]);
    assert!(!good, "{message}");

    let mut other = Served::new(64 * MIB);
    other.volume("v1", 16 * MIB);
    let mut writer = other.connect("v1", false);
    assert_eq!(writer.write(MIB, &[1; 65_536]), 0);
    assert_eq!(writer.write(3 * MIB, &[1; 512]), 0);
    let map = qemu(&["map", "--output=json", "-f", "raw", &other.uri("v1")]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let data: Vec<(u64, u64)> = map
        .as_array()
        .expect("a list")
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| {
            (extent["start"].as_u64().expect("a number"), extent["length"].as_u64().expect("a number"))
        })
        .collect();
    assert_eq!(data, [(MIB, 65_536), (3 * MIB, 65_536)]);
    let map = client("libnbd-bin", "nbdinfo", &["--map", "--totals", &other.uri("v1")]);
    assert!(map.contains("131072") && map.contains("hole,zero"), "{map}");
    drop(writer);
    other.close();
    served.close();
}

#[test]
fn what_is_shared_is_told_and_still_is_data() {
    let mut served = served(16 * MIB);
    let mut writer = served.connect("v1", true);
    let mut image = vec![0_u8; 16 * MIB as usize];
    for (at, seed) in [(0, 1_u8), (5 * MIB as usize, 2), (9 * MIB as usize, 3)] {
        let bytes: Vec<u8> = (0..MIB as usize).map(|at| (at / 11) as u8 ^ seed).collect();
        assert_eq!(writer.write(at as u64, &bytes), 0);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    served.snapshot("v1", "s1");
    // One block is the volume's own again, and another is gone.
    let own = vec![7_u8; 65_536];
    assert_eq!(writer.write(5 * MIB, &own), 0);
    writer.send(4, 0, 1, 9 * MIB, 65_536);
    assert_eq!(writer.reply(0).error, 0);
    let snapshot_image = image.clone();
    image[5 * MIB as usize..][..65_536].copy_from_slice(&own);
    image[9 * MIB as usize..][..65_536].fill(0);

    let map = |context: &str, export: &str| -> Vec<(u64, u64)> {
        let map = format!("--map={context}");
        let found = client("libnbd-bin", "nbdinfo", &[map.as_str(), "--json", &served.uri(export)]);
        let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
        let extents = found.as_array().expect("a list").iter();
        extents
            .map(|extent| {
                (extent["length"].as_u64().expect("length"), extent["type"].as_u64().expect("type"))
            })
            .collect()
    };
    let block = 65_536;
    let mapping = [
        (MIB, 5),
        (4 * MIB, 3),
        (block, 0),
        (MIB - block, 5),
        (3 * MIB + block, 3),
        (MIB - block, 5),
        (6 * MIB, 3),
    ];
    assert_eq!(map("uthin:mapping", "v1"), mapping);
    let allocation = [(MIB, 0), (4 * MIB, 3), (MIB, 0), (3 * MIB + block, 3), (MIB - block, 0), (6 * MIB, 3)];
    assert_eq!(map("base:allocation", "v1"), allocation);

    // A hole that does not read zeros would be passed over by some of these.
    let (there, snapshot) = (served.path("there"), served.path("snapshot"));
    fs::write(&there, &image).expect("room");
    fs::write(&snapshot, &snapshot_image).expect("room");
    for (export, expected) in [("v1", &there), ("s1", &snapshot)] {
        let (uri, back) = (served.uri(export), served.path("back"));
        let _ = fs::remove_file(&back);
        client("libnbd-bin", "nbdcopy", &[uri.as_str(), back.to_str().expect("text")]);
        assert!(same(&back, expected), "nbdcopy of {export}");
        let qemu = |arguments: &[&str]| attempt("qemu-utils", "qemu-img", arguments);
        let back_text = back.display().to_string();
        for format in ["raw", "qcow2"] {
            let _ = fs::remove_file(&back);
            let (good, said) = qemu(&["convert", "-f", "raw", "-O", format, &uri, &back_text]);
            assert!(good, "{said}");
            let expected = expected.display().to_string();
            let (good, said) = qemu(&["compare", "-f", format, "-F", "raw", &back_text, &expected]);
            assert!(good, "{export} as {format}: {said}");
        }
        let expected = expected.display().to_string();
        let (good, said) = qemu(&["compare", "-f", "raw", "-F", "raw", &uri, &expected]);
        assert!(good, "{said}");
    }
    // Two exports that share nearly everything and are not the same.
    let (good, said) = attempt(
        "qemu-utils",
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &served.uri("v1"), &served.uri("s1")],
    );
    assert!(!good && said.contains(&format!("Content mismatch at offset {}", 5 * MIB)), "{said}");
    drop(writer);
    served.close();
}

#[test]
fn qemu_io_patterns_hold() {
    let mut served = served(16 * MIB);
    let io = |served: &Served, export: &str, commands: &[&str]| {
        let uri = served.uri(export);
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        client("qemu-utils", "qemu-io", &arguments)
    };
    let output = io(
        &served,
        "v1",
        &[
            "write -P 0x11 0 1M",
            "write -f -P 0x22 512 512",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1k 1023k",
            "aio_write -P 0x33 2M 1M",
            "aio_write -P 0x44 5M 64k",
            "aio_flush",
            "read -P 0x33 2M 1M",
            "write -z -f 2M 128k",
            "read -P 0 2M 128k",
            "read -P 0x33 2176k 896k",
            "write -z -u 4600k 1M",
            "read -P 0 5M 64k",
            "discard 0 1M",
            "flush",
            "read -P 0 0 1M",
        ],
    );
    assert!(!output.contains("Pattern verification failed") && !output.contains("failed:"), "{output}");
    served.snapshot("v1", "s1");
    let output = io(&served, "v1", &["write -P 0x55 2M 4k", "read -P 0x55 2M 4k", "read -P 0 2052k 124k"]);
    assert!(!output.contains("failed"), "{output}");
    let uri = served.uri("s1");
    let arguments = ["-r", "-f", "raw", "-c", "read -P 0 2M 128k", "-c", "read -P 0x33 2176k 896k", &uri];
    let output = client("qemu-utils", "qemu-io", &arguments);
    assert!(!output.contains("failed"), "{output}");
    let (good, message) = attempt("qemu-utils", "qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    // Versions differ in how they say it.
    let message = message.to_lowercase();
    assert!(!good && (message.contains("read-only") || message.contains("permission denied")), "{message}");
    served.close();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let mut served = served(64 * MIB);
    let uri = served.uri("v1");
    let job = format!(
        "[global]\nioengine=nbd\nuri={uri}\nverify=crc32c\nverify_fatal=1\nverify_state_save=0\nserialize_overlap=1\nrandrepeat=1\n\
         bsrange=512-256k\nblockalign=512\nfsync=64\ntime_based=0\niodepth=16\n\
         [random]\nrw=randwrite\noffset=0\nsize=24m\n\
         [sequential]\nrw=write\noffset=24m\nsize=24m\n\
         [mixed]\nrw=randrw\noffset=48m\nsize=16m\n"
    );
    let path = served.path("job.fio");
    fs::write(&path, job).expect("room");
    let run = |served: &Served| {
        let status = served.path("fio.json").display().to_string();
        let arguments =
            [path.as_os_str().to_owned(), "--output-format=json".into(), format!("--output={status}").into()];
        client("fio", "fio", &arguments);
        let report = fs::read_to_string(&status).expect("a report");
        let report: serde_json::Value =
            serde_json::from_str(&report[report.find('{').expect("JSON")..]).expect("JSON");
        let jobs = report["jobs"].as_array().expect("jobs").clone();
        assert_eq!(jobs.len(), 3);
        for job in jobs {
            assert_eq!(job["error"], 0, "{job}");
            assert!(
                job["read"]["total_ios"].as_u64() > Some(0) && job["write"]["total_ios"].as_u64() > Some(0)
            );
        }
    };
    run(&served);
    // Everything shared, with room for the copies.
    served.snapshot("v1", "s1");
    run(&served);
    served.close();
}

/// libnbd from Python, for what the tools above do not do.
fn libnbd(served: &Served, script: &str) -> String {
    let uris: Vec<String> = served.server.addresses().iter().map(|address| address.uri("v1")).collect();
    let preamble = format!("import nbd, errno, sys\nuris = {uris:?}\n");
    let (good, output) = attempt("python3", "/usr/bin/python3", &["-c", "import nbd"]);
    assert!(good, "the Python module nbd is missing: apt-get install python3-libnbd\n{output}");
    client("python3", "/usr/bin/python3", &["-c", &(preamble + script)])
}

#[test]
fn libnbd_sees_errors_and_flushes_across_connections() {
    let limits = Limits { stop_grace: Duration::from_millis(500), ..Limits::default() };
    let tcp: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let mut served = Served::with(64 * MIB, BlockSize::MIN, &[tcp], limits);
    served.volume("v1", 32 * MIB);
    let output = libnbd(
        &served,
        r#"
handles = []
for uri in uris * 2:
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    h.set_strict_mode(0)
    handles.append(h)
a, b = handles[0], handles[1]
assert all(h.can_multi_conn() and h.get_structured_replies_negotiated() for h in handles)
assert a.get_size() == 32 << 20

a.pwrite(b"\x5a" * 65536, 1 << 20)
b.flush()
assert all(h.pread(65536, 1 << 20) == bytearray(b"\x5a" * 65536) for h in handles)

def refused(code, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == code, (error, errno.errorcode[code])
        return
    raise AssertionError("no error")

size = a.get_size()
for h in handles:
    refused(errno.EINVAL, h.pread, 512, size)
    refused(errno.ENOSPC, h.pwrite, bytes(512), size)
    refused(errno.EINVAL, h.trim, 512, size)
    refused(errno.EINVAL, h.pread, 100, 0)
    refused(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
    refused(errno.EINVAL, h.cache, 512, size)
    refused(errno.EINVAL, h.cache, 100, 0)
    h.cache(size, 0)
    h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
    h.trim(1 << 20, 0, nbd.CMD_FLAG_FUA)
    h.pread(1 << 20, 512, nbd.CMD_FLAG_DF)

extents = []
b.block_status(size, 0, lambda context, offset, found, error: extents.append((context, offset, found)))
assert extents == [("base:allocation", 0, [1 << 20, 3, 65536, 0, size - (1 << 20) - 65536, 3])], extents
one = []
b.block_status(size - (1 << 20), 1 << 20, lambda context, offset, found, error: one.append(found), nbd.CMD_FLAG_REQ_ONE)
assert one == [[65536, 0]], one

chunks = []
data = a.pread_structured(1 << 20, 512 * 1024, lambda part, offset, status, error: chunks.append((len(part), offset, status)))
assert chunks == [(1 << 20, 512 * 1024, nbd.READ_DATA)], chunks

done = [0]
cookies = []
buffers = [nbd.Buffer.from_bytearray(bytearray([at & 255]) * 4096) for at in range(64)]
def finished(error):
    assert error.value == 0
    done[0] += 1
    return 1
for turn in range(20):
    for at, buffer in enumerate(buffers):
        handles[at % 4].aio_pwrite(buffer, (turn * 64 + at) * 4096, completion=finished)
    while any(h.aio_in_flight() for h in handles):
        for h in handles:
            if h.aio_in_flight():
                h.poll(-1)
assert done[0] == 20 * 64
handles[3].flush()
for at in range(0, 20 * 64, 37):
    assert handles[at % 4].pread(4096, at * 4096) == bytearray([at % 64]) * 4096
for h in handles:
    h.shutdown()
print("good")
"#,
    );
    assert!(output.ends_with("good\n"), "{output}");
    served.close();
}

#[test]
fn libnbd_negotiates_step_by_step() {
    let served = served(16 * MIB);
    let output = libnbd(
        &served,
        r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.set_request_structured_replies(True)
h.connect_uri(uris[0])
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["v1"], names
h.set_export_name("nope")
try:
    h.opt_info()
    raise AssertionError("there is none")
except nbd.Error as error:
    pass
h.set_export_name("v1")
h.set_full_info(True)
h.opt_info()
assert h.get_canonical_export_name() == "v1" and h.get_export_description() == "thin volume v1"
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
contexts = []
h.opt_list_meta_context(contexts.append)
assert contexts == ["base:allocation", "uthin:mapping"], contexts
contexts = []
h.add_meta_context("uthin:")
h.opt_list_meta_context(contexts.append)
assert contexts == ["uthin:mapping"], contexts
h.clear_meta_contexts()
h.add_meta_context("base:allocation")
h.add_meta_context("x-nobody:knows")
h.opt_go()
assert h.can_meta_context("base:allocation") and not h.can_meta_context("x-nobody:knows")
assert h.pread(512, 0) == bytearray(512)
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uris[0])
h.opt_abort()

h = nbd.NBD()
h.set_handshake_flags(0)
h.set_request_structured_replies(False)
h.connect_uri(uris[0])
assert h.get_size() == 16 << 20 and not h.get_structured_replies_negotiated()
h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA)
assert h.pread(512, 0) == bytearray(b"x" * 512)
h.shutdown()
print("good")
"#,
    );
    assert!(output.ends_with("good\n"), "{output}");
    served.close();
}

#[test]
fn nbdkit_and_its_filters_take_us_for_a_server() {
    // nbdkit's plugin is one more client, with its own ideas of what is sent when.
    let served = served(16 * MIB);
    let socket = served.socket().display().to_string();
    let inner =
        "nbdcopy --flush \"$there\" \"$uri\" && nbdcopy \"$uri\" \"$back\" && cmp \"$there\" \"$back\"";
    let there = served.path("there");
    image(&there, 16 * MIB, 5);
    let back = served.path("back");
    File::create(&back).expect("a file").set_len(16 * MIB).expect("room");
    let exports = format!("export there='{}' back='{}'; {inner}", there.display(), back.display());
    let arguments = ["-U", "-", "nbd", &format!("socket={socket}"), "export=v1", "--run", &exports];
    client("nbdkit", "nbdkit", &arguments);
    served.close();
}
