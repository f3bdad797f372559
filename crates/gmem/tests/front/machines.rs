//! Machines other than that of the first recordings: how files describe them, and what they answer.

use gmem::facts::FACTS;
use gmem::interp::Sequential;
use gmem::ops::Op;
use gmem::replay::Executor;
use gmem::trace::{Reader, emit};
use gmem::{KernelVersion, MachineConfig, Simulator, SnpCpuid, Stage2Kind, Status, Thp, cli, scenario};
use sim_kernel::Faults;
use sim_mmu::tlb::TlbConfig;
use std::fs;

/// A machine with a software implementation of KVM: shadow paging, no private memory, and Linux 6.18.
fn shadow() -> MachineConfig {
    MachineConfig {
        kernel: KernelVersion::V6_18_44,
        tdp_enabled: false,
        memory: 24 << 30,
        maxphyaddr: 46,
        transparent_hugepage: Thp::Madvise,
        sw_protected_vm: false,
        memory_attributes: false,
        smm: false,
        ..MachineConfig::default()
    }
}

/// The answers of a program, one operation a line as in a scenario.
fn answers(machine: &MachineConfig, program: &str) -> Vec<String> {
    let mut machine = Sequential::new(machine.clone());
    let lines = program.lines().map(str::trim).filter(|line| !line.is_empty());
    let ops: Vec<Op> = lines.map(|line| scenario::parse_line(line).unwrap().op).collect();
    ops.iter().map(|op| machine.execute(op).answer.to_string()).collect()
}

#[test]
fn releases_lead_to_the_newest_model_that_is_not_newer() {
    for (name, version) in KernelVersion::ALL {
        assert_eq!(name.parse(), Ok(version));
        assert_eq!(version.to_string(), name);
        assert_eq!(format!("{name}-rt2").parse(), Ok(version));
    }
    for (name, version) in [
        ("6.9", "6.8"),
        ("6.17.1", "6.12"),
        ("6.18.43", "6.18"),
        ("6.18.45-x", "6.18.44"),
        ("7.0+", "6.18.44"),
        ("8.0", "7.3"),
    ] {
        assert_eq!(name.parse::<KernelVersion>().unwrap().to_string(), version, "{name}");
    }
    for name in ["", "7", "7.", ".3", "7.x", "7.3x", "-7.3", "+7.3", "99999999999.1", "6.7.12", "5.19", "6.18 "] {
        assert!(name.parse::<KernelVersion>().is_err(), "{name:?} is a release");
    }
}

