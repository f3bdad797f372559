//! Marking a page dirty and collecting the mark are steps of their own.

use super::*;

#[test]
fn dirty_marks_are_scheduling_points() {
    let mut sim = Sim::new(Chooser::Custom(Box::new(Sticky(1))));
    let config = Config { seed: 1, steps_max: 100_000, log: LogLevel::Full, ..Config::default() };
    let (_, verdict) = sim.execute(&config, |cx| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        let hva = m.anonymous(cx, PAGE_SIZE);
        m.slot(cx, 0, KVM_MEM_LOG_DIRTY_PAGES, 0x5000, PAGE_SIZE, hva).unwrap();
        cx.spawn("vcpu", move |cx| {
            vcpu.set_program(cx, &[write(0x5000)]);
            assert_eq!(vcpu.run(cx).0, Ok(()));
            assert_eq!(ioctl::get_dirty_log(cx, &m.process, m.fd, 0), Ok(vec![1]));
        });
    });
    assert_eq!(verdict, Verdict::Completed);
    let log = sim.log_json();
    let touched = log.lines().filter(|line| line.contains("\"dirty_bitmap#0\"") && line.contains("\"vcpu\""));
    assert_eq!(touched.count(), 2, "one mark, one collection");
}
