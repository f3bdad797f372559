//! Every attack under `scenarios/attacks/` ends as it says, on the machine with all checks and on the one without the check that stops it.

use gmem::attack::{self, Attack, Machine, StoppedBy};
use std::path::Path;

/// Those of a machine, which have a folder of its name.
fn attacks(machine: Machine) -> Vec<Attack> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/attacks").join(machine.facts().name);
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("attacks exist").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let parse = |path: std::path::PathBuf| {
        let source = std::fs::read_to_string(&path).unwrap();
        let attack = attack::parse(&path.display().to_string(), &source);
        let attack = attack.unwrap_or_else(|error| panic!("{}", error.render(false)));
        assert_eq!(attack.machine, machine, "{}", path.display());
        attack
    };
    paths.into_iter().map(parse).collect()
}

#[test]
fn every_attack_ends_as_it_says_with_and_without_the_check() {
    for attack in Machine::ALL.into_iter().flat_map(attacks) {
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
        assert_eq!(report.without.is_empty(), attack.stopped_by.by == StoppedBy::Nothing);
    }
}

#[test]
fn there_is_an_attack_for_each_way_to_end_and_each_check_of_an_access() {
    for machine in Machine::ALL {
        for way in machine.ways() {
            let is_so = |attack: &Attack| attack.stopped_by.by == way.by;
            assert!(attacks(machine).iter().any(is_so), "{}: {}", machine.facts().name, way.word);
        }
    }
    let attacks = attacks(Machine::Snp);
    use sim_coco::snp::mutants::*;
    for mutant in [HV_OWNED, OWNER, REVMAP, MUTABLE, SIZE, VALID, VMPL, KEEPS_VALIDATED, NO_CF, NO_TAILS] {
        assert!(attacks.iter().any(|attack| attack.mutant == Some(mutant)), "{}", mutant.id());
    }
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let cases = [
        ("stopped_by = 'magic'\nrun = 'host take a'", 4, "nobody can stop it so"),
        ("stopped_by = 'nothing'\nrun = '''\nhost take a\nhost tak a\n'''", 7, "this is no step"),
        ("stopped_by = 'nothing'\nrun = 'host take a => ok | pf'", 4, "the steps do not show that"),
        ("stopped_by = 'RMP'\nmutant = 'SNP-VALID'\nrun = 'host take a => ok | pf'", 4, "the steps do not show that"),
        ("stopped_by = 'RMP'\nrun = 'host take a => pf | ok'", 4, "the steps do not show that"),
        ("stopped_by = 'RMP'\nmutant = 'RC-01'\nrun = 'host take a'", 5, "the machine has no rule `RC-01`"),
        ("stopped_by = 'nothing'\nforbids_moves = 1\nrun = 'host take a'", 5, "this is no switch"),
        ("stopped_by = 'nothing'\nrun = 'guest g read 0x1001'", 5, "this is no step"),
        ("stopped_by = 'nothing'\nrum = 'host take a'", 5, "[attack] has no key `rum`"),
        ("stopped_by = 'nothing'\nrun = ''", 5, "the attack does nothing"),
    ];
    let whole = [
        ("[attack", 1, "this is not TOML"),
        ("", 1, "there is no attack"),
        ("[attack]\nteaches = 'x'", 1, "[attack] has no `machine`"),
        ("[attack]\nmachine = 'enigma'", 2, "there is no such machine"),
    ];
    let begun =
        cases.map(|(rest, line, title)| (format!("[attack]\nmachine = 'snp'\nteaches = 'x'\n{rest}"), line, title));
    for (source, line, title) in
        begun.into_iter().chain(whole.map(|(source, line, title)| (source.into(), line, title)))
    {
        let error = attack::parse("x.toml", &source).unwrap_err();
        assert_eq!((error.line(), error.title.as_str()), (line, title), "{source}\n{error}");
    }
}
