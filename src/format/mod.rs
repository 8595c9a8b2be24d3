//! Bytes and values of one 4 KiB metadata block: pure, and never panicking on any input.