#[test]
fn a_header_says_everything_of_a_machine() {
    let ept = MachineConfig { stage2: Stage2Kind::Ept, eager_page_split: false, files_max: 7, ..shadow() };
    let ept = MachineConfig { tdp_enabled: true, transparent_hugepage: Thp::Never, ..ept };
    for machine in [MachineConfig::default(), shadow(), ept] {
        let release = machine.kernel.to_string();
        let text = emit::new_header(&machine.to_header("t", "f", &release));
        let reader = Reader::new("t.jsonl", text.as_bytes()).unwrap();
        assert_eq!(MachineConfig::from_header(reader.header()), Ok(machine), "{text}");
        assert_eq!(reader.header_text(), text);
    }
    let text = emit::new_header(&shadow().to_header("live", "f", "6.18.44"));
    expect_test::expect![[r#"{"trace": 1, "name": "live", "family": "f", "kernel": "6.18.44", "arch": "x86_64", "stage2": "shadow", "machine": {"memory": 25769803776, "maxphyaddr": 46, "transparent_hugepage": "madvise", "sw_protected_vm": false, "memory_attributes": false, "smm": false}, "spte": false}"#]]
    .assert_eq(&text);
}

#[test]
fn a_scenario_says_everything_of_a_machine() {
    let text = r#"
        [machine]
        kernel = "6.18.44"
        stage2 = "shadow"
        memory = "24G"
        maxphyaddr = 46
        tlb = "none"
        transparent_hugepage = "madvise"
        sw_protected_vm = false
        memory_attributes = false
        smm = false
        max_vcpus = 1024
        eager_page_split = false
        ept_ad_bits = false
        pml = true
        nx_huge_pages = true
        files_max = 100
        memory_failure = true
        hwpoison_abba = false
        xarray_steps = true
        snp = true
        snp_asids = 9
        snp_contention = true
        snp_cpuid = "any"
        ciphertext_hiding = true
        tdx = true
        tdx_hkids = 7
        tdx_packages = 2
        tdx_contention = true
        tdx_host_priority = true
        tdx_erratum = true
        tdx_caches = true
        tdx_2m = true
        tdx_dynamic_pamt = true
        tdx_terminate_vm = true
        pkvm = false
        pkvm_gmem = false
        memlock = "64K"
        gmem_2m_enabled = true
        fail_frame = 1
        fail_table = 2
        fail_node = 3
        busy_private = 6
        psp_timeout = 7
        signal_step = 4
        signal_task = 5
        [setup]
        run = "create_vm vm0"
    "#;
    let faults = Faults { frame: 1, table: 2, node: 3, busy: 6, firmware: 7, signal_step: 4, signal_task: 5 };
    let failure = MachineConfig {
        tlb: TlbConfig::NONE,
        ept_ad_bits: false,
        pml: true,
        nx_huge_pages: true,
        memory_failure: true,
        hwpoison_abba: false,
        xarray_steps: true,
        snp: true,
        snp_asids: 9,
        snp_contention: true,
        snp_cpuid: SnpCpuid::Any,
        ciphertext_hiding: true,
        tdx: true,
        tdx_hkids: 7,
        tdx_packages: 2,
        tdx_contention: true,
        tdx_host_priority: true,
        tdx_erratum: true,
        tdx_caches: true,
        tdx_2m: true,
        tdx_dynamic_pamt: true,
        tdx_terminate_vm: true,
        memlock: 64 << 10,
        gmem_2m_enabled: true,
        faults,
        ..shadow()
    };
    let expected = MachineConfig { eager_page_split: false, max_vcpus: 1024, files_max: 100, ..failure };
    assert_eq!(scenario::parse("t.toml", text).unwrap().machine, expected);
    // A fact that is added has to be added here.
    assert!(FACTS.iter().all(|fact| text.contains(fact.name)));
}

#[test]
fn shadow_paging_takes_away_what_needs_the_tdp_mmu() {
    let program = "
        check_extension vm_types
        check_extension pre_fault_memory
        check_extension memory_attributes
        create_vm vm1 sw_protected
        create_vm vm0
        create_vcpu vm0 c0
        set_memory_attributes vm0 0 4K shared
        pre_fault_memory c0 0 4K
        pre_fault_memory c0 0 0
        mmap m0 len=4K
        set_user_memory_region vm0 slot=0 gpa=0xffffffffff000 size=4K hva=m0
        set_user_memory_region vm0 slot=0 gpa=0x10000000000000 size=4K hva=m0
        set_user_memory_region vm0 slot=1 gpa=0x1000 size=4K hva=m0
        guest_write c0 0x1000 7
        host_read m0
    ";
    let shadow = answers(&shadow(), program);
    let expected = [
        r#"{"ok": 1}"#,
        r#"{"ok": 0}"#,
        r#"{"ok": 0}"#,
        r#"{"errno": "EINVAL"}"#,
        r#"{"ok": 0}"#,
        r#"{"ok": 0}"#,
        r#"{"errno": "ENOTTY"}"#,
        r#"{"errno": "EOPNOTSUPP", "gpa": 0, "size": 4096}"#,
        r#"{"errno": "EINVAL", "gpa": 0, "size": 0}"#,
        r#"{"ok": 0}"#,
        r#"{"ok": 0}"#,
        r#"{"errno": "EINVAL"}"#,
        r#"{"ok": 0}"#,
        r#"{"exit": "hlt"}"#,
        r#"{"ok": 0, "value": 7}"#,
    ];
    assert_eq!(shadow, expected);
    let tdp = answers(&MachineConfig::default(), program);
    assert_eq!(tdp[..3], [r#"{"ok": 3}"#, r#"{"ok": 1}"#, r#"{"ok": 8}"#]);
    assert_eq!(tdp[10], r#"{"errno": "EINVAL"}"#, "a slot beyond MAXPHYADDR");
}

#[test]
fn a_kernel_without_sw_protected_vms_may_have_attributes() {
    let machine = MachineConfig { sw_protected_vm: false, ..MachineConfig::default() };
    let program = "
        check_extension vm_types
        check_extension memory_attributes
        create_vm vm1 sw_protected
        create_vm vm0
        set_memory_attributes vm0 0 4K shared
        set_memory_attributes vm0 0 4K private
    ";
    let expected = [r#"{"ok": 1}"#, r#"{"ok": 8}"#, r#"{"errno": "EINVAL"}"#, r#"{"ok": 0}"#, r#"{"ok": 0}"#];
    let answers = answers(&machine, program);
    assert_eq!(answers[..5], expected);
    assert_eq!(answers[5], r#"{"errno": "EINVAL"}"#);
}

#[test]
fn without_smm_there_is_one_address_space() {
    let program = "
        check_extension 118
        create_vm vm0
        check_extension 118 vm0
        mmap m0 len=4K
        set_user_memory_region vm0 slot=0x10000 gpa=0x1000 size=4K hva=m0
    ";
    let with = answers(&MachineConfig::default(), program);
    assert_eq!([&*with[0], &*with[2], &*with[4]], [r#"{"ok": 2}"#, r#"{"ok": 2}"#, r#"{"ok": 0}"#]);
    let without = answers(&MachineConfig { smm: false, ..MachineConfig::default() }, program);
    assert_eq!([&*without[0], &*without[2], &*without[4]], [r#"{"ok": 0}"#, r#"{"ok": 0}"#, r#"{"errno": "EINVAL"}"#]);
}

/// With `Always` a guest's first read of an aligned block maps 2 MiB; `Madvise` asks for advice, `Never` refuses.
#[test]
fn transparent_hugepage_is_honoured_by_stage_2() {
    let first_leaf_level = |thp: Thp, advice: &str| {
        let machine = MachineConfig { transparent_hugepage: thp, ..MachineConfig::default() };
        let mut machine = Sequential::new(machine);
        let program = format!(
            "create_vm vm0\ncreate_vcpu vm0 c0\nmmap m0 len=2M align=2M\nmadvise m0 0 2M {advice}\n\
             set_user_memory_region vm0 slot=0 gpa=0x200000 size=2M hva=m0\nguest_write c0 0x200000 1"
        );
        let runs = program.lines().map(|line| machine.execute(&scenario::parse_line(line).unwrap().op).spte);
        let last = runs.last().unwrap();
        last.iter().find(|run| run.to == gmem::ops::SpteState::Leaf).unwrap().level
    };
    let levels = |thp| ["normal", "hugepage", "nohugepage"].map(|advice| first_leaf_level(thp, advice));
    assert_eq!(levels(Thp::Always), [2, 2, 1]);
    assert_eq!(levels(Thp::Madvise), [1, 2, 1]);
    assert_eq!(levels(Thp::Never), [1, 1, 1]);
}

fn gmem(arguments: &[&str]) -> (Status, String, String) {
    let (mut out, mut errors) = (Vec::new(), String::new());
    let arguments = ["gmem"].iter().chain(arguments).copied();
    let status = cli::execute(arguments, &Simulator, &mut out, &mut |text| errors.push_str(text));
    (status, String::from_utf8(out).unwrap(), errors)
}

#[test]
fn with_shadow_paging_only_answers_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("live.jsonl");
    let header = emit::new_header(&shadow().to_header("live", "live", "6.18.44"));
    let good =
        r#"{"op": "create_vm", "vm": "vm0", "type": 0, "ret": {"ok": 0}, "spte": [[0, 1, 4, "none", "table", 0]]}"#;
    let bad = r#"{"op": "create_vm", "vm": "vm1", "type": 1, "ret": {"ok": 0}}"#;
    fs::write(&path, format!("{header}\n{good}\n")).unwrap();
    let path = path.to_str().unwrap();
    let (status, out, _) = gmem(&["replay", path]);
    assert_eq!(status, Status::Success);
    expect_test::expect![[r#"
        family   files  operations       answers agree      stage 2 agrees
        live         1           1          1  100.00%          0        -
        total        1           1          1  100.00%          0        -

        of 1 operations only the answers were recorded and are compared
    "#]]
    .assert_eq(&out);
    fs::write(path, format!("{header}\n{good}\n{bad}\n")).unwrap();
    let (status, out, _) = gmem(&["replay", path]);
    assert_eq!(status, Status::Found);
    let out = out.replace(folder.path().to_str().unwrap(), "");
    expect_test::expect![[r#"
        family   files  operations       answers agree      stage 2 agrees
        live         1           2          1   50.00%          0        -
        total        1           2          1   50.00%          0        -

        /live.jsonl:3: {"op": "create_vm", "vm": "vm1", "type": 1}
          expected {"ok": 0}
          got      {"errno": "EINVAL"}

        of 2 operations only the answers were recorded and are compared
    "#]]
    .assert_eq(&out);
    // What is printed again is the header as it came.
    let (_, out, _) = gmem(&["replay", "--emit", path]);
    assert!(out.starts_with(&format!("{header}\n")), "{out}");
}

/// A machine that is busy when KVM asks it to make a page private: the call ends with EAGAIN, nothing is mapped, and whoever asks again is served.
#[test]
fn a_machine_may_be_busy_once() {
    let program = "
        create_vm vm0 sw_protected
        create_vcpu vm0 c0
        mmap m0 len=16K align=2M
        create_guest_memfd vm0 g0 size=16K
        set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0
        set_memory_attributes vm0 0x200000 12K private
        guest_write c0 0x200000 1
        guest_write c0 0x200000 2
        guest_write c0 0x201000 3
        pre_fault_memory c0 0x202000 4K
        pre_fault_memory c0 0x202000 4K
        guest_read c0 0x200000
        host_write m0 0x3000 4
        guest_read c0 0x203000
    ";
    let answers = |busy| {
        let faults = Faults { busy, ..Faults::default() };
        let all = answers(&MachineConfig { faults, ..MachineConfig::default() }, program);
        all[6..].to_vec()
    };
    let undisturbed = answers(0);
    let mut told = String::new();
    for busy in 1..=6 {
        for (line, (answer, usual)) in answers(busy).iter().zip(&undisturbed).enumerate() {
            if answer != usual {
                told.push_str(&format!("{busy}: line {line}: {usual} becomes {answer}\n"));
            }
        }
    }
    expect_test::expect![[r#"
        1: line 0: {"exit": "hlt"} becomes {"errno": "EAGAIN", "exit": "memory_fault", "flags": 8, "gpa": 2097152, "size": 4096}
        2: line 2: {"exit": "hlt"} becomes {"errno": "EAGAIN", "exit": "memory_fault", "flags": 8, "gpa": 2101248, "size": 4096}
        3: line 3: {"ok": 0, "gpa": 2109440, "size": 0} becomes {"errno": "EAGAIN", "gpa": 2105344, "size": 4096}
        4: line 4: {"ok": 0, "gpa": 2109440, "size": 0} becomes {"errno": "EAGAIN", "gpa": 2105344, "size": 4096}
    "#]]
    .assert_eq(&told);
}

#[test]
fn another_kernel_can_be_asked() {
    let path = super::kept_recordings().join("life-001.jsonl");
    let (status, out, errors) = gmem(&["replay", "--kernel", "6.1", path.to_str().unwrap()]);
    assert_eq!((status, out.as_str()), (Status::BadInput, ""));
    assert!(errors.contains("older than 6.8"), "{errors}");
    let (status, _, errors) = gmem(&["replay", "--kernel", "7.3.9", path.to_str().unwrap()]);
    assert_eq!((status, errors.as_str()), (Status::Success, ""));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.toml");
    fs::write(&path, "[setup]\nrun = 'create_vm vm0 => EINVAL'\n").unwrap();
    let (status, out, _) = gmem(&["run", "--kernel", "6.18.2", path.to_str().unwrap()]);
    assert_eq!(status, Status::Found);
    assert!(out.contains(", Linux 6.18, npt, "), "{out}");
    let again = format!("gmem run {} --kernel 6.18 --schedule ", path.display());
    assert!(out.contains(&again), "the command that repeats the run names the kernel: {out}");
}
