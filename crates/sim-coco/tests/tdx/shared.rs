//! Shared memory of a TD, through tables of the host.

use crate::machine::{GPA, LP, Machine, leave, params, pfn, with};
use parking_lot::Mutex;
use sim_coco::AccessKind;
use sim_coco::tdx::{Gpaw, GuestStop, Hpa, SharedEpt, SharedWalk};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::sync::Arc;

/// Tables of the host, with one answer for everything.
#[derive(Debug)]
struct Tables(Mutex<SharedWalk>);

impl SharedEpt for Tables {
    fn walk(&self, _: &Cx<'_>, gpa: Gpa, _: AccessKind) -> SharedWalk {
        assert!(Gpaw::Bits48.is_shared(gpa));
        *self.0.lock()
    }
}

fn page(pfn: Pfn, writable: bool) -> SharedWalk {
    SharedWalk::Mapped { pfn, level: Level::L4K, writable }
}

fn with_tables(test: impl FnOnce(&Cx<'_>, &Machine, Hpa, Hpa, &Tables)) {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running_with(cx, crate::machine::K, &params());
        let tables = Arc::new(Tables(Mutex::new(SharedWalk::Violation)));
        machine.tdx.on(LP).vp_wr_shared_eptp(cx, tdvpr, tables.clone()).unwrap();
        test(cx, machine, tdr, tdvpr, &tables);
    });
}

#[test]
fn host_and_guest_see_the_same_bytes() {
    with_tables(|cx, machine, _, tdvpr, tables| {
        let shared = Gpaw::Bits48.shared(GPA);
        let frame = pfn(machine.page());
        machine.tdx.on(LP).host_write(cx, frame, 8, &9u64.to_le_bytes()).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        // Nothing there: an ordinary EPT violation, which no list remembers.
        let Err(GuestStop::Exit(exit)) = guest.read_u64(cx, Gpa(shared.0 + 8)) else { panic!("no exit") };
        assert_eq!((exit.extended, exit.gpa, exit.qualification), (0, shared, 1));
        *tables.0.lock() = page(frame, false);
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.read_u64(cx, Gpa(shared.0 + 8)), Ok(9));
        let Err(GuestStop::Exit(exit)) = guest.write_u64(cx, shared, 1) else { panic!("no exit") };
        assert_eq!(exit.qualification, 2 | 5 << 3);
        *tables.0.lock() = page(frame, true);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, shared, 11).unwrap();
        assert_eq!(machine.phys.peek_u64(frame, 0), 11);
        leave(cx, guest);
    });
}

#[test]
fn mmio_raises_ve() {
    with_tables(|cx, machine, _, tdvpr, tables| {
        *tables.0.lock() = SharedWalk::Ve;
        let shared = Gpaw::Bits48.shared(GPA);
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(matches!(guest.write_u64(cx, shared, 1), Err(GuestStop::Ve(info)) if info.gpa == shared));
        leave(cx, guest);
    });
}

#[test]
fn shared_translations_stay_until_they_are_flushed() {
    with_tables(|cx, machine, tdr, tdvpr, tables| {
        let shared = Gpaw::Bits48.shared(GPA);
        let frames = [pfn(machine.page()), pfn(machine.page())];
        *tables.0.lock() = page(frames[0], true);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, shared, 1).unwrap();
        *tables.0.lock() = page(frames[1], true);
        guest.write_u64(cx, shared, 2).unwrap();
        assert_eq!(frames.map(|frame| machine.phys.peek_u64(frame, 0)), [2, 0]);
        leave(cx, guest);
        machine.tdx.on(LP).invept_global(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, shared, 3).unwrap();
        assert_eq!(frames.map(|frame| machine.phys.peek_u64(frame, 0)), [2, 3]);
        leave(cx, guest);
        // They have the tag of the private ones: a new epoch flushes them, too.
        machine.tdx.on(LP).mem_track(cx, tdr).unwrap();
        leave(cx, machine.enter(cx, tdvpr, LP));
        assert_eq!(machine.tdx.peek_tlb(LP), []);
    });
}

#[test]
fn a_shared_mapping_of_private_memory_reads_the_fixed_value_and_breaks_it_when_written() {
    with_tables(|cx, machine, tdr, tdvpr, tables| {
        let private = machine.aug(cx, tdr, GPA, Level::L4K);
        let shared = Gpaw::Bits48.shared(GPA);
        *tables.0.lock() = page(pfn(private), true);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, sim_coco::tdx::SeptInfo::page(GPA)).unwrap().unwrap();
        guest.write_u64(cx, GPA, 5).unwrap();
        assert_eq!(guest.read_u64(cx, shared), Ok(0));
        assert_eq!(guest.read_u64(cx, GPA), Ok(5));
        guest.write_u64(cx, shared, 1).unwrap();
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Exit(_))));
    });
}
