//! Races of Linux 7.3 itself: what `scenarios/tdx/known` are about is found.

use gmem::scenario::parse;
use gmem::testing::race;

/// Searches, and the interleavings that each tries.
const SEARCHES: u64 = 10;
const EXECUTIONS: u64 = 100;

#[test]
fn what_linux_does_wrong_at_the_end_of_a_launch_is_found() {
    for (name, text) in [
        ("finalize-punch.toml", include_str!("../../../../../scenarios/tdx/known/finalize-punch.toml")),
        ("extend-punch.toml", include_str!("../../../../../scenarios/tdx/known/extend-punch.toml")),
    ] {
        let scenario = parse(name, text).unwrap_or_else(|error| panic!("{}", error.render(false)));
        let failure = (0..SEARCHES).find_map(|n| race::search(&scenario, n * EXECUTIONS, EXECUTIONS));
        let failure = failure.unwrap_or_else(|| panic!("{name}: nothing is found any more"));
        assert!(["TDX-INV-015", "TDX-INV-018"].contains(&&*failure.kind), "{name}: {}", failure.message);
    }
}
