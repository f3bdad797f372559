//! The facts of a machine by name: what the `[machine]` table of a scenario and the header of a recording may say of it.
//!
//! One table, [`FACTS`]; both formats read off it, and [`MachineConfig::to_header`] writes with it. Kernel and stage 2 stand in
//! places of their own in a recording, so they have functions of their own.

mod text;

use crate::Stage2Kind;
use crate::kvm::config::{KernelVersion, MachineConfig, SnpCpuid, Thp};
use crate::kvm::uapi::KVM_MAX_VCPUS;
use crate::trace::Header;
use serde_json::{Map, Value};
use sim_kernel::PAGE_SIZE;
use sim_mmu::tlb::TlbConfig;

/// The second stages of translation, by the names that files have for them. `shadow` is none: KVM shadows the guest's tables.
pub const STAGE2_NAMES: [&str; 3] = ["npt", "ept", SHADOW];

/// The name of no second stage.
pub const SHADOW: &str = "shadow";

/// A fact, as a file has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FactValue {
    /// A number; a size is in bytes.
    Number(u64),
    /// Whether something is so.
    Switch(bool),
    /// One of a few words.
    Word(String),
}

impl FactValue {
    /// The value in a recording's header; `None` if it is of no kind that facts have.
    pub fn from_json(value: &Value) -> Option<FactValue> {
        match value {
            Value::Number(number) => number.as_u64().map(FactValue::Number),
            Value::Bool(switch) => Some(FactValue::Switch(*switch)),
            Value::String(word) => Some(FactValue::Word(word.clone())),
            _ => None,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            FactValue::Number(number) => (*number).into(),
            FactValue::Switch(switch) => (*switch).into(),
            FactValue::Word(word) => word.as_str().into(),
        }
    }
}

/// A fact that files may state.
#[derive(Debug)]
pub struct Fact {
    /// Its key.
    pub name: &'static str,
    /// What its value is called in an error, with an article: "this is no ...".
    pub what: &'static str,
    /// The values that it may have, to follow "expected".
    pub expected: &'static str,
    /// Whether it is a number.
    pub is_number: bool,
    get: fn(&MachineConfig) -> FactValue,
    /// Takes the value if it is possible.
    set: fn(&mut MachineConfig, &FactValue) -> bool,
}

/// TLBs of processors, by the names that files have for them.
const TLBS: [(&str, TlbConfig); 3] =
    [("none", TlbConfig::NONE), ("small", TlbConfig::SMALL), ("large", TlbConfig::LARGE)];

