//! Who moves bytes and owns threads.
