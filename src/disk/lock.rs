//! Who holds a lock: the exclusive lock on a disk and the name of its owner.
