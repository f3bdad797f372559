//! Where in a TOML file each byte of a string stands, so that a mistake inside a `run` block is shown in its line.
//!
//! Simplified: an escape is one place, its backslash.

/// For every byte of `decoded`, and for its end, the byte of `raw` that it comes from; `raw` is the string with its
/// quotes. `None` if `raw` does not decode to `decoded`.
pub(crate) fn offsets(raw: &str, decoded: &str) -> Option<Vec<usize>> {
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| raw.starts_with(quote))?;
    let (escapes, multiline) = (quote.starts_with('"'), quote.len() == 3);
    let mut at = quote.len();
    let end = raw.len().checked_sub(quote.len()).filter(|end| *end >= at)?;
    if multiline {
        // A newline right after the opening quotes is not part of the string.
        let rest = &raw[at..end];
        at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    }
    let mut map = Vec::with_capacity(decoded.len() + 1);
    for character in decoded.chars() {
        at = skip(raw, at, end, escapes, multiline, character);
        let rest = raw.get(at..end)?;
        let length = match rest.strip_prefix('\\') {
            Some(escape) if escapes => 1 + escape_length(escape)?,
            _ if rest.starts_with(character) => character.len_utf8(),
            _ => return None,
        };
        map.extend(std::iter::repeat_n(at, character.len_utf8()));
        at += length;
    }
    map.push(at);
    Some(map)
}

/// Passes over what decodes to nothing: the `\r` of a line's end, and a backslash at it with the blanks that follow.
fn skip(raw: &str, mut at: usize, end: usize, escapes: bool, multiline: bool, next: char) -> usize {
    while let Some(rest) = raw.get(at..end) {
        if rest.starts_with("\r\n") && next == '\n' {
            at += 1;
        } else if escapes && multiline && is_continuation(rest) {
            let blank = rest[1..].find(|character: char| !" \t\r\n".contains(character));
            at += 1 + blank.unwrap_or(rest.len() - 1);
        } else {
            break;
        }
    }
    at
}

fn is_continuation(rest: &str) -> bool {
    rest.strip_prefix('\\').is_some_and(|rest| rest.trim_start_matches([' ', '\t', '\r']).starts_with('\n'))
}

/// How long the escape is, without its backslash.
fn escape_length(escape: &str) -> Option<usize> {
    Some(match escape.chars().next()? {
        'x' => 3,
        'u' => 5,
        'U' => 9,
        _ => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::offsets;

    #[test]
    fn every_kind_of_string() {
        let check = |raw: &str, decoded: &str, expected: &[usize]| {
            assert_eq!(offsets(raw, decoded).as_deref(), Some(expected), "{raw}");
        };
        check("\"ab\"", "ab", &[1, 2, 3]);
        check("'a\\'", "a\\", &[1, 2, 3]);
        check("\"\"\"\na\nb\"\"\"", "a\nb", &[4, 5, 6, 7]);
        check("\"\"\"\r\na\r\nb\"\"\"", "a\nb", &[5, 7, 8, 9]);
        check("\"\"\"\r\na\r\nb\"\"\"", "a\r\nb", &[5, 6, 7, 8, 9]);
        check("\"a\\tb\"", "a\tb", &[1, 2, 4, 5]);
        check("\"\\u00e9b\"", "éb", &[1, 1, 7, 8]);
        check("\"\"\"a\\\n  b\"\"\"", "ab", &[3, 8, 9]);
        check("\"\"", "", &[1]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(offsets("\"ab\"", "ac"), None);
        assert_eq!(offsets("7", "7"), None);
        assert_eq!(offsets("\"", ""), None);
    }
}
