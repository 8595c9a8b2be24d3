//! dm-thin's messages: the kernel target's words, rules and errors, for programs that speak them.
//!
//! A message names volumes by number. One that it makes is called by its number here, as every volume without a name is, and
//! deleting by number takes whatever name the volume has. The metadata's transaction id is the sender's: where it is stepped for the
//! catalog's sake ([`super::catalog`]) it is set back, so that the id after a message is the one that the kernel would have. (A crash
//! right in between leaves it one higher.) Errors carry the kernel's errno.

use super::api::{PoolApi, SCHEMA};
use super::catalog::{Operation, VolumeEntry};
use super::label::Labels;
use super::name::VolumeName;
use super::reconcile::volume_bytes_limit;
use super::service::{Changes, NO_PANIC, Service, check_volume_size, refused_by};
use super::time;
use crate::engine::{self, Answer, Command};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{TransactionId, VolumeId};
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/pool/message`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageRequest {
    /// One of dm-thin's messages.
    pub message: String,
    /// The size of the volume that `create_thin` makes, which dm-thin's metadata does not have; 0 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// The answer to `POST /v1/pool/message`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MessageDone {
    /// [`SCHEMA`].
    pub schema: String,
    /// The metadata's transaction id now.
    pub transaction_id: u64,
    /// The volume that was made: its name is its number.
    pub volume: Option<VolumeName>,
    /// Its size.
    pub size_bytes: Option<u64>,
}

/// A message, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    CreateThin(VolumeId),
    CreateSnap { volume: VolumeId, origin: VolumeId },
    Delete(VolumeId),
    SetTransactionId { from: TransactionId, to: TransactionId },
    ReserveMetadataSnap,
    ReleaseMetadataSnap,
}

/// The kernel's errors, as its answers to messages use them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Errno {
    Exists,
    NoData,
    Busy,
    Invalid,
    NotSupported,
    NoSpace,
    Io,
}

impl Errno {
    /// What the kernel says where we say this.
    fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Exists => Errno::Exists,
            ErrorKind::NotFound => Errno::NoData,
            ErrorKind::Busy => Errno::Busy,
            ErrorKind::Invalid | ErrorKind::WrongState => Errno::Invalid,
            ErrorKind::NeedsCheck | ErrorKind::Failed | ErrorKind::Unsupported => Errno::NotSupported,
            ErrorKind::NoDataSpace | ErrorKind::NoMetadataSpace => Errno::NoSpace,
            ErrorKind::Io | ErrorKind::Corrupt => Errno::Io,
        }
    }

    /// Its name, and what libc says.
    fn words(self) -> &'static str {
        match self {
            Errno::Exists => "File exists (EEXIST)",
            Errno::NoData => "No data available (ENODATA)",
            Errno::Busy => "Device or resource busy (EBUSY)",
            Errno::Invalid => "Invalid argument (EINVAL)",
            Errno::NotSupported => "Operation not supported (EOPNOTSUPP)",
            Errno::NoSpace => "No space left on device (ENOSPC)",
            Errno::Io => "Input/output error (EIO)",
        }
    }
}

/// The error with the kernel's word for it in front.
fn as_kernel(message: &str, error: Error) -> Error {
    let words = Errno::of(error.kind()).words();
    error.context(format!("`{message}`: {words}"))
}

impl Message {
    /// Words apart by blanks, the first in any case; numbers are plain decimal. `Invalid` for everything else.
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let Some((verb, arguments)) = words.split_first() else {
            return Err(Error::new(ErrorKind::Invalid, "an empty message").hint(HINT));
        };
        let verb = verb.to_ascii_lowercase();
        match (verb.as_str(), arguments) {
            ("create_thin", [id]) => Ok(Message::CreateThin(volume_id(id)?)),
            ("create_snap", [id, origin]) => {
                Ok(Message::CreateSnap { volume: volume_id(id)?, origin: volume_id(origin)? })
            }
            ("delete", [id]) => Ok(Message::Delete(volume_id(id)?)),
            ("set_transaction_id", [from, to]) => Ok(Message::SetTransactionId {
                from: TransactionId(decimal(from)?),
                to: TransactionId(decimal(to)?),
            }),
            ("reserve_metadata_snap", []) => Ok(Message::ReserveMetadataSnap),
            ("release_metadata_snap", []) => Ok(Message::ReleaseMetadataSnap),
            (
                "create_thin"
                | "create_snap"
                | "delete"
                | "set_transaction_id"
                | "reserve_metadata_snap"
                | "release_metadata_snap",
                _,
            ) => {
                let what = format!("{verb} does not take {} words", arguments.len());
                Err(Error::new(ErrorKind::Invalid, what).hint(HINT))
            }
            _ => {
                let what = format!("there is no message {verb:?}");
                Err(Error::new(ErrorKind::Invalid, what).hint(HINT))
            }
        }
    }
}

const HINT: &str = "the messages are: create_thin ID; create_snap ID ORIGIN; delete ID; set_transaction_id CURRENT NEW; \
                    reserve_metadata_snap; release_metadata_snap";

/// As the kernel reads numbers here: digits, no sign, no 0x.
fn decimal(word: &str) -> Result<u64> {
    let number = word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok()).flatten();
    number.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("{word:?} is no number")).hint("plain decimal digits")
    })
}

fn volume_id(word: &str) -> Result<VolumeId> {
    VolumeId::new(decimal(word)?).ok_or_else(|| {
        let what = format!("{word} is no volume's number");
        Error::new(ErrorKind::Invalid, what).hint(format!("numbers go from 0 to {}", VolumeId::MAX))
    })
}

impl Service {
    /// See [`super::api::PoolApi::message`].
    pub(super) fn do_message(&self, request: &MessageRequest) -> Result<MessageDone> {
        self.try_message(request).map_err(|error| as_kernel(request.message.trim(), error))
    }

    fn try_message(&self, request: &MessageRequest) -> Result<MessageDone> {
        // The kernel looks at this before it looks at the words.
        match self.pool_status()?.mode {
            engine::Mode::Write | engine::Mode::OutOfDataSpace => {}
            engine::Mode::ReadOnly(why) => return Err(refused_by(&why)),
            engine::Mode::Failed(error) => {
                return Err(Error::new(ErrorKind::Failed, error.message())
                    .hint("close the pool, and open it again: everything flushed is safe"));
            }
        }
        let message = Message::parse(&request.message)?;
        if request.size_bytes.is_some() && !matches!(message, Message::CreateThin(_)) {
            return Err(
                Error::new(ErrorKind::Invalid, "a size is for create_thin alone").hint("leave it away")
            );
        }
        let volume = match message {
            Message::CreateThin(id) => Some(self.create_thin(id, request.size_bytes)?),
            Message::CreateSnap { volume, origin } => Some(self.create_snap(volume, origin)?),
            Message::Delete(id) => {
                self.delete_by_number(id)?;
                None
            }
            Message::SetTransactionId { from, to } => {
                let mut changes = self.begin_change()?;
                self.set_transaction_id(&mut changes, from, to)?;
                None
            }
            Message::ReserveMetadataSnap => {
                self.reserve_metadata_snapshot()
                    .map_err(|error| of_kind(error, ErrorKind::Exists, ErrorKind::Busy))?;
                None
            }
            Message::ReleaseMetadataSnap => {
                self.release_metadata_snapshot()
                    .map_err(|error| of_kind(error, ErrorKind::NotFound, ErrorKind::WrongState))?;
                None
            }
        };
        let transaction_id = self.pool_status()?.transaction_id.0;
        let size_bytes = volume.as_ref().map(|entry| entry.size_bytes);
        Ok(MessageDone {
            schema: SCHEMA.to_owned(),
            transaction_id,
            volume: volume.map(|entry| entry.name),
            size_bytes,
        })
    }

    /// dm-thin knows no sizes: the volume has none until it is given one.
    fn create_thin(&self, id: VolumeId, size_bytes: Option<u64>) -> Result<VolumeEntry> {
        let mut changes = self.begin_change()?;
        if let Some(size_bytes) = size_bytes {
            check_volume_size(size_bytes, volume_bytes_limit(self.pool_status()?.block_size))?;
        }
        self.require_free_number(id)?;
        let entry = self.numbered(id, size_bytes.unwrap_or(0));
        let size_bytes = entry.size_bytes;
        self.carry_out_unstepped(&mut changes, Operation::Create(entry.clone()), |step| {
            Command::CreateVolume { volume: id, size_bytes, origin: None, step }
        })?;
        Ok(entry)
    }

    fn create_snap(&self, volume: VolumeId, origin: VolumeId) -> Result<VolumeEntry> {
        let mut changes = self.begin_change()?;
        self.require_free_number(volume)?;
        let of = self.by_number(origin)?;
        // What neither maps shows through the snapshot as it does through the volume.
        let entry = VolumeEntry {
            origin: Some(origin),
            external_origin: of.external_origin,
            when_full: None,
            ..self.numbered(volume, of.size_bytes)
        };
        self.carry_out_unstepped(&mut changes, Operation::Snapshot(vec![entry.clone()]), |step| {
            Command::Snapshot { pairs: vec![(origin, volume)], step }
        })?;
        Ok(entry)
    }

    fn delete_by_number(&self, id: VolumeId) -> Result<()> {
        let mut changes = self.begin_change()?;
        let entry = self.by_number(id)?;
        self.require_no_device_waits(&entry)?;
        let name = entry.name;
        self.carry_out_unstepped(&mut changes, Operation::Delete(name), |step| Command::Delete {
            volume: id,
            step: Some(step),
        })
        .map(drop)
    }

    /// The catalog's three steps, and the id back to what it was.
    fn carry_out_unstepped(
        &self,
        changes: &mut Changes,
        operation: Operation,
        command: impl FnOnce(engine::IdStep) -> Command,
    ) -> Result<Answer> {
        let before = TransactionId(self.catalog.read().expect(NO_PANIC).transaction_id);
        let answer = self.carry_out(changes, operation, command)?;
        self.set_transaction_id(changes, before.next(), before)?;
        Ok(answer)
    }

    /// Catalog and metadata go from the one id to the other together.
    fn set_transaction_id(
        &self,
        changes: &mut Changes,
        from: TransactionId,
        to: TransactionId,
    ) -> Result<()> {
        let now = TransactionId(self.catalog.read().expect(NO_PANIC).transaction_id);
        if now != from {
            let what = format!("the pool's transaction id is {now}, not {from}");
            return Err(Error::new(ErrorKind::WrongState, what).hint(
                "somebody else has changed the pool; `uthin pool status --format dm` begins with the id",
            ));
        }
        if from == to {
            return self.executor.run(Command::Commit).map(drop);
        }
        self.carry_out_to(changes, to, Operation::SetTransactionId, Command::SetTransactionId).map(drop)
    }

    fn require_free_number(&self, id: VolumeId) -> Result<()> {
        let catalog = self.catalog.read().expect(NO_PANIC);
        if let Some(entry) = catalog.by_id(id) {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("volume {id} exists, and is called `{}`", entry.name),
            )
            .hint("choose another number, or delete it first"));
        }
        if catalog.deleting.contains(&id) && self.pool_status()?.deleting.contains(&id) {
            return Err(Error::new(ErrorKind::Exists, format!("volume {id} is still being deleted"))
                .hint("try again, or choose another number"));
        }
        Ok(())
    }

    fn by_number(&self, id: VolumeId) -> Result<VolumeEntry> {
        self.catalog.read().expect(NO_PANIC).by_id(id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no volume {id}"))
                .hint("`uthin volume list POOL -o name,id` shows the volumes")
        })
    }

    fn numbered(&self, id: VolumeId, size_bytes: u64) -> VolumeEntry {
        VolumeEntry {
            external_origin: None,
            when_full: None,
            name: VolumeName::of_unknown(id),
            id,
            size_bytes,
            created_unix_seconds: Some(time::now_unix_seconds()),
            created_in_transaction: Some(self.catalog.read().expect(NO_PANIC).transaction_id),
            origin: None,
            labels: Labels::new(),
            read_only: false,
        }
    }
}

/// The same error, of the kind for which the kernel has another errno than we would.
fn of_kind(error: Error, ours: ErrorKind, kernels: ErrorKind) -> Error {
    if error.kind() != ours {
        return error;
    }
    let told = Error::new(kernels, error.message());
    error.next_step().map_or(told.clone(), |hint| told.hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_the_kernels() {
        let id = |raw| VolumeId::new(raw).expect("a number");
        for (text, message) in [
            ("create_thin 0", Message::CreateThin(id(0))),
            (" CREATE_THIN\t16777215 ", Message::CreateThin(VolumeId::MAX)),
            ("create_snap 1 0", Message::CreateSnap { volume: id(1), origin: id(0) }),
            ("delete 7", Message::Delete(id(7))),
            (
                "set_transaction_id 0 18446744073709551615",
                Message::SetTransactionId { from: TransactionId(0), to: TransactionId(u64::MAX) },
            ),
            ("Reserve_Metadata_Snap", Message::ReserveMetadataSnap),
            ("release_metadata_snap", Message::ReleaseMetadataSnap),
        ] {
            assert_eq!(Message::parse(text), Ok(message), "{text}");
        }
        for text in [
            "",
            " ",
            "bogus",
            "create_thin",
            "create_thin 0 1",
            "create_thin 16777216",
            "create_thin -1",
            "create_thin +1",
            "create_thin 0x10",
            "create_thin abc",
            "create_thin 99999999999999999999",
            "create_snap 1",
            "create_snap 1 16777216",
            "delete",
            "set_transaction_id 5",
            "set_transaction_id 5 x",
            "set_transaction_id 0 18446744073709551616",
            "reserve_metadata_snap 1",
            "release_metadata_snap 1",
        ] {
            let error = Message::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.next_step().is_some(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}") {
            let _ = Message::parse(&text);
        }
    }
}
