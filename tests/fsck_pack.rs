//! `pack`, `unpack` and `trim`: through us and through the tools of others, and what they refuse.

mod fsck_common;

use fsck_common::{fixture_names, folder, ours, text, theirs, unpack};
use std::fs;
use std::os::unix::fs::FileExt;
use uthin::format::Block;

/// The image without the blocks that no checksum identifies.
fn identified(image: &[u8]) -> Vec<u8> {
    let keep = |block: &[u8; 4096]| if Block(*block).kind().is_some() { *block } else { [0; 4096] };
    image.as_chunks::<4096>().0.iter().flat_map(keep).collect()
}

#[test]
fn packed_metadata_comes_back_through_us_and_through_others() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (ours_packed, theirs_packed, back) = (at("ours.pack"), at("theirs.pack"), at("back"));
    for name in fixture_names() {
        let path = unpack(&folder, &name);
        let image = identified(&fs::read(&path).expect("it is there"));
        ours(&["pack", "-f", "-i", text(&path), "-o", text(&ours_packed)]).good();
        theirs("thin_metadata_pack", &["-f", "-i", text(&path), "-o", text(&theirs_packed)]).good();
        for packed in [&ours_packed, &theirs_packed] {
            ours(&["unpack", "-f", "-i", text(packed), "-o", text(&back)]).good();
            assert!(fs::read(&back).expect("written") == image, "{name}: {}", packed.display());
        }
        theirs("thin_metadata_unpack", &["-f", "-i", text(&ours_packed), "-o", text(&back)]).good();
        assert!(fs::read(&back).expect("written") == image, "{name}: theirs of ours");
        let size = |path| fs::metadata(path).expect("it is there").len();
        assert!(size(&ours_packed) <= size(&theirs_packed) * 21 / 20, "{name}: about as small");
    }
}

#[test]
fn what_is_no_packed_metadata_is_refused_with_the_place() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let packed = folder.path().join("packed");
    let back = folder.path().join("back");
    ours(&["pack", "-i", text(&path), "-o", text(&packed)]).good();
    let good = fs::read(&packed).expect("written");
    let bad = folder.path().join("bad");
    let mut cases = vec![
        (Vec::new(), "too short"),
        (good[..20].to_vec(), "cut short"),
        (good[..35].to_vec(), "cut short"),
        (good[..good.len() - 1].to_vec(), "at byte"),
        (fs::read(&path).expect("it is there"), "no packed metadata: found magic"),
    ];
    let mut flipped = good.clone();
    flipped[60] ^= 0x55;
    cases.push((flipped, "at byte 40: a chunk that is no zlib stream"));
    let mut version = good.clone();
    version[8] = 4;
    cases.push((version, "version 4, expected 3"));
    for (bytes, words) in cases {
        fs::write(&bad, bytes).expect("written");
        let errors = ours(&["unpack", "-f", "-i", text(&bad), "-o", text(&back)]).refused();
        assert!(errors.contains(words), "{words}: {errors}");
    }
    let errors = ours(&["unpack", "-i", text(&packed), "-o", text(&path)]).refused();
    assert!(errors.contains("exists already"), "{errors}");
    let errors = ours(&["pack", "-f", "-i", text(&path), "-o", text(&path)]).refused();
    assert!(errors.contains("is the input as well"), "{errors}");
}

#[test]
fn trim_gives_back_what_nothing_refers_to() {
    let folder = folder();
    let metadata = unpack(&folder, "19-leaked");
    let data = folder.path().join("data");
    let block = vec![0xa5_u8; 65536];
    let file = fs::File::options().read(true).write(true).create_new(true).open(&data).expect("a file");
    file.set_len(20_000 * 65536).expect("sparse");
    // 0..1000 are mapped, 1000..1010 leaked, the rest free.
    for number in [0_u64, 999, 1000, 1009, 1010, 5000, 19_999] {
        file.write_all_at(&block, number * 65536).expect("written");
    }
    let before = fs::read(&metadata).expect("it is there");
    let told = ours(&["trim", "--metadata-dev", text(&metadata), "--data-dev", text(&data)]);
    assert_eq!(told.text(), "1245184000 bytes given back\n", "{}", told.errors);
    let mut found = vec![0; 65536];
    for (number, is_kept) in [(0_u64, true), (999, true), (1000, false), (1010, false), (19_999, false)] {
        file.read_exact_at(&mut found, number * 65536).expect("read");
        assert_eq!(found == block, is_kept, "block {number}");
    }
    assert!(fs::read(&metadata).expect("it is there") == before);

    file.set_len(65536).expect("cut");
    let errors = ours(&["trim", "--metadata-dev", text(&metadata), "--data-dev", text(&data)]).refused();
    assert!(errors.contains("smaller than the pool's 20000 blocks"), "{errors}");
    let mut bytes = before;
    bytes[9 * 4096 + 100] ^= 1;
    bytes[15 * 4096 + 100] ^= 1;
    bytes[20 * 4096 + 100] ^= 1;
    fs::write(&metadata, bytes).expect("written");
    let errors = ours(&["trim", "--metadata-dev", text(&metadata), "--data-dev", text(&data)]).refused();
    assert!(errors.contains("nobody can say which blocks are free"), "{errors}");
}

/// Somebody mails the packed file to who can help: damaged metadata must go through, a dump by mistake must not.
#[test]
fn what_has_no_block_of_metadata_is_not_packed() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let (mistake, packed) = (folder.path().join("mistake"), folder.path().join("packed"));
    let xml = ours(&["dump", text(&path)]).good();
    for (bytes, words) in [
        (xml, "it is an XML dump"),
        (vec![0; 8192], "the first block is all zeros"),
        (vec![0x55; 8192], "was the data device given"),
    ] {
        fs::write(&mistake, bytes).expect("written");
        let errors = ours(&["pack", "-f", "-i", text(&mistake), "-o", text(&packed)]).refused();
        assert!(errors.contains("no pool's metadata") && errors.contains(words), "{errors}");
        assert!(!packed.exists());
    }
    let mut damaged = fs::read(&path).expect("it is there");
    damaged[..4096].fill(0x55);
    fs::write(&mistake, damaged).expect("written");
    ours(&["pack", "-i", text(&mistake), "-o", text(&packed)]).good();
}
