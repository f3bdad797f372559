//! How people write the value of an argument: from a word to the value, for every [`Kind`].
//!
//! Simplified: suffixes are binary and follow decimal numbers only.

use serde_json::{Value, json};

use crate::ops::table::{Kind, Symbol};
use crate::ops::{Advice, Prot};

/// The word for "no object" and "no letters".
pub(super) const NONE: &str = "none";

/// A number: decimal, `0x`, `0o` or `0b`, with underscores, or decimal with one of the suffixes K, M, G, T.
///
/// ```
/// use gmem::scenario::words::number;
/// assert_eq!(number("4K"), Some(4096));
/// assert_eq!(number("0x20_0000"), Some(2 << 20));
/// assert_eq!(number("4KB"), None);
/// ```
pub fn number(word: &str) -> Option<u64> {
    let radix = |digits: &str, radix| {
        let digits = digits.replace('_', "");
        // `from_str_radix` would take a sign.
        let starts_well = digits.starts_with(|first: char| first.is_digit(radix));
        u64::from_str_radix(&digits, radix).ok().filter(|_| starts_well)
    };
    if word.starts_with('_') || word.ends_with('_') {
        return None;
    }
    for (prefix, base) in [("0x", 16), ("0X", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = word.strip_prefix(prefix) {
            return radix(digits, base);
        }
    }
    let shift = match word.chars().next_back()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return radix(word, 10),
    };
    radix(&word[..word.len() - 1], 10)?.checked_mul(1 << shift)
}

/// A number with a sign. One too large for the sign means the negative number with the same 64 bits.
pub(super) fn signed(word: &str) -> Option<i64> {
    match word.strip_prefix('-') {
        Some(magnitude) => 0i64.checked_sub_unsigned(number(magnitude)?),
        None => number(word).map(u64::cast_signed),
    }
}

/// The value of a word, as [`Op`](crate::ops::Op) holds it, or `None` if the word is not of this kind.
pub(super) fn value(kind: Kind, word: &str) -> Option<Value> {
    Some(match kind {
        Kind::Name(_) => json!(name(word)?),
        Kind::MaybeName(_) if word == NONE => Value::Null,
        Kind::MaybeName(_) => json!(name(word)?),
        Kind::Count | Kind::Size | Kind::Address => json!(number(word)?),
        Kind::Signed => json!(signed(word)?),
        Kind::Flags(known) => {
            let bits = |part: &str| symbol(known, part).or_else(|| number(part));
            json!(word.split('|').try_fold(0, |all, part| Some(all | bits(part)?))?)
        }
        Kind::Choice(known) => json!(symbol(known, word).or_else(|| number(word))?),
        Kind::Only(known) => {
            let number = symbol(known, word).or_else(|| number(word))?;
            json!(known.iter().find(|(_, known)| *known == number)?.1)
        }
        Kind::Hva => match number(word) {
            Some(address) => json!(address),
            None => {
                let (map, offset) = match word.rsplit_once('+') {
                    // A quoted name may hold a plus sign of its own.
                    Some((map, offset)) if !word.ends_with('"') => (map, number(offset)?),
                    _ => (word, 0),
                };
                json!({"map": name(map)?, "offset": offset})
            }
        },
        Kind::FdRef if word == NONE => json!(-1),
        Kind::FdRef => match signed(word) {
            Some(number) => json!(number),
            None => json!(name(word)?),
        },
        Kind::Prot if word == NONE => json!(""),
        Kind::Prot => json!(Prot::from_letters(word).filter(|prot| !prot.is_empty())?.letters()),
        Kind::Advice => json!(Advice::ALL.iter().find(|(known, _)| *known == word)?.0),
        Kind::Word(words) => json!(words.iter().find(|known| **known == word)?),
        Kind::Switch { off, on } => match word {
            "true" => json!(true),
            "false" => json!(false),
            _ if word == on => json!(true),
            _ if word == off => json!(false),
            _ => return None,
        },
        Kind::List => json!(list(word)?),
    })
}

/// `[1, 2 3]`
pub(super) fn list(word: &str) -> Option<Vec<u64>> {
    let inside = word.strip_prefix('[')?.strip_suffix(']')?.trim();
    if inside.is_empty() {
        return Some(Vec::new());
    }
    inside.split(',').map(|part| number(part.trim())).collect()
}

/// A name: plain, or in quotes as in JSON.
fn name(word: &str) -> Option<String> {
    if word.starts_with('"') { serde_json::from_str(word).ok() } else { is_plain_name(word).then(|| word.into()) }
}

/// Whether a word can be a name without quotes.
pub(super) fn is_plain_name(word: &str) -> bool {
    let mut characters = word.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|next| next.is_ascii_alphanumeric() || "_.-".contains(next))
}

fn symbol(known: &[Symbol], word: &str) -> Option<u64> {
    known.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
}
