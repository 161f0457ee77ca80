// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernel configurations: did the kernel take what the fragments ask for?

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// The options of a `.config` or of a fragment: `None` for `# CONFIG_X is not set`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Config<'a>(BTreeMap<&'a str, Option<&'a str>>);

impl<'a> Config<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut config = Config::default();
        config.merge(text);
        config
    }

    /// Reads one more fragment; what it says overrides what was said before.
    pub(super) fn merge(&mut self, text: &'a str) {
        for line in text.lines().map(str::trim) {
            if let Some(name) = line
                .strip_prefix("# ")
                .and_then(|rest| rest.strip_suffix(" is not set"))
                .filter(|name| name.starts_with("CONFIG_"))
            {
                self.0.insert(name, None);
            } else if let Some((name, value)) = line.split_once('=') {
                if name.starts_with("CONFIG_") {
                    self.0.insert(name, (value != "n").then_some(value));
                }
            }
        }
    }

    /// The value of an option that is set.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied().flatten()
    }

    /// What this asks for, in the form of a fragment.
    pub(super) fn text(&self) -> String {
        self.0
            .iter()
            .map(|(name, value)| match value {
                Some(value) => format!("{name}={value}\n"),
                None => format!("# {name} is not set\n"),
            })
            .collect()
    }

    /// The options on which two configurations differ.
    pub(super) fn differences<'b>(&'b self, other: &'b Config<'_>) -> Vec<&'b str> {
        let names = self.0.keys().chain(other.0.keys()).copied();
        let mut names: Vec<&str> = names
            .filter(|name| self.get(name) != other.get(name))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Checks that a `.config` has every option as the fragments ask for it.
pub(super) fn check(wanted: &Config<'_>, got: &Config<'_>) -> Result<()> {
    let refused: Vec<String> = wanted
        .0
        .iter()
        .filter(|(name, value)| got.get(name) != **value)
        .map(|(name, value)| {
            format!(
                "{name}: asked for {}, got {}",
                value.unwrap_or("n"),
                got.get(name).unwrap_or("n")
            )
        })
        .collect();
    if !refused.is_empty() {
        bail!(
            "the kernel does not take the whole configuration\n{}\n\
             hint: an option needs others that tests/vm/configs/ does not name, or this series has \
             lost it",
            refused.join("\n")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_option_is_named() {
        let wanted = Config::parse("CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n");
        let good = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_D=7\n";
        check(&wanted, &Config::parse(good)).unwrap();
        for (bad, name) in [
            ("CONFIG_B=m\n", "CONFIG_A: asked for y, got n"),
            ("CONFIG_A=y\nCONFIG_B=y\n", "CONFIG_B: asked for m, got y"),
            (
                "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\n",
                "CONFIG_C: asked for n, got y",
            ),
        ] {
            let error = check(&wanted, &Config::parse(bad)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_later_fragment_overrides() {
        let mut config = Config::parse("CONFIG_A=y\nCONFIG_B=n\n# a comment\n");
        config.merge("# CONFIG_A is not set\nCONFIG_B=\"x=y\"\n");
        assert_eq!(config.get("CONFIG_A"), None);
        assert_eq!(config.get("CONFIG_B"), Some("\"x=y\""));
        assert_eq!(config.text(), "# CONFIG_A is not set\nCONFIG_B=\"x=y\"\n");
    }

    #[test]
    fn differences_are_by_value() {
        let a = Config::parse("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=1\n");
        let b = Config::parse("CONFIG_A=y\nCONFIG_C=2\nCONFIG_D=y\n");
        assert_eq!(a.differences(&b), ["CONFIG_C", "CONFIG_D"]);
    }
}
