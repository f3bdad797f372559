//! The members of one JSON object as they stand in the line: key, text and place.
//!
//! Keeping the text lets a trace be printed again byte for byte; keeping the place lets an error point at the member.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A member of an object.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) text: &'a str,
}

/// The members of an object in their order.
#[derive(Default)]
pub(crate) struct Members<'a>(pub(crate) Vec<Member<'a>>);

/// A key, borrowed unless it has escapes.
struct Key<'a>(Cow<'a, str>);

impl<'a, 'de: 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(key.into())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

impl<'a, 'de: 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"op\": ...}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push(Member { key, text: value.get() });
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

impl<'a> Members<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&Member<'a>> {
        self.0.iter().find(|member| member.key == key)
    }

    /// A key that comes twice, with the text of its second value.
    pub(crate) fn duplicate(&self) -> Option<&Member<'a>> {
        let mut seen = BTreeSet::new();
        self.0.iter().find(|member| !seen.insert(&member.key))
    }
}

/// The column, in characters from 1, of `part`, which is a slice of `line`.
pub(crate) fn column_of(line: &str, part: &str) -> usize {
    let offset = (part.as_ptr() as usize).wrapping_sub(line.as_ptr() as usize);
    column_at(line, offset)
}

/// The column, in characters from 1, of the byte `offset`.
pub(crate) fn column_at(line: &str, offset: usize) -> usize {
    let mut end = offset.min(line.len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].chars().count() + 1
}
