//! "Did you mean ...?": the nearest of some known words.
//!
//! Simplified: plain edit distance with swaps (optimal string alignment); at most a third of the word may differ.

/// The known word nearest to `word`, if any is near enough to be what was meant.
///
/// ```
/// use gmem::ops::suggest::nearest;
/// assert_eq!(nearest("guest_raed", ["guest_read", "guest_write"]), Some("guest_read"));
/// assert_eq!(nearest("xyzzy", ["guest_read"]), None);
/// ```
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A misspelt word is short; a long one is something else and not worth a quadratic search.
    if word.len() > 64 {
        return None;
    }
    let may_differ = |candidate: &str| candidate.len().max(word.len()).max(3) / 3;
    let length = word.chars().count();
    known
        .into_iter()
        // The distance is at least the difference of the lengths, which is found out sooner.
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= may_differ(candidate))
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= may_differ(candidate))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean ...?` or nothing: the tail of an error message.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |found| format!("; did you mean `{found}`?"))
}

fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
