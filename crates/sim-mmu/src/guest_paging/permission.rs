//! Who may do what with a page (Intel SDM vol. 3, 5.6; AMD64 APM vol. 2, 5.6). As KVM's `permission_fault`, the rules are a table of
//! bits, computed when a register changes, so that a check is one look-up.

use super::entry::Stage1Rights;
use super::fault::PageFaultCode;
use super::registers::{Cr0, Cr4, Efer, PagingRegisters, Pkru};
use crate::spte::Access;

/// On whose behalf an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum AccessMode {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2.
    Supervisor = 1,
    /// The processor itself, at any CPL: descriptor tables, TSS, IDT.
    Implicit = 2,
}

impl AccessMode {
    pub(crate) const ALL: [AccessMode; 3] = [AccessMode::User, AccessMode::Supervisor, AccessMode::Implicit];
}

/// The rules that a set of registers makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// By mode and access: bit `rights` is set if these rights suffice.
    allowed: [[u8; 3]; 3],
    pkru: Option<Pkru>,
    /// CR0.WP: the supervisor obeys R/W, and the write-disable bits of keys.
    write_protect: bool,
    reports_fetch: bool,
}

impl Permissions {
    /// The rules of these registers.
    pub fn new(registers: &PagingRegisters) -> Permissions {
        let PagingRegisters { cr0, cr4, efer, pkru, ac, .. } = *registers;
        // Without paging nothing is forbidden.
        let mut allowed = [[if cr0.contains(Cr0::PG) { 0 } else { u8::MAX }; 3]; 3];
        if cr0.contains(Cr0::PG) {
            for mode in AccessMode::ALL {
                for access in [Access::Read, Access::Write, Access::Exec] {
                    for rights in 0..8 {
                        let ok = permits(registers, ac, mode, access, Stage1Rights(rights));
                        allowed[mode as usize][access as usize] |= u8::from(ok) << rights;
                    }
                }
            }
        }
        Permissions {
            allowed,
            pkru: (cr4.contains(Cr4::PKE) && cr0.contains(Cr0::PG)).then_some(pkru),
            write_protect: cr0.contains(Cr0::WP),
            reports_fetch: efer.contains(Efer::NXE) || cr4.contains(Cr4::SMEP),
        }
    }

    /// Whether an access is allowed by what the entries grant and the leaf's protection key.
    ///
    /// # Errors
    /// The page-fault code.
    #[inline]
    pub fn check(&self, mode: AccessMode, access: Access, rights: Stage1Rights, key: u8) -> Result<(), PageFaultCode> {
        let ok = self.allowed[mode as usize][access as usize] >> rights.0 & 1 != 0;
        if ok && self.pkru.is_none() {
            return Ok(());
        }
        self.check_key(mode, access, rights, key, ok)
    }

    fn check_key(
        &self,
        mode: AccessMode,
        access: Access,
        rights: Stage1Rights,
        key: u8,
        ok: bool,
    ) -> Result<(), PageFaultCode> {
        let forbidden = match self.pkru {
            Some(Pkru(pkru)) if rights.is_user() && access != Access::Exec => {
                let bits = pkru >> (2 * u32::from(key));
                let obeys_write = mode == AccessMode::User || self.write_protect;
                bits & 1 != 0 || (bits & 2 != 0 && access == Access::Write && obeys_write)
            }
            _ => false,
        };
        if ok && !forbidden {
            return Ok(());
        }
        let key_code = if forbidden { PageFaultCode::PROTECTION_KEY } else { PageFaultCode::empty() };
        Err(self.code(mode, access) | PageFaultCode::PRESENT | key_code)
    }

    /// The part of a page-fault code that the access decides.
    #[inline]
    pub fn code(&self, mode: AccessMode, access: Access) -> PageFaultCode {
        PageFaultCode::of_access(mode, access, self.reports_fetch)
    }
}

/// The rules without protection keys, row by row.
fn permits(registers: &PagingRegisters, ac: bool, mode: AccessMode, access: Access, rights: Stage1Rights) -> bool {
    let PagingRegisters { cr0, cr4, efer, .. } = *registers;
    let executable = rights.is_executable() || !efer.contains(Efer::NXE);
    if mode == AccessMode::User {
        return rights.is_user()
            && match access {
                Access::Read => true,
                Access::Write => rights.is_writable(),
                Access::Exec => executable,
            };
    }
    // AC does not help the processor's own accesses, and SMAP does not concern fetches.
    let may_touch = !rights.is_user() || !cr4.contains(Cr4::SMAP) || (ac && mode == AccessMode::Supervisor);
    match access {
        Access::Read => may_touch,
        Access::Write => may_touch && (rights.is_writable() || !cr0.contains(Cr0::WP)),
        Access::Exec => executable && (!rights.is_user() || !cr4.contains(Cr4::SMEP)),
    }
}
