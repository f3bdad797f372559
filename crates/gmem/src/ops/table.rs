//! The operations as data: name, arguments in positional order with kind and default, and one line of help.
//!
//! The scenario parser and printer, the trace reader and their error messages are driven by this table; a test holds it
//! against [`Op`](super::Op). Simplified: symbols exist for the values that guest_memfd programs use, all others are numbers.

use super::suggest::did_you_mean;
use super::{Advice, PagedAccess};
use std::borrow::Cow;

/// What kind of object a name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A virtual machine.
    Vm,
    /// A virtual CPU.
    Vcpu,
    /// A file descriptor (of a VM, too).
    Fd,
    /// A host mapping.
    Map,
}

/// A symbolic name for a number.
pub type Symbol = (&'static str, u64);

/// What values an argument takes, which also says how people write and read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The name of an object.
    Name(Object),
    /// The name of an object, or null in a trace and `none` in a scenario.
    MaybeName(Object),
    /// A number that is printed in decimal.
    Count,
    /// A number of bytes, printed with the largest binary suffix.
    Size,
    /// An address, printed in hexadecimal.
    Address,
    /// A signed number of bytes. A trace may also give it as the unsigned number with the same 64 bits.
    Signed,
    /// Any of these bits, or a number.
    Flags(&'static [Symbol]),
    /// One of these numbers.
    Choice(&'static [Symbol]),
    /// One of these numbers, and no other.
    Only(&'static [Symbol]),
    /// A mapping with an offset, or an address.
    Hva,
    /// The name of a descriptor, or a signed number.
    FdRef,
    /// Letters of `rwx`.
    Prot,
    /// One of the words of [`Advice::ALL`].
    Advice,
    /// One of these words.
    Word(&'static [&'static str]),
    /// True or false, with the words that mean them.
    Switch {
        /// The word for false.
        off: &'static str,
        /// The word for true.
        on: &'static str,
    },
    /// A list of numbers.
    List,
}

/// One argument of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// The field's name in traces, and the name in `name=value`.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is if a scenario does not say, in the scenario's own notation.
    pub default: Option<&'static str>,
    /// Traces may leave it out, and then it is the default: older ones do not know it.
    pub may_be_absent: bool,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct OpSpec {
    /// The name in traces and scenarios.
    pub name: &'static str,
    /// The arguments, in positional order.
    pub args: &'static [Arg],
    /// What it does, in a line.
    pub help: &'static str,
}

/// The operation of this name.
///
/// ```
/// use gmem::ops::table;
/// assert_eq!(table::find("dup").unwrap().usage(), "dup FD AS");
/// assert_eq!(table::find("mincore").unwrap().usage(), "mincore MAP [OFFSET=0] LEN");
/// ```
pub fn find(name: &str) -> Option<&'static OpSpec> {
    OPS.iter().find(|spec| spec.name == name)
}

/// "unknown operation `x`; did you mean `y`?"
pub fn unknown_operation(name: &str) -> String {
    format!("unknown operation `{name}`{}", did_you_mean(name, OPS.iter().map(|spec| spec.name)))
}

impl OpSpec {
    /// The argument of this name and its position.
    pub fn arg(&self, name: &str) -> Option<(usize, &'static Arg)> {
        self.args.iter().enumerate().find(|(_, arg)| arg.name == name)
    }

    /// How a scenario writes it: required arguments in capitals, others in brackets with their default.
    pub fn usage(&self) -> String {
        let mut usage = self.name.to_string();
        for arg in self.args {
            let name = arg.name.to_uppercase();
            match arg.default {
                None => usage.push_str(&format!(" {name}")),
                Some(default) => usage.push_str(&format!(" [{name}={default}]")),
            }
        }
        usage
    }
}

impl Kind {
    /// What a scenario writes for this kind, for "expected ...".
    pub fn expected(&self) -> String {
        let symbols = |symbols: &[Symbol]| symbols.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match self {
            Kind::Name(object) => format!("the name of {}", object.article()),
            Kind::MaybeName(object) => format!("the name of {}, or `none`", object.article()),
            Kind::Count => "a number such as 3 or 0x10".into(),
            Kind::Size => "a size such as 4K, 2M, 0x1000 or 4096".into(),
            Kind::Address => "an address such as 0x200000 or 2M".into(),
            Kind::Signed => "a signed number of bytes such as 4K, -1 or 0x1000".into(),
            Kind::Flags(known) => {
                format!("flags joined by `|`, of: {}; or a number", symbols(known))
            }
            Kind::Choice(known) => format!("one of {}; or a number", symbols(known)),
            Kind::Only(known) => {
                let numbers: Vec<_> = known.iter().map(|(_, number)| number.to_string()).collect();
                format!("one of {}; or their numbers, {}", symbols(known), numbers.join(", "))
            }
            Kind::Hva => "a host address: a mapping such as `m0` or `m0+0x1000`, or a number".into(),
            Kind::FdRef => "the name of a file descriptor, `none`, or a number".into(),
            Kind::Prot => "a protection: letters of `rwx`, or `none`".into(),
            Kind::Advice => format!("one of {}", Advice::ALL.map(|(word, _)| word).join(", ")),
            Kind::Word(words) => format!("one of {}", words.join(", ")),
            Kind::Switch { off, on } => format!("true, false, `{off}` or `{on}`"),
            Kind::List => "a list of numbers such as [0x200000, 1, 16]".into(),
        }
    }

    /// What a trace holds for this kind, for "expected ...".
    pub fn expected_json(&self) -> Cow<'static, str> {
        let expected = match self {
            Kind::Only(known) => {
                let numbers: Vec<_> = known.iter().map(|(_, number)| number.to_string()).collect();
                return format!("one of the numbers {}", numbers.join(", ")).into();
            }
            Kind::Name(_) => "a string",
            Kind::MaybeName(_) => "a string or null",
            Kind::Count | Kind::Size | Kind::Address | Kind::Flags(_) | Kind::Choice(_) => "an unsigned 64-bit number",
            Kind::Signed => "a 64-bit number",
            Kind::Hva => "{\"map\": NAME, \"offset\": NUMBER} or an unsigned 64-bit number",
            Kind::FdRef => "a string or a signed 64-bit number",
            Kind::Prot => "a string of letters of `rwx`",
            Kind::Advice => "a known advice such as \"dontneed\"",
            Kind::Word(_) => "a known word such as \"r\"",
            Kind::Switch { .. } => "true or false",
            Kind::List => "a list of unsigned 64-bit numbers",
        };
        expected.into()
    }
}

