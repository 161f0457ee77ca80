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
    "possible deadlock",
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
    "kmemleak: Kernel memory leak",
    "new suspected memory leaks",
    "Bad page",
    "bad page",
    "bad pud",
    "bad pmd",
    "Bad pagetable",
    "Bad rss-counter",
    "page_counter underflow",
    "non-zero pgtables_bytes",
    "trying to unregister non-existent",
    "Attempted to kill init",
    "segfault at",
    "traps:",
];

/// What contains a complaint and is none.
const HARMLESS: &[&str] = &[
    // Settings at boot: "DMA-API: preallocated 65536 debug entries" and the like.
    "DMA-API: preallocated",
    "DMA-API: debugging enabled",
    // What a test meant to be killed by a signal leaves on the console.
    "barbuf-suites[",
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

#[derive(Debug, Default)]
pub(crate) struct Console {
    expected: Vec<String>,
    seen: Vec<bool>,
    test: Option<String>,
    findings: Vec<Finding>,
    last: VecDeque<String>,
}

impl Console {
    /// A console on which these texts must appear, and are no complaint.
    pub(crate) fn expecting(expected: &[String]) -> Self {
        Console {
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
        let complaint = COMPLAINTS.iter().any(|text| line.contains(text))
            && !HARMLESS.iter().any(|text| line.contains(text));
        if complaint && !expected {
            self.findings.push(Finding {
                test: self.test.clone(),
                line: message(line).to_owned(),
            });
        }
        if line.contains("Kernel panic - not syncing") {
            Line::Panic
        } else if complaint && !expected {
            Line::Finding
        } else {
            Line::Plain
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

    /// One recorded first line of each kind of report.
    #[test]
    fn every_kind_of_report_is_found() {
        for line in [
            "WARNING: CPU: 1 PID: 77 at mm/memory.c:2520 vmf_insert_pfn_pud+0x1f/0x30",
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "kernel BUG at mm/huge_memory.c:1723!",
            "Oops: Oops: 0002 [#1] SMP NOPTI",
            "WARNING: possible circular locking dependency detected",
            "WARNING: inconsistent lock state",
            "WARNING: suspicious RCU usage",
            "BUG: KASAN: slab-use-after-free in barbuf_fault+0x1/0x2 [barbuf]",
            "UBSAN: array-index-out-of-bounds in drivers/x.c:1:2",
            "BUG: KFENCE: use-after-free read in a+0x1/0x2",
            "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "DMA-API: pci 0000:04:00.0: device driver has pending DMA allocations",
            "refcount_t: underflow; use-after-free.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [suites:77]",
            "watchdog: Watchdog detected hard LOCKUP on cpu 1",
            "INFO: task suites:77 blocked for more than 120 seconds.",
            "general protection fault, probably for non-canonical address 0xdead: 0000",
            "BUG: unable to handle page fault for address: ffffea0000000000",
            "BUG: Bad page state in process suites  pfn:12345",
            "mm/pgtable-generic.c:50: bad pmd 00000000abcd(80000000000000e7)",
            "mm/pgtable-generic.c:37: bad pud 00000000abcd(80000000000000e7)",
            "BUG: Bad rss-counter state mm:00000000 type:MM_FILEPAGES val:1",
            "BUG: scheduling while atomic: suites/77/0x00000002",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "Kernel panic - not syncing: sysrq triggered crash",
        ] {
            let found = findings(&format!("[    5.123456] {line}\n"));
            assert_eq!(found.len(), 1, "{line}");
            assert_eq!(found[0].line, line);
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
        let mut console = Console::expecting(&["bad pud".into(), "never".into()]);
        assert_eq!(console.line("[ 1.0] x: bad pud 00(80)"), Line::Plain);
        assert_eq!(console.about(None), None);
        assert_eq!(console.unseen().collect::<Vec<_>>(), ["never"]);
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
