//! Generates operations: mostly sensible ones on objects that exist, so that deep states are reached, and some of pure garbage.

use gmem::MachineConfig;
use gmem::ops::{Advice, FdRef, HvaRef, Name, Op, Prot};
use gmem_fuzz_targets::values::{self, EDGES, FILES_MAX, MEMORY, NEAR, SetUp};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;

const M: u64 = 1 << 20;

/// A number from the edges of what 64 bits hold.
fn edge() -> impl Strategy<Value = u64> {
    let near =
        (0..EDGES.len(), prop::sample::select(NEAR.to_vec())).prop_map(|(edge, by)| EDGES[edge].wrapping_add(by));
    prop_oneof![4 => near, 1 => any::<u64>(), 1 => any::<u64>().prop_map(|n| n & !0xfff)]
}

/// One of the sensible values, or rarely an edge.
fn mostly(sensible: impl Strategy<Value = u64> + 'static) -> BoxedStrategy<u64> {
    prop_oneof![24 => sensible, 1 => edge()].boxed()
}

fn signed(number: impl Strategy<Value = u64> + 'static) -> BoxedStrategy<i64> {
    number.prop_map(|n| n as i64).boxed()
}

fn pages(most: u64) -> impl Strategy<Value = u64> {
    (0..most).prop_map(|n| n * 4096)
}

/// A length in bytes: pages, 2 MiB blocks, or something odd.
fn length() -> BoxedStrategy<u64> {
    mostly(prop_oneof![
        4 => (1..20u64).prop_map(|n| n * 4096),
        3 => (1..4u64).prop_map(|n| n * 2 * M),
        1 => (1..1600u64).prop_map(|n| n * 4096),
        1 => 0..3 * M,
    ])
}

/// An offset into something of a few MiB.
fn offset() -> BoxedStrategy<u64> {
    mostly(prop_oneof![
        3 => Just(0),
        4 => pages(20),
        3 => (0..4u64).prop_map(|n| n * 2 * M),
        2 => pages(1600),
        1 => 0..5 * M,
    ])
}

/// A guest physical address, where most slots are.
fn gpa() -> BoxedStrategy<u64> {
    mostly(prop_oneof![
        4 => (0..8u64).prop_map(|n| n * 2 * M),
        4 => pages(40),
        3 => pages(4096),
        1 => 0..8 * M,
        1 => Just(0xf000_0000),
        1 => ((1u64 << 40) - 4 * M..(1 << 40) + 4096).prop_map(|n| n & !0xfff),
    ])
}

fn name(prefix: &'static str, count: usize) -> BoxedStrategy<Name> {
    let good = (0..count).prop_map(move |n| Name::from(format!("{prefix}{n}")));
    prop_oneof![40 => good, 1 => any_name()].boxed()
}

/// A name of any kind, or one that nothing ever gets.
fn any_name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["vm0", "vm1", "c0", "g0", "f0", "m0", "nothing"]).prop_map(Name::from)
}

fn vm() -> BoxedStrategy<Name> {
    name("vm", 2)
}

fn vcpu() -> BoxedStrategy<Name> {
    name("c", 3)
}

fn gmem() -> BoxedStrategy<Name> {
    name("g", 3)
}

fn file() -> BoxedStrategy<Name> {
    prop_oneof![3 => gmem(), 2 => name("f", 2), 1 => any_name()].boxed()
}

fn map() -> BoxedStrategy<Name> {
    name("m", 5)
}

fn prot() -> BoxedStrategy<Prot> {
    prop_oneof![6 => Just(Prot::READ | Prot::WRITE), 2 => Just(Prot::READ), 1 => (0..8u8).prop_map(Prot::from_bits_truncate)]
        .boxed()
}

fn slot() -> BoxedStrategy<u64> {
    mostly(prop_oneof![6 => 0..6u64, 1 => Just(31), 1 => Just(32763), 1 => (0..4u64).prop_map(|n| (1 << 16) + n)])
}

fn slot_flags() -> BoxedStrategy<u64> {
    mostly(prop_oneof![6 => Just(0), 3 => Just(1), 1 => Just(2), 1 => Just(3)])
}

fn hva() -> BoxedStrategy<HvaRef> {
    let mapped = (map(), offset()).prop_map(|(map, offset)| HvaRef::Map { map, offset });
    prop_oneof![12 => mapped, 1 => edge().prop_map(HvaRef::Raw)].boxed()
}