/// Every fact beside kernel and stage 2.
pub const FACTS: &[Fact] = &[
    Fact {
        name: "memory",
        what: "amount of memory",
        expected: "a size such as \"3G\" or 0x1000_0000, from one page to 1T",
        is_number: true,
        get: |machine| FactValue::Number(machine.memory),
        // A page for the zero page, and no more than the 40 address bits of the default reach.
        set: |machine, value| number(value, PAGE_SIZE..=1 << 40, &mut machine.memory),
    },
    Fact {
        name: "maxphyaddr",
        what: "width of addresses",
        expected: "a number of bits from 36 to 52",
        is_number: true,
        get: |machine| FactValue::Number(machine.maxphyaddr.into()),
        set: |machine, value| number(value, 36..=52, &mut machine.maxphyaddr),
    },
    Fact {
        name: "tlb",
        what: "TLB",
        expected: "one of \"none\", \"small\", \"large\"",
        is_number: false,
        get: |machine| {
            let known = TLBS.iter().find(|(_, tlb)| *tlb == machine.tlb);
            FactValue::Word(known.map_or("", |(name, _)| name).to_string())
        },
        set: |machine, value| {
            let found = TLBS.iter().find(|(name, _)| matches!(value, FactValue::Word(word) if word == name));
            found.map(|(_, tlb)| machine.tlb = *tlb).is_some()
        },
    },
    Fact {
        name: "transparent_hugepage",
        what: "setting of transparent huge pages",
        expected: "one of \"always\", \"madvise\", \"never\"",
        is_number: false,
        get: |machine| {
            let known = Thp::ALL.iter().find(|(_, thp)| *thp == machine.transparent_hugepage);
            FactValue::Word(known.map_or("", |(name, _)| name).to_string())
        },
        set: |machine, value| {
            let found = Thp::ALL.iter().find(|(name, _)| matches!(value, FactValue::Word(word) if word == name));
            found.map(|(_, thp)| machine.transparent_hugepage = *thp).is_some()
        },
    },
    Fact {
        name: "sw_protected_vm",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.sw_protected_vm),
        set: |machine, value| switch(value, &mut machine.sw_protected_vm),
    },
    Fact {
        name: "memory_attributes",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.memory_attributes),
        set: |machine, value| switch(value, &mut machine.memory_attributes),
    },
    Fact {
        name: "smm",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.smm),
        set: |machine, value| switch(value, &mut machine.smm),
    },
    Fact {
        name: "eager_page_split",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.eager_page_split),
        set: |machine, value| switch(value, &mut machine.eager_page_split),
    },
    Fact {
        name: "ept_ad_bits",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.ept_ad_bits),
        set: |machine, value| switch(value, &mut machine.ept_ad_bits),
    },
    Fact {
        name: "pml",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.pml),
        set: |machine, value| switch(value, &mut machine.pml),
    },
    Fact {
        name: "nx_huge_pages",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.nx_huge_pages),
        set: |machine, value| switch(value, &mut machine.nx_huge_pages),
    },
    Fact {
        name: "memory_failure",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.memory_failure),
        set: |machine, value| switch(value, &mut machine.memory_failure),
    },
    Fact {
        name: "hwpoison_abba",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.hwpoison_abba),
        set: |machine, value| switch(value, &mut machine.hwpoison_abba),
    },
    Fact {
        name: "xarray_steps",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.xarray_steps),
        set: |machine, value| switch(value, &mut machine.xarray_steps),
    },
    Fact {
        name: "max_vcpus",
        what: "number of vCPUs",
        expected: "a number from 1 to 4096",
        is_number: true,
        get: |machine| FactValue::Number(machine.max_vcpus),
        set: |machine, value| number(value, 1..=KVM_MAX_VCPUS, &mut machine.max_vcpus),
    },
    Fact {
        name: "files_max",
        what: "number of files",
        expected: "a number from 1 to 1048576",
        is_number: true,
        get: |machine| FactValue::Number(machine.files_max as u64),
        set: |machine, value| number(value, 1..=1 << 20, &mut machine.files_max),
    },
    Fact {
        name: "snp",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.snp),
        set: |machine, value| switch(value, &mut machine.snp),
    },
    Fact {
        name: "snp_asids",
        what: "number of ASIDs",
        expected: "a number from 0 to 1006",
        is_number: true,
        get: |machine| FactValue::Number(machine.snp_asids),
        set: |machine, value| number(value, 0..=1006, &mut machine.snp_asids),
    },
    Fact {
        name: "snp_contention",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.snp_contention),
        set: |machine, value| switch(value, &mut machine.snp_contention),
    },
    Fact {
        name: "snp_cpuid",
        what: "policy for CPUID pages",
        expected: "one of \"epyc\", \"any\"",
        is_number: false,
        get: |machine| {
            let known = SnpCpuid::ALL.iter().find(|(_, cpuid)| *cpuid == machine.snp_cpuid);
            FactValue::Word(known.map_or("", |(name, _)| name).to_string())
        },
        set: |machine, value| {
            let found = SnpCpuid::ALL.iter().find(|(name, _)| matches!(value, FactValue::Word(word) if word == name));
            found.map(|(_, cpuid)| machine.snp_cpuid = *cpuid).is_some()
        },
    },
    Fact {
        name: "ciphertext_hiding",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.ciphertext_hiding),
        set: |machine, value| switch(value, &mut machine.ciphertext_hiding),
    },
    Fact {
        name: "gmem_2m_enabled",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.gmem_2m_enabled),
        set: |machine, value| switch(value, &mut machine.gmem_2m_enabled),
    },
    Fact {
        name: "tdx",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx),
        set: |machine, value| switch(value, &mut machine.tdx),
    },
    Fact {
        name: "tdx_hkids",
        what: "number of KeyIDs",
        expected: "a number from 1 to 1023",
        is_number: true,
        get: |machine| FactValue::Number(machine.tdx_hkids.into()),
        set: |machine, value| number(value, 1..=1023, &mut machine.tdx_hkids),
    },
    Fact {
        name: "tdx_packages",
        what: "number of packages",
        expected: "a number from 1 to 64",
        is_number: true,
        get: |machine| FactValue::Number(machine.tdx_packages.into()),
        set: |machine, value| number(value, 1..=64, &mut machine.tdx_packages),
    },
    Fact {
        name: "tdx_contention",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_contention),
        set: |machine, value| switch(value, &mut machine.tdx_contention),
    },
    Fact {
        name: "tdx_host_priority",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_host_priority),
        set: |machine, value| switch(value, &mut machine.tdx_host_priority),
    },
    Fact {
        name: "tdx_erratum",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_erratum),
        set: |machine, value| switch(value, &mut machine.tdx_erratum),
    },
    Fact {
        name: "tdx_terminate_vm",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_terminate_vm),
        set: |machine, value| switch(value, &mut machine.tdx_terminate_vm),
    },
    Fact {
        name: "tdx_caches",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_caches),
        set: |machine, value| switch(value, &mut machine.tdx_caches),
    },
    Fact {
        name: "tdx_2m",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_2m),
        set: |machine, value| switch(value, &mut machine.tdx_2m),
    },
    Fact {
        name: "tdx_dynamic_pamt",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.tdx_dynamic_pamt),
        set: |machine, value| switch(value, &mut machine.tdx_dynamic_pamt),
    },
    Fact {
        name: "pkvm",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.pkvm),
        set: |machine, value| switch(value, &mut machine.pkvm),
    },
    Fact {
        name: "pkvm_gmem",
        what: "switch",
        expected: "true or false",
        is_number: false,
        get: |machine| FactValue::Switch(machine.pkvm_gmem),
        set: |machine, value| switch(value, &mut machine.pkvm_gmem),
    },
    Fact {
        name: "memlock",
        what: "limit of locked memory",
        expected: "a size such as \"8M\"",
        is_number: true,
        get: |machine| FactValue::Number(machine.memlock),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.memlock),
    },
    Fact {
        name: "fail_frame",
        what: "number of an allocation",
        expected: "a number from 1, or 0 for none",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.frame),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.faults.frame),
    },
    Fact {
        name: "fail_table",
        what: "number of an allocation",
        expected: "a number from 1, or 0 for none",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.table),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.faults.table),
    },
    Fact {
        name: "fail_node",
        what: "number of an allocation",
        expected: "a number from 1, or 0 for none",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.node),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.faults.node),
    },
    Fact {
        name: "busy_private",
        what: "number of a request",
        expected: "a number from 1, or 0 for none",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.busy),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.faults.busy),
    },
    Fact {
        name: "psp_timeout",
        what: "number of a command",
        expected: "a number from 1, or 0 for none",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.firmware),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.faults.firmware),
    },
    Fact {
        name: "signal_step",
        what: "number of a step",
        expected: "a number from 1, or 0 for none",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.signal_step),
        set: |machine, value| number(value, 0..=u64::MAX, &mut machine.faults.signal_step),
    },
    Fact {
        name: "signal_task",
        what: "task",
        expected: "a number from 0 to 63",
        is_number: true,
        get: |machine| FactValue::Number(machine.faults.signal_task),
        set: |machine, value| number(value, 0..=63, &mut machine.faults.signal_task),
    },
];

