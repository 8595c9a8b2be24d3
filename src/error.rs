//! The one error of the library: a small *kind* for control flow, words for people.
//!
//! Three kinds of wrong are never mixed: our own bug is an `assert!`, bytes from a disk are [`ErrorKind::Corrupt`]
//! with the block and what was expected, a failing device is [`ErrorKind::Io`].

use std::fmt;

/// What went wrong, as far as a program cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Bytes read from a disk are not what they must be. The message names the block and what was expected.
    Corrupt,
    /// Sound, but made by or for a version of the format that this one does not know.
    Unsupported,
    /// The metadata carries the flag by which a checker must look at it first.
    NeedsCheck,
    /// A device failed.
    Io,
    /// In use: locked by another process, open by a client, or an operation of its kind is under way.
    Busy,
    /// No such pool, volume or file.
    NotFound,
    /// A thing of that name or number is there already.
    Exists,
    /// No free data block.
    NoDataSpace,
    /// Too few free metadata blocks to carry the operation through.
    NoMetadataSpace,
    /// An argument, name or request that can never work.
    Invalid,
    /// It could work, but not in the state that things are in.
    WrongState,
    /// The pool has failed stop after an earlier error; reopening is the way back.
    Failed,
}

/// An error: kind, a message that says what and where, and a hint that says what to do next.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Error {
    #[serde(rename = "code")]
    kind: ErrorKind,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// `Result` with our [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a hint. `message` starts in lower case and has no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None }
    }

    /// A device's error; `context` says what was being done to which file.
    pub fn io(context: impl fmt::Display, source: &std::io::Error) -> Self {
        Error::new(ErrorKind::Io, format!("{context}: {source}"))
    }

    /// Bytes from the metadata device that cannot be right.
    pub fn corrupt(block: crate::units::MetaBlock, what: impl fmt::Display) -> Self {
        Error::new(ErrorKind::Corrupt, format!("metadata block {block}: {what}"))
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts `context: ` before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The kind, for control flow.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What went wrong and where.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do next, if there is something.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n  hint: {hint}"))
    }
}

impl std::error::Error for Error {}
