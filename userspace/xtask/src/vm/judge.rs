// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reading the console: what the kernel complains about, and during which test.

use std::collections::VecDeque;

use barbuf_guest::protocol::{CONSOLE_BEGIN, CONSOLE_END};

/// How much of the console is shown when a guest dies.
pub(crate) const LAST_LINES: usize = 100;

/// What no healthy kernel says. Each is part of the first line of its report.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "BUG at ",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "Unable to handle",
    "unable to handle",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "lock held when returning to user space",
    "bad unlock balance",
    "suspicious RCU usage",
    "Invalid wait context",
    "INFO: rcu",
    "self-detected stall",
    "detected stalls",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "sleeping function called from invalid context",
    "scheduling while atomic",
    "KASAN:",
    "KFENCE:",
    "KCSAN:",
    "UBSAN:",
    "DMA-API:",
    "refcount_t:",
    "ODEBUG:",
    "list_add corruption",
    "list_del corruption",
    "new suspected memory leaks",
    "unreferenced object",
    "Bad page",
    "bad page",
    "bad pud",
    "bad pmd",
    "Bad pagetable",
    "Bad rss-counter",
    "page_counter underflow",
    "non-zero pgtables_bytes",
    // By a test that has no machine of its own.
    "Kernel is locked down",
    "Attempted to kill init",
    "PANIC:",
];

/// What contains a complaint and is none.
const HARMLESS: &[&str] = &[
    // Settings at boot: "DMA-API: preallocated 65536 debug entries" and the like.
    "DMA-API: preallocated",
    "DMA-API: debugging enabled",
];

/// A complaint, and the test during which it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) test: Option<String>,
    pub(crate) line: String,
}

/// What a line of the console means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Plain,
    Finding,
    Panic,
    /// The console has everything that the kernel said during this test.
    End(String),
}

/// A report of lockdep that is the kernel's own affair: pciehp_unconfigure_device takes its
/// reset_lock and pci_rescan_remove_lock in both orders when a device is unplugged below a switch.
const CIRCULAR: &str = "possible circular locking dependency";
const IN_PCIEHP: &str = "at: pciehp_unconfigure_device";
/// Within so many lines lockdep names the lock that it is about.
const LOCK_NAMED_WITHIN: usize = 6;

#[derive(Debug, Default)]
pub(crate) struct Console {
    /// pciehp's report is no complaint.
    hotplug: bool,
    /// A report of lockdep that may turn out to be pciehp's, and how many lines ago it began.
    undecided: Option<(Finding, usize)>,
    expected: Vec<String>,
    seen: Vec<bool>,
    test: Option<String>,
    findings: Vec<Finding>,
    last: VecDeque<String>,
}

impl Console {
    /// A console on which these texts must appear, and are no complaint.
    pub(crate) fn new(expected: &[String], hotplug: bool) -> Self {
        Console {
            hotplug,
            expected: expected.to_vec(),
            seen: vec![false; expected.len()],
            ..Console::default()
        }
    }

    pub(crate) fn line(&mut self, line: &str) -> Line {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        if let Some((_, test)) = line.split_once(CONSOLE_BEGIN) {
            self.test = Some(test.trim().to_owned());
            return Line::Plain;
        }
        if let Some((_, test)) = line.split_once(CONSOLE_END) {
            self.test = None;
            return Line::End(test.trim().to_owned());
        }
        let mut expected = false;
        for (text, seen) in self.expected.iter().zip(&mut self.seen) {
            if line.contains(text) {
                *seen = true;
                expected = true;
            }
        }
        self.decide(line);
        // The second is what KUnit says of a test that has failed.
        let complaint = COMPLAINTS.iter().any(|text| line.contains(text))
            || message(line).starts_with("not ok ");
        let complaint = complaint && !expected && !HARMLESS.iter().any(|text| line.contains(text));
        if complaint {
            let finding = Finding {
                test: self.test.clone(),
                line: message(line).to_owned(),
            };
            if self.hotplug && line.contains(CIRCULAR) {
                self.undecided = Some((finding, 0));
            } else {
                self.findings.push(finding);
            }
        }
        if line.contains("Kernel panic - not syncing") {
            Line::Panic
        } else if complaint {
            Line::Finding
        } else {
            Line::Plain
        }
    }