impl Object {
    fn article(self) -> &'static str {
        match self {
            Object::Vm => "a VM such as `vm0`",
            Object::Vcpu => "a vCPU such as `c0`",
            Object::Fd => "a file descriptor such as `g0`",
            Object::Map => "a mapping such as `m0`",
        }
    }
}

const fn arg(name: &'static str, kind: Kind) -> Arg {
    Arg { name, kind, default: None, may_be_absent: false }
}

const fn opt(name: &'static str, kind: Kind, default: &'static str) -> Arg {
    Arg { name, kind, default: Some(default), may_be_absent: false }
}

/// As [`opt`], and traces may leave it out too.
const fn later(name: &'static str, kind: Kind, default: &'static str) -> Arg {
    Arg { may_be_absent: true, ..opt(name, kind, default) }
}

/// A flag that is off unless it is said.
const fn flag(name: &'static str, default: &'static str) -> Arg {
    opt(name, Kind::Switch { off: "off", on: "on" }, default)
}

const fn op(name: &'static str, args: &'static [Arg], help: &'static str) -> OpSpec {
    OpSpec { name, args, help }
}

const VM: Arg = arg("vm", Kind::Name(Object::Vm));
const VCPU: Arg = arg("vcpu", Kind::Name(Object::Vcpu));
const FD: Arg = arg("fd", Kind::Name(Object::Fd));
const MAP: Arg = arg("map", Kind::Name(Object::Map));
const SLOT: Arg = arg("slot", Kind::Count);
const GPA: Arg = arg("gpa", Kind::Address);
const SIZE: Arg = arg("size", Kind::Size);
const LEN: Arg = arg("len", Kind::Size);
const SIGNED_LEN: Arg = arg("len", Kind::Signed);
const VALUE: Arg = arg("value", Kind::Count);
const HVA: Arg = arg("hva", Kind::Hva);
const OFFSET: Arg = opt("offset", Kind::Size, "0");
const SIGNED_OFFSET: Arg = opt("offset", Kind::Signed, "0");
const NO_FLAGS: Arg = opt("flags", Kind::Flags(&[]), "0");
const CAP: Arg = arg("cap", Kind::Choice(CAPS));
const SLOT_FLAGS: Arg = opt(
    "flags",
    // KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEM_GUEST_MEMFD
    Kind::Flags(&[("log_dirty", 1), ("readonly", 2), ("guest_memfd", 4)]),
    "0",
);

