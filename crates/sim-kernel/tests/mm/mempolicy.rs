//! NUMA: which node a frame lies on, policies, and what happens when a node is full.

use sim_kernel::mm::{Mempolicy, MempolicyMode, Mm, MmapArgs, PhysMem, Placement, Prot};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use std::sync::Arc;

const PREFERRED: u32 = MempolicyMode::Preferred as u32;
const BIND: u32 = MempolicyMode::Bind as u32;
const INTERLEAVE: u32 = MempolicyMode::Interleave as u32;

fn placement(mode: u32, nodes: u64, interleave: u64) -> Placement {
    Mempolicy::new(mode, nodes, 4).unwrap().placement(interleave)
}

fn on_four_nodes(body: impl Fn(&Cx<'_>, &PhysMem)) {
    Sim::sequential().solo(|cx| {
        let phys = PhysMem::with_nodes(cx, 40 * PAGE_SIZE, 4);
        body(cx, &phys);
        assert_eq!(phys.used_frames(), 0, "frames leak");
    });
}

/// Takes frames until there are none, and says how many came from each node.
fn exhaust(cx: &Cx<'_>, phys: &PhysMem, place: impl Fn(u64) -> Placement) -> [u64; 4] {
    let frames: Vec<_> = (0..).map_while(|n| phys.alloc_in(place(n)).ok()).collect();
    let mut nodes = [0; 4];
    for pfn in frames {
        nodes[phys.node_of(pfn) as usize] += 1;
        phys.put(cx, pfn);
    }
    nodes
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    on_four_nodes(|cx, phys| {
        assert_eq!(phys.nodes(), 4);
        let first = |place: Placement| {
            let pfn = phys.alloc_in(place).unwrap();
            phys.put(cx, pfn);
            phys.node_of(pfn)
        };
        assert_eq!(first(Placement::LOCAL), 0);
        assert_eq!(first(placement(BIND, 0b1100, 0)), 2);
        assert_eq!(first(placement(PREFERRED, 0b1000, 0)), 3);
        assert_eq!([0, 1, 2, 3].map(|n| first(placement(INTERLEAVE, 0b1010, n))), [1, 3, 1, 3]);
    });
}

#[test]
fn only_binding_ends_at_the_end_of_its_nodes() {
    on_four_nodes(|cx, phys| {
        assert_eq!(exhaust(cx, phys, |_| placement(BIND, 0b0110, 0)), [0, 10, 10, 0]);
        assert_eq!(exhaust(cx, phys, |_| placement(PREFERRED, 0b0100, 0)), [10; 4], "then the others");
        assert_eq!(exhaust(cx, phys, |n| placement(INTERLEAVE, 0b0011, n)), [10; 4]);
        assert_eq!(exhaust(cx, phys, |_| Placement::LOCAL), [10; 4]);
    });
}

#[test]
fn a_huge_page_is_on_one_node() {
    Sim::sequential().solo(|cx| {
        let phys = PhysMem::with_nodes(cx, 4 << 20, 2);
        let pages = [phys.alloc_huge_zeroed().unwrap(), phys.alloc_huge_zeroed().unwrap()];
        assert_eq!(pages.map(|base| [phys.node_of(base), phys.node_of(base + 511)]), [[0, 0], [1, 1]]);
        assert_eq!(phys.alloc_huge_zeroed(), Err(Errno::ENOMEM));
        for base in pages {
            phys.put_huge(cx, base);
        }
        assert_eq!(phys.alloc_huge_zeroed(), Ok(pages[0]), "given back whole");
        phys.put_huge(cx, pages[0]);
        assert_eq!(phys.used_frames(), 0);
    });
}

#[test]
fn policies_have_the_nodes_that_their_mode_needs() {
    let new = |mode, nodes| Mempolicy::new(mode, nodes, 2);
    assert_eq!(new(0, 0), Ok(Mempolicy::default()));
    assert_eq!(new(0, 1), Err(Errno::EINVAL));
    assert_eq!(new(BIND, 0), Err(Errno::EINVAL));
    assert_eq!(new(BIND, 0b100), Err(Errno::EINVAL), "the host has two");
    assert_eq!(new(BIND, 0b110), Ok(Mempolicy { mode: MempolicyMode::Bind, nodes: 0b10 }));
    assert_eq!(new(PREFERRED, 0), Ok(Mempolicy { mode: MempolicyMode::Local, nodes: 0 }));
    assert_eq!(new(INTERLEAVE, 0), Err(Errno::EINVAL));
    assert_eq!(new(4, 1), Err(Errno::EINVAL));
    assert_eq!(new(5, 1), Err(Errno::EINVAL));
}

#[test]
fn mbind_looks_at_its_arguments_in_order() {
    Sim::sequential().solo(|cx| {
        let mm = Mm::new(cx, Arc::new(PhysMem::with_nodes(cx, 1 << 20, 2)));
        let args = MmapArgs {
            len: 2 * PAGE_SIZE,
            prot: Prot::READ | Prot::WRITE,
            shared: false,
            file: None,
            offset: 0,
            align: PAGE_SIZE,
        };
        let at = mm.mmap(cx, &args).unwrap();
        assert_eq!(mm.mbind(cx, at + 1, PAGE_SIZE, 999, 1), Err(Errno::EINVAL));
        assert_eq!(mm.mbind(cx, Hva(0), 0, 999, 1), Ok(()), "an empty range is done before the mode is looked at");
        assert_eq!(mm.mbind(cx, Hva(0), PAGE_SIZE, 999, 1), Err(Errno::EINVAL));
        assert_eq!(mm.mbind(cx, Hva(0), PAGE_SIZE, BIND, 1), Err(Errno::EFAULT));
        assert_eq!(mm.mbind(cx, at, u64::MAX, BIND, 1), Err(Errno::EINVAL));
        assert_eq!(mm.mbind(cx, at, 3 * PAGE_SIZE, BIND, 1), Err(Errno::EFAULT));
        assert_eq!(mm.mbind(cx, at, 2 * PAGE_SIZE, BIND, 2), Ok(()));
        assert_eq!(mm.get_mempolicy(cx, at), Ok(Mempolicy::default()), "memory without a file keeps none");
        assert_eq!(mm.get_mempolicy(cx, Hva(0)), Err(Errno::EFAULT));
        assert_eq!(mm.page_node(cx, at), Err(Errno::ENOENT));
        mm.write_u32(cx, at, 1).unwrap();
        assert_eq!(mm.page_node(cx, at), Ok(0));
        assert_eq!(mm.page_node(cx, Hva(0)), Err(Errno::EFAULT));
        mm.exit_mmap(cx);
    });
}
