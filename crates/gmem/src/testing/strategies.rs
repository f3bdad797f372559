//! Strategies for operations: mostly sensible ones on objects that exist, so that deep states are reached, and, on a wild [`Ground`], some
//! of pure garbage.

use super::values::{self, EDGES, FILES_MAX, MEMORY, NEAR, SetUp};
use crate::MachineConfig;
use crate::ops::{Advice, FdRef, GuestPaged, HvaRef, Name, Op, PagedAccess, Prot};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// Where operations take their numbers and names from.
///
/// ```
/// use gmem::testing::strategies::Ground;
/// use proptest::strategy::{Strategy, ValueTree};
/// use proptest::test_runner::TestRunner;
///
/// let punch = Ground::narrow(2).ops(&["fallocate"]).new_tree(&mut TestRunner::deterministic()).unwrap().current();
/// assert_eq!(punch.name(), "fallocate");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground {
    /// Pages that narrow operations meet on; `None` for all of 64 bits.
    pages: Option<u64>,
}

/// A number from the edges of what 64 bits hold.
fn edge() -> impl Strategy<Value = u64> {
    let near =
        (0..EDGES.len(), prop::sample::select(NEAR.to_vec())).prop_map(|(edge, by)| EDGES[edge].wrapping_add(by));
    prop_oneof![4 => near, 1 => any::<u64>(), 1 => any::<u64>().prop_map(|n| n & !0xfff)]
}

fn signed(number: impl Strategy<Value = u64> + 'static) -> BoxedStrategy<i64> {
    number.prop_map(|n| n as i64).boxed()
}

fn pages(most: u64) -> impl Strategy<Value = u64> {
    (0..most).prop_map(|n| n * 4096)
}

fn arbitrary_advice() -> impl Strategy<Value = Advice> {
    (0..Advice::ALL.len()).prop_map(|n| Advice::ALL[n].1)
}

/// The arguments of operations.
impl Ground {
    /// Sizes of MiB, blocks of 2 MiB and odd numbers, and everywhere a few numbers from the edges of 64 bits and names that nothing has.
    pub const WILD: Ground = Ground { pages: None };

    /// So many pages, at least one, at the start of everything: operations of different threads meet. Names are of objects that [`SetUp`] makes.
    pub fn narrow(pages: u64) -> Ground {
        Ground { pages: Some(pages.max(1)) }
    }

    fn is_wild(self) -> bool {
        self.pages.is_none()
    }

    /// One of the sensible values, or rarely an edge.
    fn mostly(self, sensible: impl Strategy<Value = u64> + 'static) -> BoxedStrategy<u64> {
        if self.is_wild() { prop_oneof![24 => sensible, 1 => edge()].boxed() } else { sensible.boxed() }
    }

    fn below(self, n: u64) -> BoxedStrategy<u64> {
        self.mostly(0..n)
    }

    /// A length in bytes: pages, 2 MiB blocks, or something odd.
    fn length(self) -> BoxedStrategy<u64> {
        if let Some(pages) = self.pages {
            return (1..=pages).prop_map(|n| n * 4096).boxed();
        }
        self.mostly(prop_oneof![
            4 => (1..20u64).prop_map(|n| n * 4096),
            3 => (1..4u64).prop_map(|n| n * 2 * M),
            1 => (1..1600u64).prop_map(|n| n * 4096),
            1 => 0..3 * M,
        ])
    }

    /// An offset into something of a few MiB.
    fn offset(self) -> BoxedStrategy<u64> {
        if let Some(most) = self.pages {
            return pages(most).boxed();
        }
        self.mostly(prop_oneof![
            3 => Just(0),
            4 => pages(20),
            3 => (0..4u64).prop_map(|n| n * 2 * M),
            2 => pages(1600),
            1 => 0..5 * M,
        ])
    }

    /// A guest physical address, where most slots are.
    fn gpa(self) -> BoxedStrategy<u64> {
        if let Some(most) = self.pages {
            return pages(most).boxed();
        }
        self.mostly(prop_oneof![
            4 => (0..8u64).prop_map(|n| n * 2 * M),
            4 => pages(40),
            3 => pages(4096),
            1 => 0..8 * M,
            1 => Just(0xf000_0000),
            1 => ((1u64 << 40) - 4 * M..(1 << 40) + 4096).prop_map(|n| n & !0xfff),
        ])
    }

