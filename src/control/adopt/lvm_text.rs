//! The text format in which LVM keeps a volume group's metadata, taken apart: sections, and values in them.
//!
//! ```text
//! name {                  # a section
//!     key = 7             # a number
//!     other = "text"      # \" and \\ are the escapes
//!     list = ["a", "b"]
//! }
//! ```
//!
//! Any bytes are taken: what is no such text is one error with the line, and nothing nests deeper than [`DEPTH_LIMIT`].

use crate::error::{Error, ErrorKind, Result};

/// LVM's own files have five levels.
const DEPTH_LIMIT: usize = 32;

/// A section: its entries in the file's order, each with its line.
#[derive(Default, Debug)]
pub(super) struct Section {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    line: u64,
    node: Node,
}

#[derive(Debug)]
enum Node {
    Section(Section),
    Value(Value),
}

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    /// What has a decimal point; nobody here needs one.
    Fraction,
    List(Vec<Value>),
}

/// The error of a file that cannot be understood.
pub(super) fn wrong(whence: &str, line: u64, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{whence}:{line}: {what}"))
        .hint("give a file that `vgcfgbackup` has written, or one from /etc/lvm/backup, as it is")
}

/// Takes the text apart; `whence` is what messages call the file.
pub(super) fn parse(bytes: &[u8], whence: &str) -> Result<Section> {
    let mut parser = Parser { rest: bytes, line: 1, whence };
    parser.section(0)
}

impl Section {
    /// The sections in it, each with its line.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, u64, &Section)> {
        self.entries.iter().filter_map(|entry| match &entry.node {
            Node::Section(section) => Some((entry.key.as_str(), entry.line, section)),
            Node::Value(_) => None,
        })
    }

    /// The section of that name.
    pub(super) fn section(&self, key: &str) -> Option<&Section> {
        self.sections().find(|(name, _, _)| *name == key).map(|(_, _, section)| section)
    }

    /// The value of that name, with its line.
    pub(super) fn value(&self, key: &str) -> Option<(u64, &Value)> {
        self.entries.iter().find_map(|entry| match &entry.node {
            Node::Value(value) if entry.key == key => Some((entry.line, value)),
            Node::Value(_) | Node::Section(_) => None,
        })
    }

    /// The text of that name.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)?.1 {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Fraction | Value::List(_) => None,
        }
    }

    /// The number of that name, from 0 on.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)?.1 {
            Value::Number(number) => u64::try_from(*number).ok(),
            Value::Text(_) | Value::Fraction | Value::List(_) => None,
        }
    }

    /// Whether the list of that name has this word.
    pub(super) fn lists(&self, key: &str, word: &str) -> bool {
        match self.value(key) {
            Some((_, Value::List(values))) => {
                values.iter().any(|value| matches!(value, Value::Text(text) if text == word))
            }
            Some((_, Value::Text(text))) => text == word,
            Some((_, Value::Number(_) | Value::Fraction)) | None => false,
        }
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    line: u64,
    whence: &'a str,
}

