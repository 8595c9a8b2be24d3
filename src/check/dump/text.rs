//! Text on its way out: collected in a buffer, numbers written without a detour through formatting.

use crate::error::{Error, ErrorKind, Result};
use std::io::Write;

/// What is collected before it is written.
const BUFFER_BYTES: usize = 1 << 18;

/// What is said of an output that nobody reads any more (`| head`): nothing was wrong, and there is nobody to be told.
const NO_READER: &str = "nobody reads the output any more";

/// How the words about an output begin that cannot be written.
pub(in crate::check) const WRITING: &str = "writing the output";

/// A buffered output of text.
pub(in crate::check) struct Text<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    digits: itoa::Buffer,
}

impl<'a> Text<'a> {
    pub(in crate::check) fn new(out: &'a mut dyn Write) -> Self {
        Text { out, buffer: Vec::with_capacity(BUFFER_BYTES + 4096), digits: itoa::Buffer::new() }
    }

    /// Adds words and numbers by turns: `numbers[i]` follows `words[i]`, the last of the words ends it.
    #[inline]
    pub(in crate::check) fn line<const N: usize>(&mut self, words: &[&str], numbers: [u64; N]) -> Result<()> {
        debug_assert_eq!(words.len(), N + 1);
        for (word, number) in words.iter().zip(numbers) {
            self.buffer.extend_from_slice(word.as_bytes());
            self.buffer.extend_from_slice(self.digits.format(number).as_bytes());
        }
        self.buffer.extend_from_slice(words[N].as_bytes());
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    pub(in crate::check) fn words(&mut self, words: &str) -> Result<()> {
        self.line(&[words], [])
    }

    /// Writes everything out.
    pub(in crate::check) fn flush(&mut self) -> Result<()> {
        let written = self.out.write_all(&self.buffer);
        self.buffer.clear();
        written.and_then(|()| self.out.flush()).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::new(ErrorKind::Failed, NO_READER),
            _ => Error::io(WRITING, &error),
        })
    }

    /// Whether it was only that nobody reads the output any more.
    pub(in crate::check) fn has_no_reader(error: &Error) -> bool {
        error.message() == NO_READER
    }
}