    fn name(self, prefix: &'static str, count: usize) -> BoxedStrategy<Name> {
        let good = (0..count).prop_map(move |n| Name::from(format!("{prefix}{n}")));
        if self.is_wild() { prop_oneof![40 => good, 1 => self.any_name()].boxed() } else { good.boxed() }
    }

    /// A name of any kind, or one that nothing ever gets.
    fn any_name(self) -> impl Strategy<Value = Name> {
        let strange: &[&str] = if self.is_wild() { &["nothing"] } else { &[] };
        prop::sample::select([&["vm0", "vm1", "c0", "g0", "f0", "m0"], strange].concat()).prop_map(Name::from)
    }

    fn vm(self) -> BoxedStrategy<Name> {
        self.name("vm", if self.is_wild() { 2 } else { 1 })
    }

    fn vcpu(self) -> BoxedStrategy<Name> {
        self.name("c", if self.is_wild() { 3 } else { 2 })
    }

    fn gmem(self) -> BoxedStrategy<Name> {
        self.name("g", if self.is_wild() { 3 } else { 1 })
    }

    fn file(self) -> BoxedStrategy<Name> {
        if !self.is_wild() {
            return prop_oneof![3 => self.gmem(), 1 => self.name("f", 1)].boxed();
        }
        prop_oneof![3 => self.gmem(), 2 => self.name("f", 2), 1 => self.any_name()].boxed()
    }

    fn map(self) -> BoxedStrategy<Name> {
        self.name("m", if self.is_wild() { 5 } else { 3 })
    }

    fn prot(self) -> BoxedStrategy<Prot> {
        let any = (0..8u8).prop_map(Prot::from_bits_truncate);
        prop_oneof![6 => Just(Prot::READ | Prot::WRITE), 2 => Just(Prot::READ), 1 => any].boxed()
    }

    fn slot(self) -> BoxedStrategy<u64> {
        if !self.is_wild() {
            return (0..3u64).boxed();
        }
        self.mostly(
            prop_oneof![6 => 0..6u64, 1 => Just(31), 1 => Just(32763), 1 => (0..4u64).prop_map(|n| (1 << 16) + n)],
        )
    }

    fn slot_flags(self) -> BoxedStrategy<u64> {
        self.mostly(prop_oneof![6 => Just(0), 3 => Just(1), 1 => Just(2), 1 => Just(3)])
    }

    fn hva(self) -> BoxedStrategy<HvaRef> {
        let mapped = (self.map(), self.offset()).prop_map(|(map, offset)| HvaRef::Map { map, offset });
        if !self.is_wild() {
            return mapped.boxed();
        }
        prop_oneof![12 => mapped, 1 => edge().prop_map(HvaRef::Raw)].boxed()
    }

    fn alignment(self) -> BoxedStrategy<u64> {
        self.mostly(prop_oneof![2 => Just(4096), 3 => Just(2 * M)])
    }

    /// Any operation of the language, the interesting ones more often.
    pub fn op(self) -> BoxedStrategy<Op> {
        self.of(|_| true)
    }

    /// Any operation with one of these names.
    ///
    /// # Panics
    /// If no operation has one of them.
    pub fn ops(self, names: &[&str]) -> BoxedStrategy<Op> {
        self.of(|name| names.contains(&name))
    }

    fn of(self, is_enabled: impl Fn(&str) -> bool) -> BoxedStrategy<Op> {
        let all = self.all().into_iter().filter(|(name, ..)| is_enabled(name));
        let enabled: Vec<_> = all.map(|(_, weight, op)| (weight, op)).collect();
        assert!(!enabled.is_empty(), "no operation has one of these names");
        Union::new_weighted(enabled).boxed()
    }

