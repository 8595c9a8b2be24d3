//! Sizes as people write and read them: `20G` is 20 GiB, `64K` is 64 KiB, a bare number is bytes.

use crate::error::{Error, ErrorKind, Result};

const UNITS: [(char, u32); 6] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50), ('E', 60)];

/// Understands a size: digits, perhaps a decimal fraction, perhaps a unit (`K`, `M`, `G`, `T`, `P`, `E`, in either case, also
/// written `Ki` or `KiB`). Units are powers of 1024. What does not come out as whole bytes is refused, and so are `KB` and its
/// kin, which mean 1000 to some and 1024 to others.
pub(crate) fn parse(text: &str) -> Result<u64> {
    let wrong = |why: &str| {
        Error::new(ErrorKind::Invalid, format!("`{text}` is no size: {why}"))
            .hint("write bytes, or a number with K, M, G, T or P (powers of 1024), such as 20G")
    };
    let digits_end =
        text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let shift = unit_shift(unit).ok_or_else(|| {
        let decimal = unit.len() == 2 && unit.to_ascii_uppercase().ends_with('B');
        match text.chars().next() {
            Some('+') => return wrong("so much more than what?"),
            Some('-') => return wrong("it is less than nothing"),
            Some(_) | None => {}
        }
        wrong(if decimal {
            "that unit means 1000 to some and 1024 to others"
        } else {
            "there is no such unit"
        })
    })?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
        return Err(wrong("it is no number"));
    }
    let whole: u128 = whole.parse().map_err(|_| wrong("it is too large"))?;
    if fraction.len() > 18 {
        return Err(wrong("it is too precise"));
    }
    let scale = 10_u128.pow(fraction.len() as u32);
    let fraction: u128 =
        if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| wrong("it is no number"))? };
    let units = whole.checked_mul(scale).and_then(|units| units.checked_add(fraction));
    let scaled =
        units.and_then(|units| units.checked_mul(1 << shift)).ok_or_else(|| wrong("it is too large"))?;
    if !scaled.is_multiple_of(scale) {
        return Err(wrong("it is no whole number of bytes"));
    }
    u64::try_from(scaled / scale).map_err(|_| wrong("it is too large"))
}

/// The size that something is to have: `20G`, or `+5G` for so much more than it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NewSize {
    To(u64),
    By(u64),
}

impl NewSize {
    /// As [`parse`], with or without a `+`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix('+') {
            Some(more) => parse(more).map(NewSize::By),
            None if text.starts_with('-') => {
                let message = format!("`{text}`: nothing is taken away from a size");
                Err(Error::new(ErrorKind::Invalid, message)
                    .hint("give the size that it is to have, such as 20G"))
            }
            None => parse(text).map(NewSize::To),
        }
    }

    /// In bytes; `now` is asked for what it has if that matters. `Invalid` for more than any number of bytes.
    pub(crate) fn bytes(self, now: impl FnOnce() -> Result<u64>) -> Result<u64> {
        match self {
            NewSize::To(bytes) => Ok(bytes),
            NewSize::By(more) => now()?.checked_add(more).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("{more} bytes more are too many"))
                    .hint("give a smaller size")
            }),
        }
    }
}

fn unit_shift(unit: &str) -> Option<u32> {
    let mut letters = unit.chars();
    let Some(letter) = letters.next() else { return Some(0) };
    let rest = letters.as_str();
    if letter.eq_ignore_ascii_case(&'B') && rest.is_empty() {
        return Some(0);
    }
    let known = rest.is_empty() || rest.eq_ignore_ascii_case("i") || rest.eq_ignore_ascii_case("ib");
    let found = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&letter));
    found.filter(|_| known).map(|(_, shift)| *shift)
}

/// About three digits and a unit: `512`, `64K`, `1.25G`. What is a whole number of units looks like what [`parse`] takes.
pub(crate) fn human(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >> shift != 0) else {
        return bytes.to_string();
    };
    let hundredths = (u128::from(bytes) * 100 + (1 << shift) / 2) >> shift;
    let (whole, fraction) = (hundredths / 100, hundredths % 100);
    match whole {
        _ if fraction == 0 => format!("{whole}{letter}"),
        0..10 if !fraction.is_multiple_of(10) => format!("{whole}.{fraction:02}{letter}"),
        0..100 if fraction >= 5 && (fraction + 5) / 10 < 10 => {
            format!("{whole}.{}{letter}", (fraction + 5) / 10)
        }
        _ => format!("{}{letter}", whole + u128::from(fraction >= 50)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_that_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64K", 65_536),
            ("64k", 65_536),
            ("64KiB", 65_536),
            ("64Ki", 65_536),
            ("20G", 20 << 30),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("4T", 4 << 40),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn so_much_more_is_a_size_to_have() {
        let bytes = |text, now| NewSize::parse(text).and_then(|size| size.bytes(|| Ok(now)));
        assert_eq!((bytes("5G", 1 << 30), bytes("+5G", 1 << 30)), (Ok(5 << 30), Ok(6 << 30)));
        assert!(bytes("-1G", 2 << 30).expect_err("negative").message().contains("nothing is taken away"));
        assert!(bytes("+1", u64::MAX).is_err() && bytes("++1", 0).is_err() && bytes("+", 0).is_err());
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            ".",
            "1.",
            ".5G",
            "1.2.3G",
            "-1",
            "+1",
            "1 G",
            " 1",
            "1G ",
            "1X",
            "10GB",
            "1KB",
            "1GG",
            "1iB",
            "1kibi",
            "0x10",
            "1e3",
            "16E",
            "18446744073709551616",
            "0.3",
            "0.0001K",
            "1.0000000000000000000001G",
            "٣",
            "1_000",
            "99999999999999999999999999999999999999999999",
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.next_step().is_some());
        }
        assert!(parse("10GB").expect_err("ambiguous").message().contains("1000"));
    }

    #[test]
    fn sizes_that_people_read() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (1023, "1023"),
            (1024, "1K"),
            (65_536, "64K"),
            (1_310_720, "1.25M"),
            (1_288_490_188, "1.2G"),
            (12_884_901_888, "12G"),
            (13_207_024_435, "12.3G"),
            (214_211_483_238, "200G"),
            (1_073_741_823, "1024M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_people_read_can_be_written_and_is_close(bytes in any::<u64>(), shift in 0..64u32) {
            let bytes = bytes >> shift;
            let text = human(bytes);
            prop_assert!(text.len() <= 6, "{}", text);
            // Two decimals need not be whole bytes: as a number of units, then.
            let (number, unit) = text.split_at(text.find(char::is_alphabetic).unwrap_or(text.len()));
            let unit_bytes = if unit.is_empty() { 1 } else { parse(&format!("1{unit}")).expect("a unit") };
            let shown = number.parse::<f64>().expect("a number") * unit_bytes as f64;
            prop_assert!((shown - bytes as f64).abs() <= bytes as f64 * 0.0061, "{} for {}", text, bytes);
        }
    }
}