impl Parser<'_> {
    fn wrong(&self, what: &str) -> Error {
        wrong(self.whence, self.line, what)
    }

    /// Skips blanks and comments; the next byte, if there is one.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.rest.first().copied() {
                Some(b'#') => {
                    let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                Some(byte) if byte.is_ascii_whitespace() => self.step(),
                other => return other,
            }
        }
    }

    fn step(&mut self) {
        self.line += u64::from(self.rest[0] == b'\n');
        self.rest = &self.rest[1..];
    }

    /// What follows in words, for a message.
    fn next_shown(&mut self) -> String {
        match self.peek() {
            None => "the end of the file".to_owned(),
            Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
            Some(byte) => format!("a byte {byte:#04x}"),
        }
    }

    /// Entries up to the closing brace, or for the outermost section to the end.
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > DEPTH_LIMIT {
            return Err(self.wrong("sections are nested too deep for a volume group's metadata"));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return Err(self.wrong("the file ends within a section: it has been cut off")),
                Some(b'}') if depth > 0 => {
                    self.step();
                    return Ok(section);
                }
                Some(_) => {}
            }
            let line = self.line;
            let key = self.key()?;
            let node = match self.peek() {
                Some(b'{') => {
                    self.step();
                    Node::Section(self.section(depth + 1)?)
                }
                Some(b'=') => {
                    self.step();
                    Node::Value(self.value(depth)?)
                }
                _ => {
                    let found = self.next_shown();
                    return Err(self.wrong(&format!("`=` or `{{` was expected after `{key}`, not {found}")));
                }
            };
            section.entries.push(Entry { key, line, node });
        }
    }

    fn key(&mut self) -> Result<String> {
        let is_of_key = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-/@".contains(byte);
        let length = self.rest.iter().position(|byte| !is_of_key(byte)).unwrap_or(self.rest.len());
        if length == 0 {
            let found = self.next_shown();
            return Err(self.wrong(&format!("a name was expected, not {found}")));
        }
        let (key, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(String::from_utf8_lossy(key).into_owned())
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        if depth > DEPTH_LIMIT {
            return Err(self.wrong("lists are nested too deep for a volume group's metadata"));
        }
        match self.peek() {
            Some(b'"') => self.text().map(Value::Text),
            Some(b'[') => {
                self.step();
                let mut values = Vec::new();
                loop {
                    match self.peek() {
                        Some(b']') => {
                            self.step();
                            return Ok(Value::List(values));
                        }
                        Some(b',') => self.step(),
                        Some(_) => values.push(self.value(depth + 1)?),
                        None => return Err(self.wrong("the file ends within a list: it has been cut off")),
                    }
                }
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                let found = self.next_shown();
                Err(self.wrong(&format!("a number, a text in quotes or a list was expected, not {found}")))
            }
        }
    }

    fn number(&mut self) -> Result<Value> {
        let is_of_number = |byte: &u8| byte.is_ascii_digit() || b"-.".contains(byte);
        let length = self.rest.iter().position(|byte| !is_of_number(byte)).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(length);
        let digits = String::from_utf8_lossy(digits).into_owned();
        self.rest = rest;
        if digits.contains('.') {
            return Ok(Value::Fraction);
        }
        let number = digits.parse().map_err(|_| self.wrong(&format!("`{digits}` is no number")))?;
        Ok(Value::Number(number))
    }

    fn text(&mut self) -> Result<String> {
        let begun = self.line;
        self.step();
        let mut bytes = Vec::new();
        loop {
            match self.rest {
                [] => return Err(wrong(self.whence, begun, "a text begins here and does not end")),
                [b'"', ..] => {
                    self.step();
                    return Ok(String::from_utf8_lossy(&bytes).into_owned());
                }
                [b'\\', escaped @ (b'"' | b'\\'), ..] => {
                    bytes.push(*escaped);
                    self.step();
                    self.step();
                }
                [byte, ..] => {
                    bytes.push(*byte);
                    self.step();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sections_and_values() {
        let text = "# made by hand\na = 1 b=\"x \\\"y\\\" \\\\z\"\nlist = [\n \"one\", \"two\" ]\nneg = -3\nf = 1.5\n\
                    vg-0.1+x {\n  inner { deep = 7 }\n  empty = []\n}\n";
        let root = parse(text.as_bytes(), "f").expect("sound");
        assert_eq!((root.number("a"), root.text("b")), (Some(1), Some("x \"y\" \\z")));
        assert!(root.lists("list", "two") && !root.lists("list", "three") && !root.lists("a", "1"));
        assert_eq!((root.number("neg"), root.number("f"), root.number("none")), (None, None, None));
        let inner = root.section("vg-0.1+x").expect("there").section("inner").expect("there");
        assert_eq!(inner.value("deep").expect("there").0, 8, "its line");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, what) in [
            ("a = 1\nb {\n c = 2\n", 4, "cut off"),
            ("a = 1\n= 2", 2, "a name was expected, not `=`"),
            ("a\n\nb = 1", 3, "after `a`, not `b`"),
            ("a = x", 1, "not `x`"),
            ("a = \"x\n\n", 1, "does not end"),
            ("a = [1,\n2", 2, "within a list"),
            ("a = 1-2", 1, "`1-2` is no number"),
            ("a = 99999999999999999999", 1, "is no number"),
            ("}", 1, "not `}`"),
            ("\u{1f}", 1, "a byte 0x1f"),
            ("a =", 1, "the end of the file"),
        ] {
            let error = parse(text.as_bytes(), "f").expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.message().starts_with(&format!("f:{line}: ")), "{text:?}: {error}");
            assert!(error.message().contains(what), "{text:?}: {error}");
        }
        for bracket in ["a {", "a = [", "["] {
            let _ = parse(bracket.repeat(100_000).as_bytes(), "f").expect_err("too deep");
        }
        let _ = parse(format!("a = {}", "[".repeat(100_000)).as_bytes(), "f").expect_err("too deep");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "f");
        }

        #[test]
        fn nor_what_looks_like_such_a_text(text in r#"([a-c]|[ \n={}\[\]",#\\]|[0-9.-]){0,60}"#) {
            let _ = parse(text.as_bytes(), "f");
        }
    }
}
