//! SN-152 to SN-159, SN-163, SN-166, SN-181, SN-182: what guests ask by VMGEXIT.

use super::Script;

#[test]
fn sn_152_one_page_by_the_msr() {
    let mut script = Script::running();
    script.run(
        "guest_ghcb_msr c0 0x0020000000201014     => hlt 0x15
         guest_read c0 0x201000                   => memory_fault private 0x201000
         guest_ghcb_msr c0 0x0010000000201014     => hlt 0x15
         guest_pvalidate c0 0x201000              => hlt 0
         guest_ghcb_msr c0 0x0030000000201014     => hlt 0x8000000000000015
         guest_ghcb_msr c0 0x0020000000201014 reply=22 => hlt 0x8000000000000015
         guest_ghcb_msr c0 0x0020000000201014 reply=11 => hlt 0x8000000000000015
         guest_ghcb_msr c0 0x0020000000201014 reply=1  => EINVAL
         enable_cap vm0 exit_hypercall 0          => ok
         guest_ghcb_msr c0 0x0020000000201014     => hlt 0x8000000000000015",
    );
    script.end();
}

#[test]
fn sn_163_requests_by_the_msr() {
    let mut script = Script::running();
    script.run(
        "guest_ghcb_msr c0 0x002                  => hlt 0x0002000133000001
         guest_ghcb_msr c0 0x010                  => hlt 0xfffffffffffff011
         guest_ghcb_msr c0 0x080                  => hlt 0x3081
         guest_ghcb_msr c0 0x016                  => hlt 0x016
         guest_ghcb_msr c0 0x999                  => hlt 0x999
         guest_ghcb_msr c0 0x20a012               => hlt 0x20a013",
    );
    script.end();
}

#[test]
fn sn_166_a_guest_that_ends_itself() {
    let mut script = Script::running();
    script.run(
        "guest_ghcb_msr c0 0x100                  => system_event 0x100
         guest_ghcb_msr c0 0x21100                => system_event 0x21100
         guest_vmgexit c0 0x208000 term_request   => system_event 0x208000",
    );
    script.end();
}

#[test]
fn sn_163_a_ghcb_that_is_not_registered_and_events_that_there_are_not() {
    let mut script = Script::running();
    script.run(
        "guest_vmgexit c0 0x20a000 hv_features    => hlt 0x8000000000000001
         guest_vmgexit c0 0x208000 hv_features    => hlt 3
         guest_vmgexit c0 0x208000 0x80000099     => hlt 0x8000000000000006
         guest_vmgexit c0 0x208000 psc            => hlt 0x8000000000000004",
    );
    script.end();
}

#[test]
fn sn_153_neighbours_are_one_exit() {
    let mut script = Script::running();
    // Eight pages that the guest has accepted become shared in one exit, and private again in one.
    for page in 0..8 {
        script.run(&format!("guest_pvalidate c0 {:#x} => hlt 0", 0x20_0000 + page * 0x1000));
    }
    script.run(
        "guest_psc c0 0x208000 0x200000 32K shared  => hlt
         guest_write_shared c0 0x207000 5           => hlt
         guest_psc c0 0x208000 0x200000 32K private => hlt
         guest_write c0 0x207000 6                  => hlt
         guest_read c0 0x207000                     => hlt 6",
    );
    script.end();
}

#[test]
fn sn_154_sn_182_a_refused_list_ends_the_guest() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_psc c0 0x208000 0x201000 4K shared reply=22 => system_event 0x11100
         guest_pvalidate c0 0x202000              => hlt 0
         guest_convert c0 0x202000 shared reply=11 => system_event 0x11100",
    );
    script.end();
}

#[test]
fn sn_182_a_second_acceptance_ends_the_guest() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_convert c0 0x201000 private        => system_event 0x21100
         guest_convert c0 0x202000 shared         => system_event 0x21100",
    );
    script.end();
}

#[test]
fn sn_181_the_order_of_acceptance_and_request() {
    let mut script = Script::running();
    // Validating before the request: the page is shared, and KVM asks the VMM.
    script.run(
        "guest_pvalidate c0 0x209000              => memory_fault private 0x209000
         guest_convert c0 0x209000 private        => hlt
         guest_write c0 0x209000 1                => hlt
         guest_convert c0 0x209000 shared         => hlt
         guest_read_shared c0 0x209000            => hlt 0",
    );
    script.end();
}

#[test]
fn sn_152_nobody_is_asked_unless_user_space_wants_it() {
    let mut script = Script::running();
    script.run(
        "enable_cap vm0 exit_hypercall 0          => ok
         guest_pvalidate c0 0x201000              => hlt 0
         guest_psc c0 0x208000 0x201000 4K shared => system_event 0x11100",
    );
    script.end();
}