/// What the VMM does about a hypercall exit of a confidential guest.
const CONVERTS: Arg = opt("reply", Kind::Count, "0");
/// States of a page, as page-state changes have them.
const TO: Arg = arg("to", Kind::Choice(&[("private", 1), ("shared", 2)]));
const GHCB: Arg = arg("ghcb", Kind::Address);

/// The capabilities that guest_memfd programs ask for.
const CAPS: &[Symbol] = &[
    ("user_memory", 3),
    ("nr_memslots", 10),
    ("manual_dirty_log_protect2", 168),
    ("exit_hypercall", 201),
    ("user_memory2", 231),
    ("memory_fault_info", 232),
    ("memory_attributes", 233),
    ("guest_memfd", 234),
    ("vm_types", 235),
    ("pre_fault_memory", 236),
    ("guest_memfd_flags", 244),
];

/// `FALLOC_FL_` bits. The kernel takes `FALLOC_FL_PUNCH_HOLE` only together with `FALLOC_FL_KEEP_SIZE`, so `punch_hole` is
/// both; the lone bit is the number 2.
const FALLOCATE_MODES: &[Symbol] = &[
    ("punch_hole", 3),
    ("allocate", 0),
    ("keep_size", 1),
    ("collapse_range", 8),
    ("zero_range", 16),
    ("insert_range", 32),
    ("unshare_range", 64),
];

