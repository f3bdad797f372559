//! Every attack under `scenarios/attacks/` ends as it says, on the machine with all checks and on the one without the check that stops it.

use gmem::attack::{self, Attack, StoppedBy};
use std::path::Path;

fn attacks() -> Vec<Attack> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/attacks/snp");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("attacks exist").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let parse = |path: std::path::PathBuf| {
        let source = std::fs::read_to_string(&path).unwrap();
        attack::parse(&path.display().to_string(), &source).unwrap_or_else(|error| panic!("{}", error.render(false)))
    };
    paths.into_iter().map(parse).collect()
}

#[test]
fn every_attack_ends_as_it_says_with_and_without_the_check() {
    for attack in attacks() {
        let report = attack::run(&attack);
        for (machine, steps) in [("with all checks", &report.with), ("without the check", &report.without)] {
            for ran in steps {
                let (step, expected, answer) = (&ran.step, ran.expected, ran.answer);
                assert!(
                    ran.is_as_expected(),
                    "{}:{} {machine}: {}: {answer}, not {expected}",
                    attack.name,
                    step.line,
                    step.text
                );
            }
        }
        assert_eq!(report.without.is_empty(), attack.stopped_by == StoppedBy::Nothing);
    }
}

#[test]
fn there_is_an_attack_for_each_way_to_end_and_each_check_of_an_access() {
    let attacks = attacks();
    for stopped_by in [StoppedBy::Rmp, StoppedBy::Guest, StoppedBy::Firmware, StoppedBy::Nothing] {
        assert!(attacks.iter().any(|attack| attack.stopped_by == stopped_by), "{stopped_by:?}");
    }
    use sim_coco::snp::mutants::*;
    for mutant in [HV_OWNED, OWNER, REVMAP, MUTABLE, SIZE, VALID, VMPL, KEEPS_VALIDATED, NO_CF, NO_TAILS] {
        assert!(attacks.iter().any(|attack| attack.mutant == Some(mutant)), "{}", mutant.id());
    }
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let cases = [
        ("[attack]\nteaches = 'x'\nstopped_by = 'magic'\nrun = 'host take a'", 3, "nobody can stop it so"),
        (
            "[attack]\nteaches = 'x'\nstopped_by = 'nothing'\nrun = '''\nhost take a\nhost tak a\n'''",
            6,
            "this is no step",
        ),
        (
            "[attack]\nteaches = 'x'\nstopped_by = 'nothing'\nrun = 'host take a => ok | pf'",
            3,
            "the steps do not show that",
        ),
        (
            "[attack]\nteaches = 'x'\nstopped_by = 'RMP'\nmutant = 'SNP-VALID'\nrun = 'host take a => ok | pf'",
            3,
            "the steps do not show that",
        ),
        (
            "[attack]\nteaches = 'x'\nstopped_by = 'RMP'\nmutant = 'RC-01'\nrun = 'host take a'",
            4,
            "the machine has no rule `RC-01`",
        ),
        ("[attack]\nteaches = 'x'\nstopped_by = 'nothing'\nrun = 'guest g read 0x1001'", 4, "this is no step"),
        ("[attack]\nteaches = 'x'\nstopped_by = 'nothing'\nrum = 'host take a'", 4, "[attack] has no key `rum`"),
        ("[attack]\nteaches = 'x'\nstopped_by = 'nothing'\nrun = ''", 4, "the attack does nothing"),
        ("[attack", 1, "this is not TOML"),
        ("", 1, "there is no attack"),
    ];
    for (source, line, title) in cases {
        let error = attack::parse("x.toml", source).unwrap_err();
        assert_eq!((error.line(), error.title.as_str()), (line, title), "{source}\n{error}");
    }
}