fn alignment() -> BoxedStrategy<u64> {
    mostly(prop_oneof![2 => Just(4096), 3 => Just(2 * M)])
}

fn arbitrary_advice() -> impl Strategy<Value = Advice> {
    (0..Advice::ALL.len()).prop_map(|n| Advice::ALL[n].1)
}

/// Any operation.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    let small = |n: u64| mostly(0..n);
    let ops: Vec<(u32, BoxedStrategy<Op>)> = vec![
        (2, (vm(), small(2)).prop_map(|(vm, r#type)| Op::CreateVm { vm, r#type }).boxed()),
        (3, (vm(), vcpu(), small(3)).prop_map(|(vm, vcpu, index)| Op::CreateVcpu { vm, vcpu, index }).boxed()),
        (
            1,
            (prop::option::of(vm()), mostly(prop::sample::select(vec![3, 10, 118, 233, 235, 244])))
                .prop_map(|(vm, cap)| Op::CheckExtension { vm, cap })
                .boxed(),
        ),
        (
            2,
            (
                vm(),
                mostly(prop::sample::select(vec![168, 201, 213])),
                mostly(prop::sample::select(vec![1, 3, 128, 4096])),
            )
                .prop_map(|(vm, cap, arg)| Op::EnableCap { vm, cap, arg })
                .boxed(),
        ),
        (
            3,
            (vm(), gmem(), length(), small(4))
                .prop_map(|(vm, fd, size, flags)| Op::CreateGuestMemfd { vm, fd, size, flags })
                .boxed(),
        ),
        (
            2,
            (name("f", 2), length(), small(2))
                .prop_map(|(fd, size, flags)| Op::MemfdCreate { fd, size, flags })
                .boxed(),
        ),
        (
            6,
            (vm(), slot(), slot_flags(), gpa(), prop_oneof![5 => length(), 1 => Just(0)], hva())
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
            8,
            (
                vm(),
                slot(),
                prop_oneof![8 => Just(4), 1 => slot_flags()],
                gpa(),
                prop_oneof![5 => length(), 1 => Just(0)],
                hva(),
                prop_oneof![16 => gmem().prop_map(FdRef::Name), 1 => signed(edge()).prop_map(FdRef::Raw)],
                offset(),
            )
                .prop_map(|(vm, slot, flags, gpa, size, hva, guest_memfd, guest_memfd_offset)| {
                    Op::SetUserMemoryRegion2 { vm, slot, flags, gpa, size, hva, guest_memfd, guest_memfd_offset }
                })
                .boxed(),
        ),
        (
            8,
            (vm(), gpa(), length(), mostly(prop_oneof![3 => Just(8), 2 => Just(0)]), mostly(Just(0)))
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
            6,
            (vcpu(), gpa(), length(), mostly(Just(0)))
                .prop_map(|(vcpu, gpa, size, flags)| Op::PreFaultMemory { vcpu, gpa, size, flags })
                .boxed(),
        ),
        (
            4,
            (vm(), slot(), mostly(0..2048u64))
                .prop_map(|(vm, slot, npages)| Op::GetDirtyLog { vm, slot, npages })
                .boxed(),
        ),
        (
            3,
            (
                vm(),
                slot(),
                mostly((0..8u64).prop_map(|word| word * 64)),
                mostly(0..2048u64),
                vec(mostly(0..600u64), 0..8),
            )
                .prop_map(|(vm, slot, first, npages, dirty)| Op::ClearDirtyLog { vm, slot, first, npages, dirty })
                .boxed(),
        ),
        (
            8,
            (file(), mostly(prop_oneof![3 => Just(1), 4 => Just(3), 1 => Just(0)]), signed(offset()), signed(length()))
                .prop_map(|(fd, mode, offset, len)| Op::Fallocate { fd, mode, offset, len })
                .boxed(),
        ),
        (2, (file(), signed(length())).prop_map(|(fd, size)| Op::Ftruncate { fd, size }).boxed()),
        (1, file().prop_map(|fd| Op::Fstat { fd }).boxed()),
        (
            2,
            (file(), signed(offset()), signed(length()))
                .prop_map(|(fd, offset, len)| Op::Pread { fd, offset, len })
                .boxed(),
        ),
        (
            2,
            (file(), signed(offset()), signed(length()))
                .prop_map(|(fd, offset, len)| Op::Pwrite { fd, offset, len })
                .boxed(),
        ),
        (
            1,
            (file(), signed(offset()), small(5))
                .prop_map(|(fd, offset, whence)| Op::Lseek { fd, offset, whence })
                .boxed(),
        ),
        (1, (file(), file()).prop_map(|(fd, r#as)| Op::Dup { fd, r#as }).boxed()),
        (2, prop_oneof![6 => file(), 1 => vm(), 1 => vcpu(), 1 => any_name()].prop_map(|fd| Op::Close { fd }).boxed()),
        (
            6,
            (
                map(),
                prop_oneof![2 => Just(None), 3 => file().prop_map(Some)],
                length(),
                prot(),
                any::<bool>(),
                mostly(prop_oneof![3 => Just(0), 1 => pages(8)]),
                alignment(),
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
        (2, (map(), offset(), length()).prop_map(|(map, offset, len)| Op::Munmap { map, offset, len }).boxed()),
        (
            3,
            (map(), offset(), length(), prot())
                .prop_map(|(map, offset, len, prot)| Op::Mprotect { map, offset, len, prot })
                .boxed(),
        ),
        (
            10,
            (map(), offset(), length(), arbitrary_advice())
                .prop_map(|(map, offset, len, advice)| Op::Madvise { map, offset, len, advice })
                .boxed(),
        ),
        (2, (map(), offset(), length()).prop_map(|(map, offset, len)| Op::Mincore { map, offset, len }).boxed()),
        (1, (map(), offset(), length()).prop_map(|(map, offset, len)| Op::Mlock { map, offset, len }).boxed()),
        (4, (map(), offset()).prop_map(|(map, offset)| Op::HostRead { map, offset }).boxed()),
        (2, (map(), offset()).prop_map(|(map, offset)| Op::HostRead64 { map, offset }).boxed()),
        (2, (map(), offset(), 0..9u64).prop_map(|(map, offset, value)| Op::HostWrite64 { map, offset, value }).boxed()),
        (
            1,
            (map(), offset(), length(), 0..9u64)
                .prop_map(|(map, offset, len, value)| Op::HostFill64 { map, offset, len, value })
                .boxed(),
        ),
        (
            6,
            (map(), offset(), any::<u64>())
                .prop_map(|(map, offset, value)| Op::HostWrite { map, offset, value })
                .boxed(),
        ),
        (8, (vcpu(), gpa()).prop_map(|(vcpu, gpa)| Op::GuestRead { vcpu, gpa }).boxed()),
        (10, (vcpu(), gpa(), any::<u64>()).prop_map(|(vcpu, gpa, value)| Op::GuestWrite { vcpu, gpa, value }).boxed()),
        (5, (vcpu(), gpa(), any::<u64>()).prop_map(|(vcpu, gpa, value)| Op::GuestRmw { vcpu, gpa, value }).boxed()),
        (
            2,
            (vcpu(), mostly(Just(12)), vec(prop_oneof![gpa(), small(4)], 0..6), edge())
                .prop_map(|(vcpu, nr, args, reply)| Op::GuestHypercall { vcpu, nr, args, reply })
                .boxed(),
        ),
    ];
    Union::new_weighted(ops)
}

/// Makes the objects that the other operations name.
pub(crate) fn set_up() -> impl Strategy<Value = Vec<Op>> {
    let aligns = prop::sample::select(vec![4096, 2 * M]);
    (0..2u64, 0..4u64, any::<bool>(), 0..3u64, aligns, 0..2u64).prop_map(
        |(r#type, flags, has_file, skew, align, slot_flags)| {
            SetUp { r#type, flags, has_file, skew, align, slot_flags }.ops()
        },
    )
}

/// A machine: either format, often with very little memory.
pub(crate) fn machine() -> impl Strategy<Value = MachineConfig> {
    let memory = prop::sample::select(MEMORY.to_vec());
    let files = prop::sample::select(FILES_MAX.to_vec());
    (any::<bool>(), any::<bool>(), memory, files)
        .prop_map(|(npt, eager, memory, files)| values::machine(npt, eager, memory, files))
}

/// A whole program.
pub(crate) fn program(longest: usize) -> impl Strategy<Value = Vec<Op>> {
    (prop_oneof![6 => set_up(), 1 => Just(Vec::new())], vec(op(), 1..longest)).prop_map(|(mut ops, more)| {
        ops.extend(more);
        ops
    })
}
