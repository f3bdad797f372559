//! Which function of the model stands at a place, and which function of the kernel it models: the table that `build.rs` made of the sources.

use super::witness::Site;

/// Line, name, and the name in the kernel or nothing.
type Function = (u32, &'static str, &'static str);

/// By file, every function in the order of the lines.
static FUNCTIONS: &[(&str, &[Function])] = include!(concat!(env!("OUT_DIR"), "/functions.rs"));

/// The function around a place: the kernel's name if it has one there, else the model's.
pub fn around(site: &Site) -> Option<&'static str> {
    at(site.file, site.line)
}

/// As [`around`], of a place by its file, as seen from the root of the repository, and line.
pub fn at(file: &str, line: u32) -> Option<&'static str> {
    let (_, functions) = FUNCTIONS.iter().find(|(known, _)| *known == file)?;
    let after = functions.partition_point(|(from, _, _)| *from <= line);
    let (_, name, kernel) = functions.get(after.checked_sub(1)?)?;
    Some(if kernel.is_empty() { name } else { kernel })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_the_kernels_name() {
        let file = "crates/gmem/src/kvm/fault.rs";
        let source = include_str!("../kvm/fault.rs");
        let at = source.lines().position(|line| line.contains("fault.mmu_seq = ")).expect("the snapshot is taken");
        let site = Site { file, line: at as u32 + 1 };
        assert_eq!(around(&site), Some("kvm_mmu_faultin_pfn"));
        assert_eq!(around(&Site { file, line: 1 }), None);
    }
}
