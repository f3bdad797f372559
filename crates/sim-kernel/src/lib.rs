//! The kernel beneath KVM.
