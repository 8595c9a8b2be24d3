//! Names of volumes and pools, and how a command line writes them.
//!
//! `POOL` is a name (a directory under [`DEFAULT_BASE`] or `$UTHIN_DIR`) or a path with a slash in it. `POOL/VOLUME` ends
//! in the volume's name: `./p/v1` is volume `v1` of the pool at `./p`, `p/v1` is `v1` of the pool named `p`.
//!
//! A name of digits only is the number of a volume that no catalog knows. Nobody may choose one, so a number never hides
//! a name and the other way round.

use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where pools with a mere name are, unless `$UTHIN_DIR` says otherwise.
pub const DEFAULT_BASE: &str = "/var/lib/uthin";

/// The longest name, in bytes.
pub const NAME_BYTES_LIMIT: usize = 127;

/// A volume's name: 1 to [`NAME_BYTES_LIMIT`] of letters, digits and `._-+@`, not beginning with `-` or `.`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// A name that may be in a catalog already, numbers included.
    pub fn parse(text: &str) -> Result<Self> {
        check_name("volume", text)?;
        Ok(VolumeName(text.to_owned()))
    }

    /// A name for a new volume: as [`VolumeName::parse`], but not a number.
    pub fn parse_new(text: &str) -> Result<Self> {
        let name = Self::parse(text)?;
        if name.is_number() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("`{text}` cannot be the name of a new volume: it is a number"),
            )
            .hint("numbers name volumes that the catalog does not know; put a letter in front"));
        }
        Ok(name)
    }

    /// The name of a volume that the catalog does not know: its number.
    pub fn of_unknown(id: VolumeId) -> Self {
        VolumeName(id.to_string())
    }

    /// Whether it consists of digits only.
    pub fn is_number(&self) -> bool {
        self.0.bytes().all(|byte| byte.is_ascii_digit())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// It is looked for by what a client has sent.
impl std::borrow::Borrow<str> for VolumeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

impl TryFrom<String> for VolumeName {
    /// The message alone: whoever reads names from JSON puts it into one of its own, with a hint of its own.
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        VolumeName::parse(&text).map_err(|error| error.message().to_owned())
    }
}

fn check_name(of_what: &str, text: &str) -> Result<()> {
    let problem = if text.is_empty() {
        "it is empty".to_owned()
    } else if text.len() > NAME_BYTES_LIMIT {
        format!("it has {} bytes, and {NAME_BYTES_LIMIT} are the most", text.len())
    } else if text.starts_with(['-', '.']) {
        "it begins with `-` or `.`".to_owned()
    } else if let Some(other) =
        text.chars().find(|letter| !letter.is_ascii_alphanumeric() && !"._-+@".contains(*letter))
    {
        format!("it contains {other:?}")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, format!("{text:?} is no name for a {of_what}: {problem}"))
        .hint("names have letters, digits and `._-+@`, and begin with none of `-` and `.`"))
}

/// A pool as a user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolRef {
    text: String,
    path: PathBuf,
}

impl PoolRef {
    /// Understands `text`; names live under [`base_directory`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_under(text, &base_directory())
    }

    /// Understands `text`; names live under `base`.
    pub fn parse_under(text: &str, base: &Path) -> Result<Self> {
        if text.contains('/') {
            return Ok(PoolRef { text: text.to_owned(), path: PathBuf::from(text) });
        }
        check_name("pool", text).map_err(|error| {
            if text == "." || text == ".." {
                error.hint("a path has a slash in it: write `./`")
            } else {
                error
            }
        })?;
        Ok(PoolRef { text: text.to_owned(), path: base.join(text) })
    }

    /// What the user wrote.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The pool's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a name under the base directory, and not a path.
    pub fn is_name(&self) -> bool {
        !self.text.contains('/')
    }
}

/// A volume as a user names it: `POOL/VOLUME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeRef {
    /// The pool.
    pub pool: PoolRef,
    /// The volume in it.
    pub volume: VolumeName,
}

impl VolumeRef {
    /// Understands `text`; pools with a name live under [`base_directory`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_under(text, &base_directory())
    }

    /// Understands `text`; pools with a name live under `base`.
    pub fn parse_under(text: &str, base: &Path) -> Result<Self> {
        let Some((pool, volume)) = text.rsplit_once('/') else {
            return Err(Error::new(ErrorKind::Invalid, format!("`{text}` names no volume"))
                .hint("write POOL/VOLUME, such as ./pool/root or pool/root"));
        };
        if pool.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, format!("`{text}` names no pool"))
                .hint("write POOL/VOLUME, such as ./pool/root or pool/root"));
        }
        if pool == "." || pool == ".." {
            return Err(Error::new(ErrorKind::Invalid, format!("`{text}` is a pool, and names no volume"))
                .hint(format!("write POOL/VOLUME, such as {text}/root")));
        }
        Ok(VolumeRef { pool: PoolRef::parse_under(pool, base)?, volume: VolumeName::parse(volume)? })
    }
}

/// `$UTHIN_DIR`, or [`DEFAULT_BASE`] if that is unset or empty.
pub fn base_directory() -> PathBuf {
    match std::env::var_os("UTHIN_DIR") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        Some(_) | None => PathBuf::from(DEFAULT_BASE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_small_alphabet() {
        for good in ["a", "root", "vm-1.img", "A_b+c@2024", "0x", "7", &"n".repeat(127)] {
            assert_eq!(VolumeName::parse(good).map(|name| name.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "-a", ".a", ".", "a b", "a/b", "ä", "a\0", "a\n", "a:b", &"n".repeat(128)] {
            assert_eq!(
                VolumeName::parse(bad).map_err(|error| error.kind()),
                Err(ErrorKind::Invalid),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_new_volume_cannot_be_called_by_a_number() {
        for number in ["0", "7", "007", "16777216"] {
            assert_eq!(VolumeName::parse_new(number).map_err(|error| error.kind()), Err(ErrorKind::Invalid));
        }
        assert!(VolumeName::parse_new("v7").is_ok());
    }

    #[test]
    fn a_pool_is_a_name_or_a_path_with_a_slash() {
        let base = Path::new("/base");
        let path_of = |text: &str| PoolRef::parse_under(text, base).map(|pool| pool.path().to_owned());
        assert_eq!(path_of("p"), Ok(PathBuf::from("/base/p")));
        assert_eq!(path_of("./p"), Ok(PathBuf::from("./p")));
        assert_eq!(path_of("p/"), Ok(PathBuf::from("p/")));
        assert_eq!(path_of("/srv/p"), Ok(PathBuf::from("/srv/p")));
        for bad in ["", ".", "..", "-p", "a b"] {
            assert!(path_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_volume_is_what_follows_the_last_slash() {
        let base = Path::new("/base");
        let parse = |text: &str| VolumeRef::parse_under(text, base);
        let volume = parse("./a/b/v").expect("a path");
        assert_eq!((volume.pool.path(), volume.volume.as_str()), (Path::new("./a/b"), "v"));
        let volume = parse("p/v").expect("a name");
        assert_eq!(volume.pool.path(), Path::new("/base/p"));
        for bad in ["v", "/v", "./p/", "p//", "./p/.v", ""] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let told = parse("./p").expect_err("a pool").next_step().map(str::to_owned);
        assert!(told.is_some_and(|hint| hint.contains("./p/root")));
    }
}
