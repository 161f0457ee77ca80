// SPDX-License-Identifier: MIT OR Apache-2.0

//! From the list of tests to the list of boots.

use anyhow::{Result, bail};
use barbuf_guest::protocol::{ListedTest, SuitePlan, TestPlan};

use super::topology::{self, Topology};
use crate::kernel::Flavour;

/// Which tests to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection<'a> {
    /// Parts of `suite::test`, of which one has to be there; all tests if there are none.
    pub(crate) filter: &'a [String],
    pub(crate) topology: Option<&'a str>,
}

impl Selection<'_> {
    /// Whether a test of this name is asked for.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|text| name.contains(text))
    }
}

/// Tests that share a boot.
#[derive(Debug)]
pub(crate) struct PlannedBoot {
    /// Unique among the boots of a kernel; the name of its directory.
    pub(crate) name: String,
    pub(crate) topology: Topology,
    pub(crate) suites: Vec<SuitePlan>,
    pub(crate) console: Vec<String>,
    pub(crate) panics: bool,
    /// Devices are unplugged.
    pub(crate) hotplug: bool,
}

/// Refuses a list that cannot be run as it stands.
pub(crate) fn check(tests: &[ListedTest]) -> Result<()> {
    for (index, test) in tests.iter().enumerate() {
        let name = full_name(test);
        if let Err(error) = topology::find(&test.topology) {
            bail!("the test {name}: {error:#}");
        }
        let plain = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_-@".contains(c);
            !text.is_empty() && text.chars().all(allowed)
        };
        if !plain(&test.suite) || !plain(&test.name) {
            bail!("the test {name:?} has a name that the report cannot carry");
        }
        if tests[..index].iter().any(|other| full_name(other) == name) {
            bail!("there are two tests {name}");
        }
        if test.panics && test.console.is_empty() {
            bail!("the test {name} panics and does not say with what message");
        }
    }
    Ok(())
}

/// The boots for a kernel, in the order of the topologies.
pub(crate) fn boots(
    tests: &[ListedTest],
    flavour: Flavour,
    selection: &Selection<'_>,
) -> Vec<PlannedBoot> {
    let wanted = |test: &&ListedTest| {
        test.kernels.contains(&flavour.to_string())
            && selection.topology.is_none_or(|name| test.topology == name)
            && selection.names(&full_name(test))
    };
    let tests: Vec<&ListedTest> = tests.iter().filter(wanted).collect();
    let mut boots = Vec::new();
    for topology in topology::presets() {
        // Instructions of a kernel full of checks say nothing, and one at a time takes for ever.
        if topology.icount && flavour == Flavour::Debug {
            continue;
        }
        let here = || {
            tests
                .iter()
                .copied()
                .filter(|test| test.topology == topology.name)
        };
        let (shared, alone): (Vec<_>, Vec<_>) = here().partition(|test| test.console.is_empty());
        // Hotplug costs the debug kernel its lockdep: the other tests come without it.
        let (hotplug, shared): (Vec<_>, Vec<_>) = shared
            .into_iter()
            .partition(|test| test.hotplug && flavour == Flavour::Debug);
        for (suffix, tests) in [("", shared), ("-hotplug", hotplug)] {
            if !tests.is_empty() {
                boots.push(PlannedBoot {
                    name: format!("{flavour}-{}{suffix}", topology.name),
                    topology: topology.clone().for_kernel(flavour),
                    suites: suites(&tests),
                    console: Vec::new(),
                    panics: false,
                    hotplug: tests.iter().any(|test| test.hotplug),
                });
            }
        }
        for test in alone {
            boots.push(PlannedBoot {
                name: format!("{flavour}-{}-{}-{}", topology.name, test.suite, test.name),
                topology: topology.clone().for_kernel(flavour),
                suites: suites(&[test]),
                console: test.console.clone(),
                panics: test.panics,
                hotplug: test.hotplug,
            });
        }
    }
    boots
}

