//! Names of objects, and the two arguments that are either a name or a raw number.
//!
//! Nothing is simplified: a recording names its objects with any string, and so may a program.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name that a program gives to an object: a VM, a vCPU, a file descriptor or a mapping.
///
/// Cheap to clone and free to cross threads.
///
/// ```
/// use gmem::ops::Name;
/// assert_eq!(Name::from("vm0").as_str(), "vm0");
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name(text.into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Name(text.into())
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Name::from)
    }
}

/// The host address of a memory slot: an offset into a mapping, or a raw address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HvaRef {
    /// `offset` bytes after the start of the mapping `map`; of a mapping that does not exist, after address 0.
    Map {
        /// The mapping's name.
        map: Name,
        /// Bytes after its start.
        offset: u64,
    },
    /// An address as a number.
    Raw(u64),
}

/// What `guest_memfd` of a memory slot refers to: a file (or a VM, which is a mistake worth recording), or a raw number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FdRef {
    /// The descriptor that a program knows by this name.
    Name(Name),
    /// A descriptor number that no object has, such as -1.
    Raw(i64),
}
