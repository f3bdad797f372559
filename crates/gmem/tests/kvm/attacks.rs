//! Every attack under `scenarios/attacks/` ends as it says, on the machine with all checks and on the one without the check that stops it.

use gmem::attack::{self, Attack, Machine, StoppedBy};
use proptest::prelude::*;
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
    let mut wrong = Vec::new();
    for attack in Machine::ALL.into_iter().flat_map(attacks) {
        let report = attack::run(&attack);
        for (machine, steps) in [("with all checks", &report.with), ("without the check", &report.without)] {
            for ran in steps.iter().filter(|ran| !ran.is_as_expected()) {
                let (step, expected, answer) = (&ran.step, ran.expected, ran.answer);
                wrong.push(format!("{}:{} {machine}: {}: {answer}, not {expected}", attack.name, step.line, step.text));
            }
        }
        assert_eq!(report.without.is_empty(), attack.stopped_by.by == StoppedBy::Nothing);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_is_an_attack_for_each_way_to_end_and_each_check_of_an_access() {
    for machine in Machine::ALL {
        for way in machine.ways() {
            let is_so = |attack: &Attack| attack.stopped_by.by == way.by;
            assert!(attacks(machine).iter().any(is_so), "{}: {}", machine.facts().name, way.word);
        }
    }
    use sim_coco::snp::mutants::*;
    let of_snp = [HV_OWNED, OWNER, REVMAP, MUTABLE, SIZE, VALID, VMPL, KEEPS_VALIDATED, NO_CF, NO_TAILS];
    use sim_coco::tdx::mutants as tdx;
    // Two tasks have to meet for the locks, and of a TD that is gone nothing can be asked.
    let no_attack = [tdx::ENTRY_LOCK, tdx::TREE_LOCK, tdx::CHILDREN];
    let of_tdx: Vec<_> = tdx::ALL.into_iter().filter(|mutant| !no_attack.contains(mutant)).collect();
    use sim_coco::pkvm::mutants as pkvm;
    // Two tasks have to meet, or nobody gains anything: the host loses a page, or counts one that nobody has; a processor has two translations, and here no access tells.
    let no_attack = [pkvm::K03, pkvm::K05, pkvm::K06, pkvm::K10, pkvm::PARTIAL_SHARE, pkvm::NO_BBM];
    let of_pkvm: Vec<_> = pkvm::ALL.into_iter().filter(|mutant| !no_attack.contains(mutant)).collect();
    for (machine, mutants) in [(Machine::Snp, &of_snp[..]), (Machine::Tdx, &of_tdx), (Machine::Pkvm, &of_pkvm)] {
        for mutant in mutants {
            assert!(attacks(machine).iter().any(|attack| attack.mutant == Some(*mutant)), "{}", mutant.id());
        }
    }
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let many_pages: String = (0..21).map(|i| format!("host take a{i}\n")).collect();
    let cases = [
        ("stopped_by = 'magic'\nrun = 'host take a'", 4, "nobody can stop it so"),
        ("stopped_by = 'nothing'\nrun = '''\nhost take a\nhost tak a\n'''", 7, "this is no step"),
        ("stopped_by = 'nothing'\nrun = 'host take a => ok | pf'", 4, "the steps do not show that"),
        ("stopped_by = 'RMP'\nmutant = 'SNP-VALID'\nrun = 'host take a => ok | pf'", 4, "the steps do not show that"),
        ("stopped_by = 'RMP'\nrun = 'host take a => pf | ok'", 4, "the steps do not show that"),
        ("stopped_by = 'RMP'\nmutant = 'RC-01'\nrun = 'host take a'", 5, "the machine has no rule `RC-01`"),
        ("stopped_by = 'nothing'\nforbids_moves = 1\nrun = 'host take a'", 5, "this is no switch"),
        ("stopped_by = 'nothing'\nrun = 'guest g read 0x1001'", 5, "this is no step"),
        ("stopped_by = 'nothing'\nrun = 'host map g 0x200000 b+511 2m'", 5, "this is no step"),
        ("stopped_by = 'nothing'\nrun = 'host map g 0x3000 b 2m'", 5, "this is no step"),
        ("stopped_by = 'nothing'\nrun = 'host give b g 0x3000 2m'", 5, "this is no step"),
        ("stopped_by = 'nothing'\nrum = 'host take a'", 5, "[attack] has no key `rum`"),
        ("stopped_by = 'nothing'\nrun = ''", 5, "the attack does nothing"),
        (&format!("stopped_by = 'nothing'\nrun = '''\n{}'''", many_pages), 5, "the attack is too long"),
        (
            &format!("stopped_by = 'nothing'\nrun = '''\n{}'''", "host take a\n".repeat(201)),
            5,
            "the attack is too long",
        ),
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

/// A step of some form of a machine, with small operands.
fn step(usage: &'static [(&'static str, &'static str)]) -> impl Strategy<Value = String> {
    let operands = (0..6usize, 0..6usize, 0..6usize, 0..6usize, any::<bool>());
    (proptest::sample::select(usage), operands).prop_map(|((form, _), (a, b, c, d, option))| {
        let mut choices = [a, b, c, d].into_iter().cycle();
        // What SNP's hypervisor gives or maps as one page of 2 MiB begins with one.
        let large = option && (form.starts_with("host give") || form.starts_with("host map"));
        let mut words = Vec::new();
        for token in form.split(' ') {
            // What is in brackets is there or not, as a whole.
            let token = match (token.starts_with('[') || token.ends_with(']'), option) {
                (true, false) => continue,
                _ => token.trim_matches(['[', ']']),
            };
            let choice = choices.next().unwrap_or_default();
            words.push(match token {
                "PAGE" if large => ["a", "b", "a", "a", "c", "b"][choice],
                "GPA" if large => "0x200000",
                "PAGE" => ["a", "b", "a+1", "a", "c", "b+3"][choice],
                "WHO" | "TD" => ["g", "h", "g", "h", "g", "g"][choice],
                "VCPU" => ["g", "g2", "h", "g", "h", "g"][choice],
                "GPA" => ["0x1000", "0x2000", "0x200000", "0x1000", "0x203000", "0x200000"][choice],
                "VALUE" => ["1", "2", "3", "0", "0xbad", "7"][choice],
                "LP" => ["0", "1", "2", "0", "1", "2"][choice],
                "NOTE" => "note",
                literal => literal,
            });
        }
        words.join(" ")
    })
}

/// Steps for a machine, a rule of it that is off or one more for none, and which of its switches are on.
fn steps() -> impl Strategy<Value = (Machine, Vec<String>, usize, usize)> {
    proptest::sample::select(&Machine::ALL[..]).prop_flat_map(|machine| {
        let facts = machine.facts();
        let steps = proptest::collection::vec(step(facts.usage), 1..40);
        (Just(machine), steps, 0..=facts.mutants.len(), 0..1usize << facts.switches.len())
    })
}

proptest! {
    /// Whatever a host tries, on whatever machine, it gets an answer.
    #[test]
    fn every_step_has_an_answer((machine, steps, mutant, switches) in steps()) {
        let facts = machine.facts();
        let (name, run) = (facts.name, steps.join("\n"));
        let source = format!("[attack]\nmachine = '{name}'\nteaches = 'x'\nstopped_by = 'nothing'\nrun = '''\n{run}'''");
        let mut attack = attack::parse("x.toml", &source).map_err(|error| TestCaseError::fail(error.render(false)))?;
        attack.mutant = facts.mutants.get(mutant).copied();
        let on = facts.switches.iter().enumerate().filter(|(i, _)| switches >> i & 1 != 0);
        attack.switches = on.map(|(_, (_, switch, _))| *switch).collect();
        // The machine that a mutant is off on is the second, which an attack has that something stops.
        attack.stopped_by = machine.ways().next().expect("something can stop an attack");
        let report = attack::run(&attack);
        prop_assert_eq!((report.with.len(), report.without.len()), (steps.len(), steps.len()));
    }
}