/// Every operation.
pub const OPS: &[OpSpec] = &[
    op(
        "create_vm",
        &[
            VM,
            opt(
                "type",
                Kind::Choice(&[("default", 0), ("sw_protected", 1), ("snp", 4), ("tdx", 5), ("protected", 1 << 31)]),
                "default",
            ),
        ],
        "KVM_CREATE_VM",
    ),
    op(
        "create_vcpu",
        &[VM, VCPU, opt("index", Kind::Count, "0"), later("paging", Kind::Switch { off: "flat", on: "paged" }, "flat")],
        "KVM_CREATE_VCPU; the first of a VM also adds memslot 31: its code page, or with paging eight pages",
    ),
    op(
        "check_extension",
        &[CAP, later("vm", Kind::MaybeName(Object::Vm), "none")],
        "KVM_CHECK_EXTENSION on the VM, or on /dev/kvm without one",
    ),
    op(
        "create_protected_vm",
        &[VM],
        "a VM of the kind that the machine protects, up to its first vCPU: KVM_CREATE_VM, KVM_SEV_INIT2 or KVM_TDX_INIT_VM, KVM_CAP_EXIT_HYPERCALL",
    ),
    op(
        "add_guest_memory",
        &[VM, opt("slot", Kind::Count, "0"), GPA, SIZE, MAP, FD],
        "private memory for a protected VM, as its kind has it: a mapping, a guest_memfd (not for pKVM as in 7.3), a slot, attributes; of what the guest converts there the VMM drops the page that is not used any more",
    ),
    op(
        "launch",
        &[VM, GPA, LEN, HVA],
        "what a protected VM needs before it runs, with this image: START, UPDATE, FINISH of SEV-SNP; INIT_VCPU, INIT_MEM_REGION, FINALIZE of TDX; nothing for others",
    ),
    op("enable_cap", &[VM, CAP, arg("arg", Kind::Count)], "KVM_ENABLE_CAP with args[0]"),
    op(
        "create_guest_memfd",
        &[VM, FD, SIZE, opt("flags", Kind::Flags(&[("mmap", 1), ("init_shared", 2)]), "0")],
        "KVM_CREATE_GUEST_MEMFD",
    ),
    op(
        "memfd_create",
        &[FD, SIZE, opt("flags", Kind::Flags(&[("cloexec", 1), ("allow_sealing", 2), ("hugetlb", 4)]), "0")],
        "an ordinary memfd of that size",
    ),
    op(
        "set_user_memory_region",
        &[VM, SLOT, SLOT_FLAGS, GPA, SIZE, HVA],
        "KVM_SET_USER_MEMORY_REGION; size 0 deletes the slot",
    ),
    op(
        "set_user_memory_region2",
        &[
            VM,
            SLOT,
            SLOT_FLAGS,
            GPA,
            SIZE,
            HVA,
            opt("guest_memfd", Kind::FdRef, "none"),
            opt("guest_memfd_offset", Kind::Size, "0"),
        ],
        "KVM_SET_USER_MEMORY_REGION2; size 0 deletes the slot",
    ),
    op(
        "set_memory_attributes",
        &[VM, GPA, SIZE, arg("attributes", Kind::Flags(&[("private", 8), ("shared", 0)])), NO_FLAGS],
        "KVM_SET_MEMORY_ATTRIBUTES",
    ),
    op("pre_fault_memory", &[VCPU, GPA, SIZE, NO_FLAGS], "KVM_PRE_FAULT_MEMORY"),
    op("get_dirty_log", &[VM, SLOT, arg("npages", Kind::Count)], "KVM_GET_DIRTY_LOG"),
    op(
        "clear_dirty_log",
        &[VM, SLOT, arg("first", Kind::Count), arg("npages", Kind::Count), arg("dirty", Kind::List)],
        "KVM_CLEAR_DIRTY_LOG with these bits set, counted from `first`",
    ),
    op(
        "fallocate",
        &[FD, arg("mode", Kind::Flags(FALLOCATE_MODES)), arg("offset", Kind::Signed), SIGNED_LEN],
        "fallocate(2)",
    ),
    op("ftruncate", &[FD, arg("size", Kind::Signed)], "ftruncate(2)"),
    op("fstat", &[FD], "fstat(2)"),
    op("pread", &[FD, SIGNED_OFFSET, SIGNED_LEN], "pread(2)"),
    op("pwrite", &[FD, SIGNED_OFFSET, SIGNED_LEN], "pwrite(2)"),
    op(
        "lseek",
        &[
            FD,
            arg("offset", Kind::Signed),
            opt("whence", Kind::Choice(&[("set", 0), ("cur", 1), ("end", 2), ("data", 3), ("hole", 4)]), "set"),
        ],
        "lseek(2)",
    ),
    op("dup", &[FD, arg("as", Kind::Name(Object::Fd))], "dup(2); the copy gets a name of its own"),
    op("close", &[FD], "close(2), of a VM's descriptor too"),
    op(
        "mmap",
        &[
            MAP,
            opt("fd", Kind::MaybeName(Object::Fd), "none"),
            LEN,
            opt("prot", Kind::Prot, "rw"),
            opt("shared", Kind::Switch { off: "private", on: "shared" }, "private"),
            OFFSET,
            opt("align", Kind::Size, "4K"),
        ],
        "mmap(2) of a file, or of anonymous memory without one, at a multiple of `align`",
    ),
    op("munmap", &[MAP, OFFSET, LEN], "munmap(2)"),
    op("mprotect", &[MAP, OFFSET, LEN, arg("prot", Kind::Prot)], "mprotect(2)"),
    op("madvise", &[MAP, OFFSET, LEN, arg("advice", Kind::Advice)], "madvise(2)"),
    op("mincore", &[MAP, OFFSET, LEN], "mincore(2); says which pages are resident"),
    op("mlock", &[MAP, OFFSET, LEN], "mlock(2)"),
    op(
        "page_idle_mark",
        &[MAP, OFFSET, LEN],
        "ones written to page_idle/bitmap for the pages: idle until somebody uses them",
    ),
    op("page_idle_read", &[MAP, OFFSET, LEN], "page_idle/bitmap read; says which pages are idle"),
    op(
        "nx_huge_page_recovery",
        &[VM, opt("ratio", Kind::Count, "60")],
        "one turn of the VM's recovery worker, with that nx_huge_pages_recovery_ratio",
    ),
    op("host_read", &[MAP, OFFSET], "a 32-bit load by the VMM process"),
    op("host_write", &[MAP, OFFSET, VALUE], "a 32-bit store by the VMM process"),
    op("host_read64", &[MAP, OFFSET], "a 64-bit load by the VMM process"),
    op("host_write64", &[MAP, OFFSET, VALUE], "a 64-bit store by the VMM process"),
    op("host_fill64", &[MAP, OFFSET, LEN, VALUE], "a 64-bit store to the first word of every page, in order"),
    op("guest_read", &[VCPU, GPA], "a 32-bit load by the vCPU, then hlt"),
    op("guest_write", &[VCPU, GPA, VALUE], "a 32-bit store by the vCPU, then hlt"),
    op("guest_rmw", &[VCPU, GPA, VALUE], "a locked 32-bit add by the vCPU, then hlt"),
    op(
        "guest_hypercall",
        &[
            VCPU,
            arg("nr", Kind::Choice(&[("map_gpa_range", 12)])),
            arg("args", Kind::List),
            opt("reply", Kind::Count, "0"),
        ],
        "vmmcall by the vCPU, then hlt; on a hypercall exit the VMM answers `reply`",
    ),
    op(
        "guest_paged",
        &[
            VCPU,
            arg("root_map", Kind::Name(Object::Map)),
            opt("root_offset", Kind::Size, "0"),
            arg("cr3", Kind::Address),
            opt("cpl", Kind::Only(&[("supervisor", 0), ("user", 3)]), "supervisor"),
            arg("access", Kind::Word(PagedAccess::WORDS)),
            arg("gva", Kind::Address),
            opt("value", Kind::Count, "0"),
            flag("wp", "on"),
            flag("smep", "off"),
            flag("smap", "off"),
            flag("nxe", "on"),
            flag("ac", "off"),
        ],
        "an access of 8 bytes, or a jump, by the vCPU in 4-level paging at CR3, with a cold TLB; first the VMM writes entry 256 of the root",
    ),
    op(
        "sev_init2",
        &[
            VM,
            opt("vmsa_features", Kind::Flags(&[("debug_swap", 32)]), "0"),
            NO_FLAGS,
            opt("ghcb_version", Kind::Count, "2"),
        ],
        "KVM_SEV_INIT2",
    ),
    op(
        "snp_launch_start",
        &[
            VM,
            opt("policy", Kind::Flags(&[("usual", 0x30000), ("debug", 1 << 19), ("no_page_swap", 1 << 25)]), "usual"),
            NO_FLAGS,
        ],
        "KVM_SEV_SNP_LAUNCH_START",
    ),
    op(
        "snp_launch_update",
        &[
            VM,
            GPA,
            HVA,
            LEN,
            opt(
                "type",
                Kind::Choice(&[("normal", 1), ("zero", 3), ("unmeasured", 4), ("secrets", 5), ("cpuid", 6)]),
                "normal",
            ),
            NO_FLAGS,
        ],
        "KVM_SEV_SNP_LAUNCH_UPDATE, again and again until nothing is left or it fails",
    ),
    op("snp_launch_finish", &[VM, NO_FLAGS], "KVM_SEV_SNP_LAUNCH_FINISH"),
    op(
        "guest_read_shared",
        &[VCPU, GPA],
        "as guest_read, by an SNP guest through a mapping without the C-bit, or a TD through one with the shared bit; other guests have no such bit",
    ),
    op(
        "guest_write_shared",
        &[VCPU, GPA, VALUE],
        "as guest_write, by an SNP guest through a mapping without the C-bit, or a TD through one with the shared bit; other guests have no such bit",
    ),
    op(
        "guest_pvalidate",
        &[
            VCPU,
            GPA,
            opt("size", Kind::Size, "4K"),
            opt("validate", Kind::Switch { off: "rescind", on: "accept" }, "accept"),
        ],
        "pvalidate by the vCPU, then hlt; reads EAX, or 255 if there was nothing to do",
    ),
    op(
        "guest_rmpadjust",
        &[
            VCPU,
            GPA,
            opt("vmpl", Kind::Count, "1"),
            opt("perms", Kind::Flags(&[("r", 1), ("w", 2), ("xu", 4), ("xs", 8)]), "0"),
            flag("vmsa", "off"),
        ],
        "rmpadjust by the vCPU, then hlt; reads EAX",
    ),
    op(
        "guest_make_vmsa",
        &[
            VCPU,
            GPA,
            opt("features", Kind::Flags(&[("snp_active", 1), ("debug_swap", 32)]), "snp_active"),
            opt("vmpl", Kind::Count, "0"),
        ],
        "the vCPU fills a page in as the VMSA of another one, with SEV_FEATURES and VMPL, and makes it one by rmpadjust, as Linux does, then hlt; reads EAX",
    ),
    op(
        "guest_ghcb_msr",
        &[VCPU, arg("value", Kind::Address), CONVERTS],
        "vmgexit by the vCPU with this request in the GHCB MSR, then hlt; reads the MSR. On a hypercall exit the VMM converts the memory and answers 0, or only answers `reply` if that is not 0",
    ),
    op(
        "guest_vmgexit",
        &[
            VCPU,
            GHCB,
            arg(
                "code",
                Kind::Choice(&[
                    ("psc", 0x8000_0010),
                    ("guest_request", 0x8000_0011),
                    ("ext_guest_request", 0x8000_0012),
                    ("ap_creation", 0x8000_0013),
                    ("hv_features", 0x8000_fffd),
                    ("term_request", 0x8000_fffe),
                ]),
            ),
            opt("info1", Kind::Address, "0"),
            opt("info2", Kind::Address, "0"),
            opt("rax", Kind::Address, "1"),
            CONVERTS,
        ],
        "vmgexit by the vCPU with a request in the GHCB, which it writes first, then hlt; reads SW_EXITINFO2, with bit 63 set if SW_EXITINFO1 says an error",
    ),
    op(
        "guest_psc",
        &[VCPU, GHCB, GPA, LEN, TO, flag("huge", "off"), CONVERTS],
        "another page state of a range, by a list in the GHCB, in pages of 4K, or `huge` where the range has 2M, as Linux does it: pvalidate too, which goes back to 4K; ends the guest if that fails",
    ),
    op(
        "guest_convert",
        &[VCPU, GPA, TO, CONVERTS],
        "another page state of one page, as Linux does it: by the GHCB MSR, with pvalidate, or in a TD by MapGPA, with an accept, and that ends the guest if it fails; by hypercall otherwise, on pKVM to share or unshare, which reads an answer that is not 0",
    ),
    op(
        "tdx_init_vm",
        &[
            VM,
            opt("attributes", Kind::Flags(&[("debug", 1), ("sept_ve_disable", 1 << 28)]), "sept_ve_disable"),
            opt("xfam", Kind::Address, "3"),
            opt("width", Kind::Count, "48"),
            NO_FLAGS,
        ],
        "KVM_TDX_INIT_VM, with guest addresses of so many bits",
    ),
    op("tdx_init_vcpu", &[VCPU, opt("rcx", Kind::Address, "0"), NO_FLAGS], "KVM_TDX_INIT_VCPU"),
    op(
        "tdx_init_mem_region",
        &[VCPU, GPA, HVA, LEN, opt("flags", Kind::Flags(&[("measure", 1)]), "0")],
        "KVM_TDX_INIT_MEM_REGION; says what is left if it fails after the first page",
    ),
    op("tdx_finalize_vm", &[VM], "KVM_TDX_FINALIZE_VM"),
    op(
        "guest_accept",
        &[VCPU, GPA, opt("size", Kind::Size, "4K")],
        "tdg.mem.page.accept by the vCPU, then hlt; reads RAX",
    ),
    op(
        "guest_map_gpa",
        &[VCPU, GPA, LEN, TO, CONVERTS],
        "MapGPA by the vCPU, then hlt; reads the status. On a hypercall exit the VMM converts the memory and answers 0, or only answers `reply` if that is not 0",
    ),
    op(
        "guest_tdvmcall",
        &[
            VCPU,
            arg(
                "leaf",
                Kind::Choice(&[
                    ("get_td_vm_call_info", 0x10000),
                    ("map_gpa", 0x10001),
                    ("report_fatal_error", 0x10003),
                    ("hlt", 12),
                    ("io", 30),
                    ("mmio", 48),
                ]),
            ),
            opt("r12", Kind::Address, "0"),
            opt("r13", Kind::Address, "0"),
            opt("r14", Kind::Address, "0"),
            opt("r15", Kind::Address, "0"),
            CONVERTS,
        ],
        "tdg.vp.vmcall by the vCPU, then hlt; reads R10",
    ),
    op(
        "guest_set_memory",
        &[VCPU, GPA, LEN, TO],
        "memory of a range shared with the host or taken back by a guest of pKVM, as Linux does it: a call for each page, up to the first that fails; reads its answer, or 0",
    ),
];
