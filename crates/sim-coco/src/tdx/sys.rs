//! TDH.SYS leaves: the module is initialised, given memory and a key, and shut down.
//!
//! Simplified: one call for all processors where the real ones are called on each, and no handoff to another module.

use super::lock::{Held, LockId, Mode};
use super::machine::{Seam, Tdx};
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::types::{Hpa, Lp};
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};

/// How far the module is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SysState {
    /// It was loaded.
    #[default]
    Loaded,
    /// TDH.SYS.INIT.
    InitDone,
    /// TDH.SYS.CONFIG; these packages have the global key.
    ConfigDone {
        /// A bit for each.
        packages: u64,
    },
    /// TDH.SYS.KEY.CONFIG on all packages.
    Ready,
    /// TDH.SYS.SHUTDOWN.
    Shutdown,
}

impl SysState {
    pub(super) fn check_ready(self) -> Seamcall<()> {
        match self {
            SysState::Ready => Ok(()),
            SysState::Shutdown => Err(StatusName::SysShutdown.into()),
            _ => Err(StatusName::SysNotReady.into()),
        }
    }
}

impl<'a> Seam<'a> {
    fn begin_sys(self, cx: &Cx<'_>) -> Seamcall<Held<'a>> {
        self.tdx.point(cx);
        let mut held = Held::new(self.tdx);
        let mut state = self.tdx.state.lock();
        if state.sys == SysState::Shutdown {
            return Err(StatusName::SysShutdown.into());
        }
        state.take(&mut held, LockId::Sys, Mode::Exclusive).map_err(|_| SeamFail::bare(StatusName::SysBusy))?;
        drop(state);
        self.tdx.window(cx);
        Ok(held)
    }

    /// TDH.SYS.INIT.
    ///
    /// # Errors
    /// SYS_INIT_NOT_PENDING the second time.
    pub fn sys_init(self, cx: &Cx<'_>) -> Seamcall<()> {
        let _held = self.begin_sys(cx)?;
        let mut state = self.tdx.state.lock();
        if state.sys != SysState::Loaded {
            return Err(StatusName::SysInitNotPending.into());
        }
        state.sys = SysState::InitDone;
        Ok(())
    }

    /// TDH.SYS.CONFIG: the TDMRs and the global KeyID of [`TdxConfig`](super::TdxConfig).
    ///
    /// # Errors
    /// SYS_CONFIG_NOT_PENDING in the wrong state.
    pub fn sys_config(self, cx: &Cx<'_>) -> Seamcall<()> {
        let _held = self.begin_sys(cx)?;
        let mut state = self.tdx.state.lock();
        if state.sys != SysState::InitDone {
            return Err(StatusName::SysConfigNotPending.into());
        }
        state.sys = SysState::ConfigDone { packages: 0 };
        Ok(())
    }

    /// TDH.SYS.KEY.CONFIG: the global key of this package.
    ///
    /// # Errors
    /// SYS_KEY_CONFIG_NOT_PENDING in the wrong state, KEY_CONFIGURED if the package has it.
    pub fn sys_key_config(self, cx: &Cx<'_>) -> Seamcall<()> {
        let _held = self.begin_sys(cx)?;
        let mut state = self.tdx.state.lock();
        let SysState::ConfigDone { packages } = state.sys else {
            return Err(StatusName::SysKeyConfigNotPending.into());
        };
        let bit = 1 << state.package(self.lp);
        if packages & bit != 0 {
            return Err(StatusName::KeyConfigured.into());
        }
        let packages = packages | bit;
        let is_last = packages.count_ones() == self.tdx.config.packages;
        state.sys = if is_last { SysState::Ready } else { SysState::ConfigDone { packages } };
        if is_last {
            let global = self.tdx.config.global_hkid();
            state.memory.configure_key(global);
        }
        Ok(())
    }

    /// TDH.SYS.TDMR.INIT of the TDMR that starts at the address: the metadata of 4 MiB. The answer is the next address, rounded down to 1 GiB: below it pages
    /// can be used.
    ///
    /// # Errors
    /// TDMR_ALREADY_INITIALIZED when there is nothing left to do; OPERAND_INVALID|RCX if no TDMR starts there.
    pub fn sys_tdmr_init(self, cx: &Cx<'_>, tdmr: Hpa) -> Seamcall<Hpa> {
        let _held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let next = state.pamt.init_next(Pfn(tdmr.0 >> PAGE_SHIFT)).filter(|_| tdmr.is_page_aligned());
        match next {
            Some(Ok(next)) => Ok(Hpa::of(next)),
            Some(Err(())) => Err(StatusName::TdmrAlreadyInitialized.into()),
            None => Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX)),
        }
    }

    /// TDH.SYS.SHUTDOWN: nothing answers afterwards.
    ///
    /// # Errors
    /// SYS_NOT_READY before the module is.
    pub fn sys_shutdown(self, cx: &Cx<'_>) -> Seamcall<()> {
        let _held = self.begin_sys(cx)?;
        let mut state = self.tdx.state.lock();
        state.sys.check_ready()?;
        state.sys = SysState::Shutdown;
        Ok(())
    }
}

impl Tdx {
    /// What software does at boot: the module is initialised on all packages, and all TDMRs are.
    ///
    /// # Panics
    /// If somebody else has begun with it.
    pub fn bring_up(&self, cx: &Cx<'_>) {
        let first = self.on(Lp(0));
        first.sys_init(cx).expect("the module was just loaded");
        first.sys_config(cx).expect("the module is initialised");
        for package in 0..self.config.packages {
            let lp = Lp(package * self.config.lps_per_package);
            self.on(lp).sys_key_config(cx).expect("the module is configured");
        }
        self.state.lock().pamt.init_all();
    }

    /// How far the module is.
    pub fn sys_state(&self) -> SysState {
        self.state.lock().sys
    }
}