    /// Looks in the lines after lockdep's first for the lock that it is about.
    fn decide(&mut self, line: &str) {
        let Some((finding, age)) = self.undecided.take() else {
            return;
        };
        if line.contains(IN_PCIEHP) {
            return;
        }
        if age < LOCK_NAMED_WITHIN {
            self.undecided = Some((finding, age + 1));
        } else {
            self.findings.push(finding);
        }
    }

    /// The complaints during a test (or outside of all), as one text.
    pub(crate) fn about(&self, test: Option<&str>) -> Option<String> {
        let mut lines = self
            .findings
            .iter()
            .filter(|finding| finding.test.as_deref() == test);
        let first = &lines.next()?.line;
        Some(match lines.count() {
            0 => format!("console: {first}"),
            more => format!("console: {first} (and {more} more)"),
        })
    }

    /// The test that runs as far as the console knows.
    pub(crate) fn test(&self) -> Option<&str> {
        self.test.as_deref()
    }

    /// Texts that should have appeared and have not.
    pub(crate) fn unseen(&self) -> impl Iterator<Item = &str> {
        let pairs = self.expected.iter().zip(&self.seen);
        pairs
            .filter(|(_, seen)| !**seen)
            .map(|(text, _)| text.as_str())
    }

    pub(crate) fn last_lines(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}

/// A line without its time stamp.
fn message(line: &str) -> &str {
    let stamped = line
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    match stamped {
        Some((stamp, message)) if stamp.trim().starts_with(|c: char| c.is_ascii_digit()) => message,
        _ => line,
    }
    .trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<Finding> {
        let mut console = Console::default();
        for line in text.lines() {
            console.line(line);
        }
        console.findings
    }

    /// First lines of reports, at least one for each of [`COMPLAINTS`].
    const REPORTS: &[&str] = &[
        "WARNING: CPU: 1 PID: 77 at mm/memory.c:2520 vmf_insert_pfn_pud+0x1f/0x30",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "kernel BUG at mm/huge_memory.c:1723!",
        "Oops: Oops: 0002 [#1] SMP NOPTI",
        "Unable to handle kernel access to user memory outside uaccess routines",
        "WARNING: possible circular locking dependency detected",
        "WARNING: possible recursive locking detected",
        "WARNING: possible irq lock inversion dependency detected",
        "WARNING: inconsistent lock state",
        "WARNING: lock held when returning to user space!",
        "WARNING: bad unlock balance detected!",
        "WARNING: suspicious RCU usage",
        "[ BUG: Invalid wait context ]",
        "BUG: KASAN: slab-use-after-free in barbuf_fault+0x1/0x2 [barbuf]",
        "BUG: KCSAN: data-race in a / b",
        "UBSAN: array-index-out-of-bounds in drivers/x.c:1:2",
        "BUG: KFENCE: use-after-free read in a+0x1/0x2",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "kmemleak: unreferenced object 0xffff888003a1 (size 64):",
        "DMA-API: pci 0000:04:00.0: device driver has pending DMA allocations",
        "refcount_t: underflow; use-after-free.",
        "ODEBUG: free active (active state 0) object type: timer_list",
        "list_add corruption. prev->next should be next",
        "list_del corruption, ffff888003a1->next is LIST_POISON1",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [suites:77]",
        "watchdog: Watchdog detected hard LOCKUP on cpu 1",
        "INFO: task suites:77 blocked for more than 120 seconds.",
        "general protection fault, probably for non-canonical address 0xdead: 0000",
        "BUG: unable to handle page fault for address: ffffea0000000000",
        "BUG: Bad page state in process suites  pfn:12345",
        "page dumped because: bad page table",
        "mm/pgtable-generic.c:50: bad pmd 00000000abcd(80000000000000e7)",
        "mm/pgtable-generic.c:37: bad pud 00000000abcd(80000000000000e7)",
        "Bad pagetable: 000d [#1] SMP NOPTI",
        "BUG: Bad rss-counter state mm:00000000 type:MM_FILEPAGES val:1",
        "BUG: non-zero pgtables_bytes on freeing mm: 4096",
        "page_counter underflow: -1 nr_pages=1",
        "BUG: scheduling while atomic: suites/77/0x00000002",
        "BUG: sleeping function called from invalid context at mm/x.c:1",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
        "Kernel is locked down from securityfs; see man kernel_lockdown.7",
        "PANIC: double fault, error_code: 0x0",
    ];

    #[test]
    fn every_kind_of_report_is_found() {
        for line in REPORTS {
            let found = findings(&format!("[    5.123456] {line}\n"));
            assert_eq!(found.len(), 1, "{line}");
            assert_eq!(found[0].line, *line);
        }
        for text in COMPLAINTS {
            assert!(
                REPORTS.iter().any(|line| line.contains(text)),
                "no report with {text:?} was recorded"
            );
        }
    }

    /// A stock kernel's boot says nothing that is taken for a complaint.
    #[test]
    fn a_healthy_boot_is_quiet() {
        assert_eq!(
            findings(include_str!("../../testdata/console-healthy.log")),
            []
        );
    }

    #[test]
    fn findings_belong_to_the_test_that_runs() {
        let mut console = Console::default();
        console.line("[    1.0] WARNING: before all");
        console.line("[    2.0] barbuf-test: begin smoke::a");
        console.line("[    2.1] WARNING: one");
        console.line("[    2.2] WARNING: two");
        assert_eq!(
            console.line("[    2.3] barbuf-test: end smoke::a"),
            Line::End("smoke::a".into())
        );
        assert_eq!(
            console.about(Some("smoke::a")).unwrap(),
            "console: WARNING: one (and 1 more)"
        );
        assert_eq!(console.about(None).unwrap(), "console: WARNING: before all");
        assert_eq!(console.about(Some("smoke::b")), None);
    }

    #[test]
    fn expected_lines_are_no_finding_but_must_come() {
        let mut console = Console::new(&["bad pud".into(), "never".into()], false);
        assert_eq!(console.line("[ 1.0] x: bad pud 00(80)"), Line::Plain);
        assert_eq!(console.about(None), None);
        assert_eq!(console.unseen().collect::<Vec<_>>(), ["never"]);
    }

    const PCIEHP: &str = "[ 1.0] WARNING: possible circular locking dependency detected
[ 1.0] 7.3.4 #1 Tainted: G           OE    N
[ 1.0] ------------------------------------------------------
[ 1.0] irq/27-pciehp/52 is trying to acquire lock:
[ 1.0] ff110001078d12d8 (&ctrl->reset_lock/1){.+.+}-{4:4}, at: pciehp_unconfigure_device+0x158/0x2a0
[ 1.0]
[ 1.0] but task is already holding lock:
[ 1.0] more
";

    #[test]
    fn pciehps_own_report_is_tolerated_where_devices_are_unplugged() {
        let complaint = |hotplug, text: &str| {
            let mut console = Console::new(&[], hotplug);
            text.lines().for_each(|line| drop(console.line(line)));
            console.about(None)
        };
        assert_eq!(complaint(true, PCIEHP), None);
        assert!(complaint(false, PCIEHP).is_some());
        let ours = PCIEHP.replace("pciehp_unconfigure_device", "barbuf_revoke");
        assert!(complaint(true, &ours).is_some());
    }

    #[test]
    fn kunits_failures_are_found() {
        assert_eq!(findings("[    1.0]     ok 1 largest\n"), []);
        assert_eq!(findings("[    1.0]     not ok 1 largest\n").len(), 1);
    }

    #[test]
    fn the_last_lines_are_kept() {
        let mut console = Console::default();
        for number in 0..250 {
            console.line(&format!("line {number}"));
        }
        let last: Vec<&str> = console.last_lines().collect();
        assert_eq!(
            (last.len(), last[0], last[99]),
            (100, "line 150", "line 249")
        );
    }
}