    /// Every operation with how often it is drawn.
    fn all(self) -> Vec<(&'static str, u32, BoxedStrategy<Op>)> {
        let g = self;
        vec![
            ("create_vm", 2, (g.vm(), g.below(2)).prop_map(|(vm, r#type)| Op::CreateVm { vm, r#type }).boxed()),
            (
                "create_vcpu",
                3,
                (g.vm(), g.vcpu(), g.below(3), proptest::bool::weighted(0.2))
                    .prop_map(|(vm, vcpu, index, paging)| Op::CreateVcpu { vm, vcpu, index, paging })
                    .boxed(),
            ),
            (
                "check_extension",
                1,
                (prop::option::of(g.vm()), g.mostly(prop::sample::select(vec![3, 10, 118, 233, 235, 244])))
                    .prop_map(|(vm, cap)| Op::CheckExtension { vm, cap })
                    .boxed(),
            ),
            (
                "enable_cap",
                2,
                (
                    g.vm(),
                    g.mostly(prop::sample::select(vec![168, 201, 213])),
                    g.mostly(prop::sample::select(vec![1, 3, 128, 4096])),
                )
                    .prop_map(|(vm, cap, arg)| Op::EnableCap { vm, cap, arg })
                    .boxed(),
            ),
            (
                "create_guest_memfd",
                3,
                (g.vm(), g.gmem(), g.length(), g.below(4))
                    .prop_map(|(vm, fd, size, flags)| Op::CreateGuestMemfd { vm, fd, size, flags })
                    .boxed(),
            ),
            (
                "memfd_create",
                2,
                (g.name("f", 2), g.length(), g.below(2))
                    .prop_map(|(fd, size, flags)| Op::MemfdCreate { fd, size, flags })
                    .boxed(),
            ),
            (
                "set_user_memory_region",
                6,
                (g.vm(), g.slot(), g.slot_flags(), g.gpa(), prop_oneof![5 => g.length(), 1 => Just(0)], g.hva())
                    .prop_map(|(vm, slot, flags, gpa, size, hva)| Op::SetUserMemoryRegion {
                        vm,
                        slot,
                        flags,
                        gpa,
                        size,
                        hva,
                    })
                    .boxed(),
            ),
            (
                "set_user_memory_region2",
                8,
                (
                    g.vm(),
                    g.slot(),
                    prop_oneof![8 => Just(4), 1 => g.slot_flags()],
                    g.gpa(),
                    prop_oneof![5 => g.length(), 1 => Just(0)],
                    g.hva(),
                    prop_oneof![16 => g.gmem().prop_map(FdRef::Name), 1 => signed(edge()).prop_map(FdRef::Raw)],
                    g.offset(),
                )
                    .prop_map(|(vm, slot, flags, gpa, size, hva, guest_memfd, guest_memfd_offset)| {
                        Op::SetUserMemoryRegion2 { vm, slot, flags, gpa, size, hva, guest_memfd, guest_memfd_offset }
                    })
                    .boxed(),
            ),
            (
                "set_memory_attributes",
                8,
                (g.vm(), g.gpa(), g.length(), g.mostly(prop_oneof![3 => Just(8), 2 => Just(0)]), g.mostly(Just(0)))
                    .prop_map(|(vm, gpa, size, attributes, flags)| Op::SetMemoryAttributes {
                        vm,
                        gpa,
                        size,
                        attributes,
                        flags,
                    })
                    .boxed(),
            ),
            (
                "pre_fault_memory",
                6,
                (g.vcpu(), g.gpa(), g.length(), g.mostly(Just(0)))
                    .prop_map(|(vcpu, gpa, size, flags)| Op::PreFaultMemory { vcpu, gpa, size, flags })
                    .boxed(),
            ),
            (
                "get_dirty_log",
                4,
                (g.vm(), g.slot(), g.mostly(0..2048u64))
                    .prop_map(|(vm, slot, npages)| Op::GetDirtyLog { vm, slot, npages })
                    .boxed(),
            ),
            (
                "clear_dirty_log",
                3,
                (
                    g.vm(),
                    g.slot(),
                    g.mostly((0..8u64).prop_map(|word| word * 64)),
                    g.mostly(0..2048u64),
                    vec(g.mostly(0..600u64), 0..8),
                )
                    .prop_map(|(vm, slot, first, npages, dirty)| Op::ClearDirtyLog { vm, slot, first, npages, dirty })
                    .boxed(),
            ),
            (
                "fallocate",
                8,
                (
                    g.file(),
                    g.mostly(prop_oneof![3 => Just(1), 4 => Just(3), 1 => Just(0)]),
                    signed(g.offset()),
                    signed(g.length()),
                )
                    .prop_map(|(fd, mode, offset, len)| Op::Fallocate { fd, mode, offset, len })
                    .boxed(),
            ),
            ("ftruncate", 2, (g.file(), signed(g.length())).prop_map(|(fd, size)| Op::Ftruncate { fd, size }).boxed()),
            ("fstat", 1, g.file().prop_map(|fd| Op::Fstat { fd }).boxed()),
            (
                "pread",
                2,
                (g.file(), signed(g.offset()), signed(g.length()))
                    .prop_map(|(fd, offset, len)| Op::Pread { fd, offset, len })
                    .boxed(),
            ),
            (
                "pwrite",
                2,
                (g.file(), signed(g.offset()), signed(g.length()))
                    .prop_map(|(fd, offset, len)| Op::Pwrite { fd, offset, len })
                    .boxed(),
            ),
            (
                "lseek",
                1,
                (g.file(), signed(g.offset()), g.below(5))
                    .prop_map(|(fd, offset, whence)| Op::Lseek { fd, offset, whence })
                    .boxed(),
            ),
            ("dup", 1, (g.file(), g.file()).prop_map(|(fd, r#as)| Op::Dup { fd, r#as }).boxed()),
            (
                "close",
                2,
                prop_oneof![6 => g.file(), 1 => g.vm(), 1 => g.vcpu(), 1 => g.any_name()]
                    .prop_map(|fd| Op::Close { fd })
                    .boxed(),
            ),
            (
                "mmap",
                6,
                (
                    g.map(),
                    prop_oneof![2 => Just(None), 3 => g.file().prop_map(Some)],
                    g.length(),
                    g.prot(),
                    any::<bool>(),
                    g.mostly(prop_oneof![3 => Just(0), 1 => pages(8)]),
                    g.alignment(),
                )
                    .prop_map(|(map, fd, len, prot, shared, offset, align)| Op::Mmap {
                        map,
                        fd,
                        len,
                        prot,
                        shared,
                        offset,
                        align,
                    })
                    .boxed(),
            ),
            (
                "munmap",
                2,
                (g.map(), g.offset(), g.length())
                    .prop_map(|(map, offset, len)| Op::Munmap { map, offset, len })
                    .boxed(),
            ),
            (
                "mprotect",
                3,
                (g.map(), g.offset(), g.length(), g.prot())
                    .prop_map(|(map, offset, len, prot)| Op::Mprotect { map, offset, len, prot })
                    .boxed(),
            ),
            (
                "madvise",
                10,
                (g.map(), g.offset(), g.length(), arbitrary_advice())
                    .prop_map(|(map, offset, len, advice)| Op::Madvise { map, offset, len, advice })
                    .boxed(),
            ),
            (
                "mincore",
                2,
                (g.map(), g.offset(), g.length())
                    .prop_map(|(map, offset, len)| Op::Mincore { map, offset, len })
                    .boxed(),
            ),
            (
                "mlock",
                1,
                (g.map(), g.offset(), g.length()).prop_map(|(map, offset, len)| Op::Mlock { map, offset, len }).boxed(),
            ),
            (
                "page_idle_mark",
                2,
                (g.map(), g.offset(), g.length())
                    .prop_map(|(map, offset, len)| Op::PageIdleMark { map, offset, len })
                    .boxed(),
            ),
            (
                "page_idle_read",
                2,
                (g.map(), g.offset(), g.length())
                    .prop_map(|(map, offset, len)| Op::PageIdleRead { map, offset, len })
                    .boxed(),
            ),
            (
                "nx_huge_page_recovery",
                1,
                (g.vm(), 0..3u64).prop_map(|(vm, ratio)| Op::NxHugePageRecovery { vm, ratio }).boxed(),
            ),
            ("host_read", 4, (g.map(), g.offset()).prop_map(|(map, offset)| Op::HostRead { map, offset }).boxed()),
            ("host_read64", 2, (g.map(), g.offset()).prop_map(|(map, offset)| Op::HostRead64 { map, offset }).boxed()),
            (
                "host_write64",
                2,
                (g.map(), g.offset(), prop_oneof![1 => 0..9u64, 1 => g.gpte()])
                    .prop_map(|(map, offset, value)| Op::HostWrite64 { map, offset, value })
                    .boxed(),
            ),
            (
                "host_fill64",
                1,
                (g.map(), g.offset(), g.length(), 0..9u64)
                    .prop_map(|(map, offset, len, value)| Op::HostFill64 { map, offset, len, value })
                    .boxed(),
            ),
            (
                "host_write",
                6,
                (g.map(), g.offset(), any::<u64>())
                    .prop_map(|(map, offset, value)| Op::HostWrite { map, offset, value })
                    .boxed(),
            ),
            ("guest_read", 8, (g.vcpu(), g.gpa()).prop_map(|(vcpu, gpa)| Op::GuestRead { vcpu, gpa }).boxed()),
            (
                "guest_write",
                10,
                (g.vcpu(), g.gpa(), any::<u64>())
                    .prop_map(|(vcpu, gpa, value)| Op::GuestWrite { vcpu, gpa, value })
                    .boxed(),
            ),
            (
                "guest_rmw",
                5,
                (g.vcpu(), g.gpa(), any::<u64>())
                    .prop_map(|(vcpu, gpa, value)| Op::GuestRmw { vcpu, gpa, value })
                    .boxed(),
            ),
            (
                "guest_hypercall",
                2,
                (g.vcpu(), g.mostly(Just(12)), vec(prop_oneof![g.gpa(), g.below(4)], 0..6), edge())
                    .prop_map(|(vcpu, nr, args, reply)| Op::GuestHypercall { vcpu, nr, args, reply })
                    .boxed(),
            ),
            ("guest_paged", 3, g.guest_paged().boxed()),
        ]
    }
}

/// Bits of an entry of a guest's table that mean something, in all combinations.
const GPTE_BITS: u64 = 0x8000_0000_0000_01e7;

impl Ground {
    /// A paged access, mostly with its root at the start of a mapping that a slot has.
    fn guest_paged(self) -> impl Strategy<Value = Op> {
        let access = prop::sample::select(vec![
            PagedAccess::Read,
            PagedAccess::Write,
            PagedAccess::ReadModifyWrite,
            PagedAccess::Execute,
        ]);
        // Within the first entries of every table, or anywhere.
        let gva = prop_oneof![4 => (0..4u64, 0..4u64, 0..4u64, 0..4u64, 0..4096u64).prop_map(|(a, b, c, d, offset)| {
            a << 39 | b << 30 | c << 21 | d << 12 | offset
        }), 1 => edge()];
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let cpl = prop::sample::select(vec![0, 3]);
        (self.vcpu(), self.map(), self.gpa(), cpl, access, gva, any::<u64>(), flags).prop_map(
            |(vcpu, root_map, cr3, cpl, access, gva, value, (wp, smep, smap, nxe, ac))| {
                Op::GuestPaged(GuestPaged {
                    vcpu,
                    root_map,
                    root_offset: 0,
                    cr3,
                    cpl,
                    access,
                    gva,
                    value,
                    wp,
                    smep,
                    smap,
                    nxe,
                    ac,
                })
            },
        )
    }

    /// An entry of a guest's table: any bits, and the address of a page of a slot.
    fn gpte(self) -> impl Strategy<Value = u64> {
        (self.gpa(), any::<u64>()).prop_map(|(gpa, bits)| gpa & !0xfff | bits & GPTE_BITS)
    }
}

/// The names of all operations, in the order in which a swarm draws them.
pub fn names() -> Vec<&'static str> {
    Ground::WILD.all().into_iter().map(|(name, ..)| name).collect()
}

/// How the objects that the other operations name are made.
pub fn set_up() -> impl Strategy<Value = SetUp> {
    let aligns = prop::sample::select(vec![4 * K, 2 * M]);
    (0..2u64, 0..4u64, any::<bool>(), 0..3u64, aligns, 0..2u64).prop_map(
        |(r#type, flags, has_file, skew, align, slot_flags)| SetUp { r#type, flags, has_file, skew, align, slot_flags },
    )
}

/// A machine: either format, often with very little memory.
pub fn machine() -> impl Strategy<Value = MachineConfig> {
    let memory = prop::sample::select(MEMORY.to_vec());
    let files = prop::sample::select(FILES_MAX.to_vec());
    (any::<bool>(), any::<bool>(), memory, files)
        .prop_map(|(npt, eager, memory, files)| values::machine(npt, eager, memory, files))
}

/// A whole program for one thread: most of the time it makes objects first.
pub fn program(longest: usize) -> impl Strategy<Value = Vec<Op>> {
    let objects = set_up().prop_map(|set_up| set_up.ops());
    (prop_oneof![6 => objects, 1 => Just(Vec::new())], vec(Ground::WILD.op(), 1..longest)).prop_map(
        |(mut ops, more)| {
            ops.extend(more);
            ops
        },
    )
}
