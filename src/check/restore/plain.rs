//! Mappings and references in the one way in which thin_dump and `uthin-fsck dump` write them, recognised without a general
//! reader of XML. What is written in any other way is no error here: it is left to that reader.

use crate::check::stream::Run;

/// An element without content.
pub(super) enum Element<'a> {
    /// `<single_mapping …/>` or `<range_mapping …/>`.
    Mapping(Run),
    /// `<ref name="…"/>`.
    Reference(&'a str),
}

/// The element that comes next behind white space: where it begins, what it is, and where it ends. `None` when it is written
/// in another way, or not whole in `bytes`.
#[inline]
pub(super) fn element(bytes: &[u8]) -> Option<(usize, Element<'_>, usize)> {
    let begin = bytes.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let mut rest = &bytes[begin..];
    let found = if skip(&mut rest, b"<single_mapping").is_some() {
        let begin = attribute(&mut rest, b" origin_block=\"")?;
        let data_begin = attribute(&mut rest, b" data_block=\"")?;
        let time = attribute(&mut rest, b" time=\"")?;
        Element::Mapping(Run { begin, data_begin, length: 1, time: u32::try_from(time).ok()? })
    } else if skip(&mut rest, b"<range_mapping").is_some() {
        let begin = attribute(&mut rest, b" origin_begin=\"")?;
        let data_begin = attribute(&mut rest, b" data_begin=\"")?;
        let length = attribute(&mut rest, b" length=\"")?;
        let time = attribute(&mut rest, b" time=\"")?;
        Element::Mapping(Run { begin, data_begin, length, time: u32::try_from(time).ok()? })
    } else {
        skip(&mut rest, b"<ref name=\"")?;
        let length = memchr::memchr(b'"', rest)?;
        let (name, after) = rest.split_at(length);
        if memchr::memchr2(b'&', b'<', name).is_some() {
            return None;
        }
        rest = &after[1..];
        Element::Reference(std::str::from_utf8(name).ok()?)
    };
    skip(&mut rest, b"/>")?;
    Some((begin, found, bytes.len() - rest.len()))
}

/// A number in quotes, behind what comes before it.
#[inline]
fn attribute<const N: usize>(rest: &mut &[u8], name: &[u8; N]) -> Option<u64> {
    skip(rest, name)?;
    let value = number(rest)?;
    skip(rest, b"\"")?;
    Some(value)
}

/// Takes words of a length that is known: then they are compared without a loop.
#[inline]
fn skip<const N: usize>(rest: &mut &[u8], words: &[u8; N]) -> Option<()> {
    let (found, after) = rest.split_first_chunk::<N>()?;
    if found != words {
        return None;
    }
    *rest = after;
    Some(())
}

/// Digits, as many as always fit.
#[inline]
fn number(rest: &mut &[u8]) -> Option<u64> {
    const DIGITS: usize = 19;
    let (mut value, mut digits) = (0_u64, 0);
    while let Some(digit) = rest.get(digits).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
        if digits == DIGITS {
            return None;
        }
        value = value * 10 + u64::from(digit);
        digits += 1;
    }
    *rest = &rest[digits..];
    (digits > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> Option<(usize, Run, usize)> {
        match element(text.as_bytes())? {
            (begin, Element::Mapping(run), end) => Some((begin, run, end)),
            (_, Element::Reference(_), _) => None,
        }
    }

    #[test]
    fn what_the_tools_write_is_taken_and_where_it_ends() {
        let single = "\n    <single_mapping origin_block=\"9\" data_block=\"11\" time=\"2\"/>\n  </device>";
        let run = Run { begin: 9, data_begin: 11, length: 1, time: 2 };
        assert_eq!(mapping(single), Some((5, run, single.len() - 12)));
        let range = "<range_mapping origin_begin=\"0\" data_begin=\"7\" length=\"300\" time=\"4294967295\"/>";
        let run = Run { begin: 0, data_begin: 7, length: 300, time: u32::MAX };
        assert_eq!(mapping(range), Some((0, run, range.len())));
        let (_, reference, end) = element(b" <ref name=\"a b\"/> ").expect("one");
        assert!(matches!(reference, Element::Reference("a b")) && end == 18);
    }

    #[test]
    fn everything_else_is_left_to_others() {
        let whole = "<range_mapping origin_begin=\"0\" data_begin=\"7\" length=\"300\" time=\"1\"/>";
        for cut in 0..whole.len() {
            assert_eq!(mapping(&whole[..cut]), None, "{cut}");
        }
        for (from, to) in [
            ("length=\"300\" time=\"1\"", "time=\"1\" length=\"300\""),
            ("\"300\"", "\"\""),
            ("\"300\"", "\"-1\""),
            ("\"300\"", "\"18446744073709551616\""),
            ("time=\"1\"", "time=\"4294967296\""),
            ("time=\"1\"", "time='1'"),
            ("\"/>", "\"></range_mapping>"),
            ("<range", "words <range"),
        ] {
            assert_eq!(mapping(&whole.replace(from, to)), None, "{to}");
        }
        assert!(element(b"<ref name=\"a&amp;b\"/>").is_none());
        assert!(element(b"<ref name=\"\xff\"/>").is_none());
    }
}
