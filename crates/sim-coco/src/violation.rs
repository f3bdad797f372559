//! What a check of a machine's invariants finds: the same for every vendor.

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{id}: {what}")]
pub struct Violation {
    /// Number in the specification.
    pub id: &'static str,
    /// What is wrong where.
    pub what: String,
}

/// The violation of this invariant.
pub(crate) fn broken(id: &'static str, what: impl Into<String>) -> Violation {
    Violation { id, what: what.into() }
}
