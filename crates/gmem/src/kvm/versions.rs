//! Linux releases: which are modelled, and how a release's full name leads to one.
//!
//! A release between two modelled ones answers like the older of them; stable updates are not told apart from the release that
//! they update, although they do carry fixes back.

use std::fmt;
use std::str::FromStr;

/// The Linux release whose rules apply.
///
/// ```
/// use gmem::KernelVersion;
/// assert_eq!("6.18.44".parse(), Ok(KernelVersion::V6_18));
/// assert_eq!("7.1-rc2".parse(), Ok(KernelVersion::V6_18));
/// assert!(KernelVersion::V6_12 < KernelVersion::V7_3);
/// assert!("6.1.170".parse::<KernelVersion>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum KernelVersion {
    /// Linux 6.8, the first release with guest_memfd.
    V6_8,
    /// Linux 6.12, with long-term support.
    V6_12,
    /// Linux 6.18, with long-term support; the first whose guest_memfd the host can map.
    V6_18,
    /// Linux 7.3, the release of the recordings.
    #[default]
    V7_3,
}

impl KernelVersion {
    /// Every release that is modelled, with its name, from the oldest.
    pub const ALL: [(&'static str, KernelVersion); 4] = [
        ("6.8", KernelVersion::V6_8),
        ("6.12", KernelVersion::V6_12),
        ("6.18", KernelVersion::V6_18),
        ("7.3", KernelVersion::V7_3),
    ];

    /// Major and minor number.
    const fn numbers(self) -> (u32, u32) {
        match self {
            KernelVersion::V6_8 => (6, 8),
            KernelVersion::V6_12 => (6, 12),
            KernelVersion::V6_18 => (6, 18),
            KernelVersion::V7_3 => (7, 3),
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.numbers();
        write!(f, "{major}.{minor}")
    }
}

/// A name of a release for which there is no model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KernelVersionError {
    /// It does not begin with two numbers.
    #[error("`{0}` is no Linux release; expected one such as 6.18 or 7.3.4")]
    NoRelease(String),
    /// It is older than guest_memfd.
    #[error("Linux {0} is older than 6.8, the first release with guest_memfd")]
    TooOld(String),
}

impl FromStr for KernelVersion {
    type Err = KernelVersionError;

    /// The newest modelled release that is not newer than the one with this name, which may be as long as `7.3.4-rt2+`.
    fn from_str(name: &str) -> Result<KernelVersion, KernelVersionError> {
        let shown = || name.chars().take(40).collect::<String>();
        let no_release = || KernelVersionError::NoRelease(shown());
        let (major, rest) = name.split_once('.').ok_or_else(no_release)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (minor, rest) = rest.split_at(digits);
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
        let numbers = number(major).zip(number(minor)).ok_or_else(no_release)?;
        if !(rest.is_empty() || rest.starts_with(['.', '-', '+', '_', '~'])) {
            return Err(no_release());
        }
        let known = KernelVersion::ALL.iter().rev().map(|(_, version)| *version);
        let mut not_newer = known.filter(|version| version.numbers() <= numbers);
        not_newer.next().ok_or_else(|| KernelVersionError::TooOld(shown()))
    }
}
