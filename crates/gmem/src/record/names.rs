//! What things are called: by the scenario's or the recording's own names, where it has one for them.
//!
//! Rows name VMs, files and vCPUs by number, because a row may be seen before its thing has a name; names are put in at the end.

use std::collections::BTreeMap;

use sim_kernel::Hva;

use crate::interp::{Named, World};
use crate::kvm::vm::Vm;
use crate::ops::Name;

/// What a number counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// VMs in the order of creation.
    Vm,
    /// Files with pages, by the number of their page cache.
    File,
    /// vCPUs: the VM's number × 2^32 + id.
    Vcpu,
}

/// Names by kind and number.
#[derive(Clone, Debug, Default)]
pub struct Names {
    names: BTreeMap<(Kind, u64), Name>,
    maps: Vec<(Hva, Name)>,
}

impl Names {
    /// Adds what the process of `world` calls things now. A name that is known stays.
    pub fn learn(&mut self, world: &World, number_of: impl Fn(&Vm) -> Option<u64>) {
        for (name, named) in world.named() {
            let key = match named {
                Named::Vm(vm) => number_of(&vm).map(|number| (Kind::Vm, number)),
                Named::Vcpu(vcpu) => number_of(vcpu.vm()).map(|number| (Kind::Vcpu, number << 32 | vcpu.id())),
                Named::GuestMemfd(inode) => Some((Kind::File, u64::from(inode.mapping().id()))),
            };
            if let Some(key) = key {
                self.names.entry(key).or_insert(name);
            }
        }
        for (name, hva) in world.mappings() {
            if self.maps.iter().all(|(known, _)| *known != hva) {
                self.maps.push((hva, name));
            }
        }
        self.maps.sort();
    }

    /// The name of a thing.
    pub fn of(&self, kind: Kind, number: u64) -> String {
        match (self.names.get(&(kind, number)), kind) {
            (Some(name), _) => name.to_string(),
            (None, Kind::Vm) => format!("VM {number}"),
            (None, Kind::File) => format!("file {number}"),
            (None, Kind::Vcpu) => format!("vCPU {}", number & u64::from(u32::MAX)),
        }
    }

    /// An address of the VMM, as an offset in a mapping that has a name if one lies at or below it, within a gigabyte.
    pub fn address(&self, hva: u64) -> String {
        let below = self.maps.iter().rev().find(|(from, _)| from.0 <= hva && hva - from.0 < 1 << 30);
        match below {
            Some((from, name)) => format!("{name}+{:#x}", hva - from.0),
            None => format!("{hva:#x}"),
        }
    }
}
