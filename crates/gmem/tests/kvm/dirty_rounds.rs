//! MM-094: what guests write in one round of the dirty log is in that or the next one, with the record of stores beside the machine (MMU-INV-040).

use super::*;
use sim_mmu::Stage2Kind;

const GPA: u64 = 2 << 20;
const PAGES: u64 = 3;
const ROUNDS: u64 = 3;

/// Guests write all pages while the log is read again and again. Whoever reads it copies what it names; in the end the copy is the memory.
fn rounds(config: &MachineConfig, schedules: u64) {
    let setup = |cx: &Cx<'_>| {
        let host = Host::new(cx, config.clone());
        host.watch_guests();
        let m = Machine::on(cx, &host, 0);
        let hva = m.anonymous(cx, PAGES * PAGE_SIZE);
        m.slot(cx, 0, KVM_MEM_LOG_DIRTY_PAGES, GPA, PAGES * PAGE_SIZE, hva).unwrap();
        for id in 0..2 {
            let (_, vcpu) = m.vcpu(cx, id);
            cx.spawn(&format!("vcpu{id}"), move |cx| {
                for round in 0..ROUNDS {
                    for page in 0..PAGES {
                        let gpa = Gpa(GPA + page * PAGE_SIZE + id * 4);
                        vcpu.set_program(cx, &[GuestInsn::Write { gpa, value: (round + 1) as u32 }]);
                        assert_eq!(vcpu.run(cx).0, Ok(()));
                    }
                }
            });
        }
        let copy: Arc<parking_lot::Mutex<Vec<u64>>> = Arc::new(parking_lot::Mutex::new(vec![0; PAGES as usize]));
        let (collector, copied) = (m.clone(), Arc::clone(&copy));
        cx.spawn("collector", move |cx| {
            for _ in 0..ROUNDS {
                collect(cx, &collector, hva, &copied);
            }
        });
        (m, hva, copy)
    };
    race(schedules, setup, |cx, (m, hva, copy)| {
        m.vm.check_invariants();
        collect(cx, m, *hva, copy);
        let memory: Vec<u64> =
            (0..PAGES).map(|page| m.process.read_u64(cx, *hva + page * PAGE_SIZE).unwrap()).collect();
        assert_eq!(*copy.lock(), memory);
        assert_eq!(memory, [ROUNDS << 32 | ROUNDS; PAGES as usize]);
    });
}

/// One round: reads the log, and copies the pages that it names.
fn collect(cx: &Cx<'_>, m: &Machine, hva: Hva, copy: &parking_lot::Mutex<Vec<u64>>) {
    let words = ioctl::get_dirty_log(cx, &m.process, m.fd, 0).unwrap();
    for page in (0..PAGES).filter(|page| words[0] >> page & 1 != 0) {
        let value = m.process.read_u64(cx, hva + page * PAGE_SIZE).unwrap();
        copy.lock()[page as usize] = value;
    }
}

#[test]
fn mm_094_every_write_is_reported_in_that_or_the_next_round() {
    rounds(&MachineConfig::default(), 1500);
}

#[test]
fn mm_094_with_the_modification_log() {
    rounds(&MachineConfig { stage2: Stage2Kind::Ept, pml: true, ..MachineConfig::default() }, 1500);
}

#[test]
fn mm_094_without_accessed_and_dirty_bits() {
    rounds(&MachineConfig { stage2: Stage2Kind::Ept, ept_ad_bits: false, ..MachineConfig::default() }, 500);
}