/// Groups tests by suite, each in the order in which it came.
pub(crate) fn suites(tests: &[&ListedTest]) -> Vec<SuitePlan> {
    let mut suites: Vec<SuitePlan> = Vec::new();
    for test in tests {
        let plan = TestPlan {
            name: test.name.clone(),
            timeout_s: test.timeout_s,
            warns: test.console.iter().any(|text| text.starts_with("WARNING")),
        };
        match suites.iter_mut().find(|suite| suite.name == test.suite) {
            Some(suite) => suite.tests.push(plan),
            None => suites.push(SuitePlan {
                name: test.suite.clone(),
                tests: vec![plan],
            }),
        }
    }
    suites
}

pub(super) fn full_name(test: &ListedTest) -> String {
    format!("{}::{}", test.suite, test.name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::vm) fn test(suite: &str, name: &str, topology: &str) -> ListedTest {
        ListedTest {
            suite: suite.into(),
            name: name.into(),
            topology: topology.into(),
            kernels: vec!["stock".into()],
            timeout_s: 1,
            console: Vec::new(),
            panics: false,
            hotplug: false,
        }
    }

    #[test]
    fn hotplug_has_its_own_boot_where_it_costs_lockdep() {
        let mut hotplug = test("a", "unplug", "minimal");
        hotplug.hotplug = true;
        let mut tests = [test("a", "one", "minimal"), hotplug];
        let stock = boots(&tests, Flavour::Stock, &Selection::default());
        assert_eq!(stock.len(), 1);
        for test in &mut tests {
            test.kernels = vec!["debug".into()];
        }
        let debug = boots(&tests, Flavour::Debug, &Selection::default());
        let names: Vec<&str> = debug.iter().map(|boot| boot.name.as_str()).collect();
        assert_eq!(names, ["debug-minimal", "debug-minimal-hotplug"]);
        assert_eq!(
            debug.iter().map(|boot| boot.hotplug).collect::<Vec<_>>(),
            [false, true]
        );
    }

    #[test]
    fn the_debug_kernel_counts_no_instructions() {
        let mut test = test("a", "one", "icount");
        test.kernels = vec!["stock".into(), "debug".into()];
        let tests = [test];
        let count = |flavour| boots(&tests, flavour, &Selection::default()).len();
        assert_eq!((count(Flavour::Stock), count(Flavour::Debug)), (1, 0));
    }

    #[test]
    fn an_unknown_topology_is_refused() {
        let error = check(&[test("s", "t", "mars")]).unwrap_err().to_string();
        assert!(
            error.contains("the test s::t: there is no topology mars"),
            "{error}"
        );
    }

    #[test]
    fn two_tests_of_one_name_are_refused() {
        let twice = [test("s", "t", "minimal"), test("s", "t", "iommu")];
        assert!(check(&twice).is_err());
        assert!(check(&twice[..1]).is_ok());
        assert!(check(&[test("s", "a b", "minimal")]).is_err());
    }

    #[test]
    fn tests_of_a_topology_share_a_boot_and_provokers_do_not() {
        let mut alone = test("b", "oops", "minimal");
        alone.console = vec!["bad pud".into()];
        let mut other = test("b", "debug_only", "minimal");
        other.kernels = vec!["debug".into()];
        let tests = [
            test("a", "one", "minimal"),
            test("b", "two", "minimal"),
            test("a", "three", "iommu"),
            alone,
            other,
        ];
        let all = boots(&tests, Flavour::Stock, &Selection::default());
        let names: Vec<&str> = all.iter().map(|boot| boot.name.as_str()).collect();
        assert_eq!(
            names,
            ["stock-minimal", "stock-minimal-b-oops", "stock-iommu"]
        );
        assert_eq!(all[0].suites.len(), 2);
        let filter = Selection {
            filter: &["b::t".into(), "nothing".into()],
            topology: None,
        };
        assert_eq!(boots(&tests, Flavour::Stock, &filter).len(), 1);
        let topology = Selection {
            filter: &[],
            topology: Some("iommu"),
        };
        assert_eq!(boots(&tests, Flavour::Stock, &topology).len(), 1);
    }
}
