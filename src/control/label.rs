//! Labels of volumes: `key=value`, for people and programs that keep their own notes on a volume. uthin gives them no meaning.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The longest key, in bytes.
pub const KEY_BYTES_LIMIT: usize = 63;
/// The longest value, in bytes.
pub const VALUE_BYTES_LIMIT: usize = 255;
/// The most labels of one volume.
pub const LABELS_LIMIT: usize = 64;

/// A volume's labels, in order of keys.
pub type Labels = BTreeMap<LabelKey, LabelValue>;

/// Labels to set, and (`None`) to take away.
pub type LabelChanges = BTreeMap<LabelKey, Option<LabelValue>>;

/// A key: 1 to [`KEY_BYTES_LIMIT`] of letters, digits and `._-/`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelKey(String);

/// A value: up to [`VALUE_BYTES_LIMIT`] bytes of text without control characters; may be empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelValue(String);

impl LabelKey {
    /// A key, or why it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let problem = if text.is_empty() {
            "it is empty".to_owned()
        } else if text.len() > KEY_BYTES_LIMIT {
            format!("it has {} bytes, and {KEY_BYTES_LIMIT} are the most", text.len())
        } else if !text.starts_with(|letter: char| letter.is_ascii_alphanumeric()) {
            "it does not begin with a letter or digit".to_owned()
        } else if let Some(other) =
            text.chars().find(|letter| !letter.is_ascii_alphanumeric() && !"._-/".contains(*letter))
        {
            format!("it contains {other:?}")
        } else {
            return Ok(LabelKey(text.to_owned()));
        };
        Err(Error::new(ErrorKind::Invalid, format!("{text:?} is no key of a label: {problem}"))
            .hint("keys have letters, digits and `._-/`, and begin with a letter or digit"))
    }
}

impl LabelValue {
    /// A value, or why it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let problem = if text.len() > VALUE_BYTES_LIMIT {
            format!("it has {} bytes, and {VALUE_BYTES_LIMIT} are the most", text.len())
        } else if let Some(other) = text.chars().find(|letter| letter.is_control()) {
            format!("it contains {other:?}")
        } else {
            return Ok(LabelValue(text.to_owned()));
        };
        Err(Error::new(ErrorKind::Invalid, format!("{text:?} is no value of a label: {problem}"))
            .hint("values are one line of text"))
    }
}

/// Understands `key=value`; the value may have more of `=` in it.
pub fn parse_pair(text: &str) -> Result<(LabelKey, LabelValue)> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::new(ErrorKind::Invalid, format!("`{text}` is no label"))
            .hint("write KEY=VALUE; the value may be empty"));
    };
    Ok((LabelKey::parse(key)?, LabelValue::parse(value)?))
}

/// Brings `changes` into `labels`. `NotFound` for a label to take away that is not there, `Invalid` for too many.
pub fn apply(labels: &mut Labels, changes: &LabelChanges) -> Result<()> {
    for (key, value) in changes {
        match value {
            Some(value) => {
                labels.insert(key.clone(), value.clone());
            }
            None => {
                labels.remove(key).ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("there is no label `{key}` to take away"))
                        .hint("`uthin volume list POOL -o name,labels` shows the labels")
                })?;
            }
        }
    }
    check_count(labels)
}

/// `Invalid` for more labels than a volume can have.
pub fn check_count(labels: &Labels) -> Result<()> {
    if labels.len() <= LABELS_LIMIT {
        return Ok(());
    }
    let message =
        format!("a volume has at most {LABELS_LIMIT} labels, and this one would have {}", labels.len());
    Err(Error::new(ErrorKind::Invalid, message).hint("take some away with --unlabel"))
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<LabelKey> for String {
    fn from(key: LabelKey) -> String {
        key.0
    }
}

impl From<LabelValue> for String {
    fn from(value: LabelValue) -> String {
        value.0
    }
}

impl TryFrom<String> for LabelKey {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        LabelKey::parse(&text)
    }
}

impl TryFrom<String> for LabelValue {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        LabelValue::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_are_labels_and_pairs_that_are_none() {
        for (text, key, value) in [
            ("a=b", "a", "b"),
            ("a=", "a", ""),
            ("org.example/owner=jo = mo", "org.example/owner", "jo = mo"),
            ("0-1_2.3=ä, \"x\"", "0-1_2.3", "ä, \"x\""),
        ] {
            let (found_key, found_value) = parse_pair(text).expect(text);
            assert_eq!((found_key.to_string().as_str(), found_value.to_string().as_str()), (key, value));
        }
        let long = |key: usize, value: usize| format!("{}={}", "k".repeat(key), "v".repeat(value));
        assert!(parse_pair(&long(63, 255)).is_ok());
        for bad in
            ["", "a", "=b", "-a=b", "a b=c", "ä=b", "a=b\tc", "a=\n", "a=\0", &long(64, 1), &long(1, 256)]
        {
            let error = parse_pair(bad).expect_err(bad);
            assert_eq!((error.kind(), error.next_step().is_some()), (ErrorKind::Invalid, true));
        }
    }

    #[test]
    fn changes_set_replace_and_take_away() {
        let key = |text: &str| LabelKey::parse(text).expect("a key");
        let value = |text: &str| LabelValue::parse(text).expect("a value");
        let mut labels = Labels::from([(key("a"), value("1")), (key("b"), value("2"))]);
        let changes =
            LabelChanges::from([(key("a"), None), (key("b"), Some(value("3"))), (key("c"), Some(value("")))]);
        apply(&mut labels, &changes).expect("it fits");
        assert_eq!(labels, Labels::from([(key("b"), value("3")), (key("c"), value(""))]));
        let error = apply(&mut labels, &LabelChanges::from([(key("a"), None)])).expect_err("it is gone");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let many = (0..63).map(|number| (key(&number.to_string()), Some(value("")))).collect();
        assert_eq!(apply(&mut labels, &many).map_err(|error| error.kind()), Err(ErrorKind::Invalid));
    }
}
