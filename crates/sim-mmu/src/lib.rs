//! sim-mmu
