//! The contents oracle: sequences of operations with answers, right and wrong.

use gmem::invariants::contents::Contents;
use gmem::ops::{Answer, Detail, Exit};
use gmem::scenario::parse_line;

/// What happens, one line each: an operation that begins and ends (`read => 7`), or its beginning (`a< op`) or end (`a> answer`) alone.
/// Returns the first judgement that is not "right".
fn judge(lines: &str) -> Result<(), String> {
    let mut contents = Contents::default();
    let mut open = std::collections::BTreeMap::new();
    let map = |name: &gmem::ops::Name| if *name == "m1".into() { 0x20_0000 } else { 0x10_0000 };
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (who, line) = match line.split_once(['<', '>']) {
            Some((who, rest)) if who.len() == 1 => (Some(who), rest.trim()),
            _ => (None, line),
        };
        let (op, answer) = line.split_once("=>").unwrap_or((line, ""));
        let ends = who.is_none() || open.contains_key(who.unwrap_or_default());
        let begun = match who.and_then(|who| open.remove(who)) {
            Some(begun) => begun,
            None => {
                let op = parse_line(op.trim()).unwrap().op;
                (contents.begin(&op, map), op)
            }
        };
        if !ends {
            open.insert(who.unwrap(), begun);
            continue;
        }
        let (ticket, op) = begun;
        let value = answer.trim().parse::<u64>().ok();
        let answer = match (op.name(), answer.trim()) {
            (_, "failed") => Answer::errno(gmem::ops::Errno::from_name("EFAULT").unwrap()),
            ("guest_read" | "guest_write" | "guest_rmw", _) => Answer::Exit { errno: None, exit: Exit::Hlt { value } },
            ("host_read", _) => Answer::Ok { value: 0, detail: Detail::Value(value.unwrap()) },
            _ => Answer::OK,
        };
        contents.end(ticket, &op, &answer, map)?;
    }
    Ok(())
}

const VM: &str = "
    create_vm vm0 type=sw_protected
    create_vcpu vm0 c0
    mmap m0 len=64K
    create_guest_memfd vm0 g0 size=64K
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0
    set_memory_attributes vm0 0x200000 64K private
";

fn finding(lines: &str) -> Option<String> {
    let text = judge(&format!("{VM}{lines}")).err()?;
    Some(text.split(':').next().unwrap().to_string())
}

#[test]
fn what_one_order_allows_is_right() {
    for right in [
        "guest_read c0 0x200000 => 0",
        "guest_write c0 0x200000 7
         guest_read c0 0x200000 => 7",
        // Two writes at once, and a read of either.
        "a< guest_write c0 0x200000 7
         b< guest_write c0 0x200000 8
         a> => ok
         b> => ok
         guest_read c0 0x200000 => 7",
        // A hole that is punched while something is written.
        "a< fallocate g0 punch_hole 0 4K
         guest_write c0 0x200000 7
         guest_read c0 0x200000 => 7
         a> => ok
         guest_read c0 0x200000 => 0",
        // A read that began before the write.
        "guest_write c0 0x200000 7
         a< guest_read c0 0x200000
         guest_write c0 0x200000 8
         a> => 7",
        // Shared and private memory are two.
        "guest_write c0 0x200000 7
         set_memory_attributes vm0 0x200000 4K shared
         guest_read c0 0x200000 => 0
         host_write m0 0 9
         guest_read c0 0x200000 => 9
         set_memory_attributes vm0 0x200000 4K private
         guest_read c0 0x200000 => 7",
        // A write during a conversion goes to either.
        "a< set_memory_attributes vm0 0x200000 4K shared
         guest_write c0 0x200000 7
         a> => ok
         guest_read c0 0x200000 => 0
         host_read m0 0 => 0",
        "a< set_memory_attributes vm0 0x200000 4K shared
         guest_write c0 0x200000 7
         a> => ok
         guest_read c0 0x200000 => 7",
        // A conversion that fails changes nothing.
        "guest_write c0 0x200000 7
         set_memory_attributes vm0 0x200000 4K shared => failed
         guest_read c0 0x200000 => 7",
        // A write that fails may have happened.
        "guest_write c0 0x200000 7 => failed
         guest_read c0 0x200000 => 7",
        "guest_write c0 0x200000 7
         guest_rmw c0 0x200000 1
         guest_read c0 0x200000 => 8",
        // Beside the hole.
        "guest_write c0 0x201000 7
         fallocate g0 punch_hole 0 4K
         guest_read c0 0x201000 => 7",
        "host_write m0 0 7
         madvise m0 0 4K dontneed
         host_read m0 0 => 0",
        // The same data through a slot that was made anew.
        "guest_write c0 0x200000 7
         set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=0 hva=m0 guest_memfd=g0
         set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x204000 size=16K hva=m0 guest_memfd=g0
         set_memory_attributes vm0 0x204000 16K private
         guest_read c0 0x204000 => 7",
        "memfd_create f0 size=64K
         mmap m1 fd=f0 len=64K shared=shared
         host_write m1 0 5
         ftruncate f0 0
         host_read m1 0 => 99",
    ] {
        assert_eq!(finding(right), None, "{right}");
    }
}

#[test]
fn what_no_order_allows_is_found() {
    for (id, wrong) in [
        (
            "INV-107",
            "guest_write c0 0x200000 7
         guest_read c0 0x200000 => 0",
        ),
        ("INV-106", "guest_read c0 0x200000 => 3203334215"),
        ("INV-106", "guest_read c0 0x200000 => 5"),
        (
            "INV-201",
            "guest_write c0 0x200000 7
         fallocate g0 punch_hole 0 4K
         guest_read c0 0x200000 => 7",
        ),
        (
            "INV-201",
            "guest_write c0 0x200000 7
         guest_write c0 0x200000 8
         guest_read c0 0x200000 => 7",
        ),
        (
            "INV-208",
            "guest_write c0 0x200000 7
         set_memory_attributes vm0 0x200000 4K shared
         guest_read c0 0x200000 => 7",
        ),
        (
            "INV-208",
            "guest_write c0 0x200000 7
         guest_read c0 0x200004 => 7",
        ),
        (
            "INV-201",
            "host_write m0 0 7
         madvise m0 0 4K dontneed
         host_read m0 0 => 7",
        ),
        // Punched while another was read, and read again afterwards.
        (
            "INV-201",
            "guest_write c0 0x200000 7
         a< fallocate g0 punch_hole 0 4K
         guest_read c0 0x200000 => 7
         a> => ok
         guest_read c0 0x200000 => 7",
        ),
    ] {
        assert_eq!(finding(wrong).as_deref(), Some(id), "{wrong}");
    }
    let text = judge(&format!("{VM} guest_write c0 0x200000 7 \n guest_read c0 0x200000 => 0")).unwrap_err();
    assert!(text.contains("where the writes allow 0x7"), "{text}");
}

#[test]
fn what_cannot_be_followed_is_not_judged() {
    // A file without a name.
    let blind = "set_user_memory_region2 vm0 slot=1 flags=guest_memfd gpa=0x400000 size=16K hva=m0 guest_memfd=7
         guest_read c0 0x200000 => 5";
    assert_eq!(finding(blind), None);
    // Half a word.
    let skew = "guest_write c0 0x200000 7
         guest_read c0 0x200002 => 5";
    assert_eq!(finding(skew), None);
}