fn number<T: TryFrom<u64>>(value: &FactValue, range: std::ops::RangeInclusive<u64>, to: &mut T) -> bool {
    let FactValue::Number(number) = value else { return false };
    let fits = range.contains(number).then(|| T::try_from(*number).ok()).flatten();
    fits.map(|number| *to = number).is_some()
}

fn switch(value: &FactValue, to: &mut bool) -> bool {
    let FactValue::Switch(switch) = value else { return false };
    *to = *switch;
    true
}

impl Fact {
    /// The fact with this name.
    pub fn find(name: &str) -> Option<&'static Fact> {
        FACTS.iter().find(|fact| fact.name == name)
    }

    /// What the fact is of a machine.
    pub fn of(&self, machine: &MachineConfig) -> FactValue {
        (self.get)(machine)
    }

    /// States the fact of a machine.
    ///
    /// # Errors
    /// What was expected, if there is no machine with this value.
    pub fn state(&self, machine: &mut MachineConfig, value: &FactValue) -> Result<(), &'static str> {
        if (self.set)(machine, value) { Ok(()) } else { Err(self.expected) }
    }
}

impl MachineConfig {
    /// The name of its second stage of translation, one of [`STAGE2_NAMES`].
    pub fn stage2_name(&self) -> &'static str {
        match (self.tdp_enabled, self.stage2) {
            (false, _) => "shadow",
            (true, Stage2Kind::Npt) => "npt",
            (true, Stage2Kind::Ept) => "ept",
        }
    }

    /// Takes the second stage of translation with this name. False if there is none.
    pub fn set_stage2(&mut self, name: &str) -> bool {
        (self.tdp_enabled, self.stage2) = match name {
            "npt" => (true, Stage2Kind::Npt),
            "ept" => (true, Stage2Kind::Ept),
            "shadow" => (false, Stage2Kind::Npt),
            _ => return false,
        };
        true
    }

    /// What contradicts itself, if anything does.
    ///
    /// # Errors
    /// A sentence about it.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.sw_protected_vm && !self.memory_attributes {
            return Err(
                "a kernel with software-protected VMs has memory attributes: sw_protected_vm needs memory_attributes",
            );
        }
        if self.pkvm_gmem && !self.pkvm {
            return Err("pkvm_gmem is about a machine with pKVM: it needs pkvm");
        }
        if self.pkvm && self.snp {
            return Err("a machine has pKVM or SEV-SNP, not both");
        }
        if self.pkvm && self.memory < 4 << 20 {
            return Err("a machine with pKVM needs 4 MiB of memory for its hypervisor");
        }
        if self.memory > 1 << self.maxphyaddr {
            return Err("the memory is larger than maxphyaddr reaches");
        }
        Ok(())
    }

    /// The machine that a recording's header describes.
    ///
    /// # Errors
    /// What in it is of no machine that there is. A header that was read from a file is in order.
    pub fn from_header(header: &Header) -> Result<MachineConfig, String> {
        let kernel = header.kernel.parse::<KernelVersion>().map_err(|error| error.to_string())?;
        let mut machine = MachineConfig { kernel, ..MachineConfig::default() };
        if !machine.set_stage2(&header.stage2) {
            return Err(format!("stage2 is `{}`; expected one of {}", header.stage2, STAGE2_NAMES.join(", ")));
        }
        for (name, value) in &header.machine {
            let fact = Fact::find(name).ok_or_else(|| format!("machine has no fact `{name}`"))?;
            let stated = FactValue::from_json(value).ok_or(fact.expected);
            let stated = stated.and_then(|value| fact.state(&mut machine, &value));
            stated.map_err(|expected| format!("machine: {name} is {value}; expected {expected}"))?;
        }
        machine.check().map_err(|error| format!("machine: {error}"))?;
        Ok(machine)
    }

    /// The header of a recording that is made on this machine: the other direction of [`MachineConfig::from_header`]. `release` is the
    /// full name of the kernel. What is as on the machine of the first recordings is left out.
    ///
    /// ```
    /// use gmem::MachineConfig;
    /// let machine = MachineConfig { maxphyaddr: 46, ..MachineConfig::default() };
    /// let header = machine.to_header("conv-000", "conv", "7.3.4");
    /// assert_eq!(header.machine["maxphyaddr"], 46);
    /// assert_eq!(MachineConfig::from_header(&header).as_ref(), Ok(&machine));
    /// ```
    pub fn to_header(&self, name: &str, family: &str, release: &str) -> Header {
        let default = MachineConfig::default();
        let differs = FACTS.iter().filter(|fact| (fact.get)(self) != (fact.get)(&default));
        let machine: Map<String, Value> =
            differs.map(|fact| (fact.name.to_string(), (fact.get)(self).to_json())).collect();
        Header {
            name: name.into(),
            family: family.into(),
            kernel: release.into(),
            arch: "x86_64".into(),
            stage2: self.stage2_name().into(),
            machine,
            spte: self.tdp_enabled,
            ..Header::default()
        }
    }
}
