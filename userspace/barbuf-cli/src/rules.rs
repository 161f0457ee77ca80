// SPDX-License-Identifier: MIT OR Apache-2.0

//! The broker's rules: which buffers there are, and who may have them.
//!
//! A client names a buffer and says nothing else about it, so that a rule is the most that it can
//! get. The file is TOML:
//!
//! ```toml
//! [limits]
//! clients = 64            # connections at the same time, 1 to 1024
//! clients_per_user = 8
//! timeout_s = 10          # for a request, 1 to 3600
//!
//! [[buffer]]
//! name = "scratch"        # what clients ask for
//! device = "0000:05:00.0"
//! region = 0              # index of the region
//! offset = "4G"           # absent: wherever there is room
//! length = "1G"
//! backing = "page"        # pfn unless told
//! cache = "uc"            # or wc
//! access = "read-write"   # read-only unless told
//! per_client = true       # each client has one of its own; else all have the same
//! revoke_on_disconnect = true
//! zero = false            # fill it with zeros first
//! shared = false          # other shared buffers may cover the same bytes
//! allow = [{ uid = 1000 }, { gid = 44 }, { user = "alice" }, { group = "render" }]
//! ```

use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::cli::{BackingArg, CacheArg};
use crate::error::{Error, Result};
use crate::size;
use crate::sysfs::Bdf;

/// A file with more is refused before it is parsed.
pub const MAX_FILE: usize = 1 << 20;
const MAX_BUFFERS: usize = 1024;
const MAX_NAME: usize = 64;
const PAGE: u64 = 4096;

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    #[serde(default)]
    pub limits: Limits,
    #[serde(default, rename = "buffer")]
    pub buffers: Vec<BufferRule>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub clients: u32,
    pub clients_per_user: u32,
    pub timeout_s: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            clients: 64,
            clients_per_user: 8,
            timeout_s: 10,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    #[default]
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BufferRule {
    pub name: String,
    #[serde(deserialize_with = "bdf")]
    pub device: Bdf,
    #[serde(default)]
    pub region: u32,
    #[serde(default, deserialize_with = "maybe_bytes")]
    pub offset: Option<u64>,
    #[serde(deserialize_with = "bytes")]
    pub length: u64,
    #[serde(default = "pfn")]
    pub backing: BackingArg,
    #[serde(default = "uc")]
    pub cache: CacheArg,
    #[serde(default)]
    pub access: Grant,
    #[serde(default)]
    pub per_client: bool,
    #[serde(default)]
    pub revoke_on_disconnect: bool,
    #[serde(default)]
    pub zero: bool,
    #[serde(default)]
    pub shared: bool,
    pub allow: Vec<Allow>,
}

/// Somebody who may have a buffer. Exactly one member is given.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub user: Option<String>,
    pub group: Option<String>,
}

/// Who asks, as the kernel vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    /// The group and the supplementary groups.
    pub gids: Vec<u32>,
}

/// Numbers of users and groups by name.
pub trait Names {
    fn uid(&self, user: &str) -> Option<u32>;
    fn gid(&self, group: &str) -> Option<u32>;
}

/// Those of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemNames;

impl Names for SystemNames {
    fn uid(&self, user: &str) -> Option<u32> {
        let user = nix::unistd::User::from_name(user).ok()??;
        Some(user.uid.as_raw())
    }

    fn gid(&self, group: &str) -> Option<u32> {
        let group = nix::unistd::Group::from_name(group).ok()??;
        Some(group.gid.as_raw())
    }
}

impl Rules {
    /// Reads a file of rules.
    ///
    /// # Errors
    ///
    /// It cannot be read, somebody else could write to it, or it is wrong.
    pub fn read(path: &Path, names: &impl Names) -> Result<Rules> {
        use std::io::Read as _;
        use std::os::unix::fs::MetadataExt as _;
        let failed = |error: std::io::Error| Error::io("read", path, &error);
        let file = std::fs::File::open(path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        let us = nix::unistd::geteuid().as_raw();
        if data.mode() & 0o022 != 0 || (data.uid() != 0 && data.uid() != us) {
            return Err(Error::new(
                crate::error::Exit::Permission,
                format!(
                    "{} can be changed by others than root and this user",
                    path.display()
                ),
            )
            .hint(format!("chown root {0}; chmod go-w {0}", path.display())));
        }
        let mut text = String::new();
        file.take(MAX_FILE as u64 + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Rules::parse(&text, names).map_err(|error| Error {
            message: format!("{}: {}", path.display(), error.message),
            ..error
        })
    }

    /// Reads rules. Users and groups are numbers afterwards.
    ///
    /// # Errors
    ///
    /// What is wrong with them, and where.
    pub fn parse(text: &str, names: &impl Names) -> Result<Rules> {
        if text.len() > MAX_FILE {
            return Err(Error::usage(format!("rules of more than {MAX_FILE} bytes")));
        }
        let mut rules: Rules = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(1, |before| before.matches('\n').count() + 1);
            Error::usage(format!("line {line}: {}", one_line(error.message())))
                .hint("the manual page barbuf-serve(1) shows the form")
        })?;
        rules.check()?;
        for rule in &mut rules.buffers {
            for allow in &mut rule.allow {
                allow.resolve(&rule.name, names)?;
            }
        }
        Ok(rules)
    }

    fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::usage(text));
        let Limits {
            clients,
            clients_per_user,
            timeout_s,
        } = self.limits;
        if !(1..=1024).contains(&clients) || !(1..=1024).contains(&clients_per_user) {
            return wrong("limits: clients and clients_per_user are 1 to 1024".into());
        }
        if !(1..=3600).contains(&timeout_s) {
            return wrong("limits: timeout_s is 1 to 3600".into());
        }
        if self.buffers.len() > MAX_BUFFERS {
            return wrong(format!("more than {MAX_BUFFERS} buffers"));
        }
        for (index, rule) in self.buffers.iter().enumerate() {
            rule.check()?;
            if self
                .buffers
                .iter()
                .take(index)
                .any(|other| other.name == rule.name)
            {
                return wrong(format!("two buffers are called {:?}", rule.name));
            }
        }
        Ok(())
    }

    /// The rule by which a caller may have a buffer. Who may not is told the same as who asks for
    /// one that is not there.
    pub fn find(&self, name: &str, caller: &Caller) -> Option<&BufferRule> {
        let rule = self.buffers.iter().find(|rule| rule.name == name)?;
        rule.allows(caller).then_some(rule)
    }
}

impl BufferRule {
    fn check(&self) -> Result<()> {
        let name = &self.name;
        let wrong = |text: &str| Err(Error::usage(format!("buffer {name:?}: {text}")));
        if !is_name(name) {
            return wrong("a name is 1 to 64 letters, digits, '-', '_' or '.'");
        }
        if self.length == 0 || self.length % PAGE != 0 {
            return wrong("length is a multiple of 4 KiB, and not 0");
        }
        if self.offset.is_some_and(|offset| offset % PAGE != 0) {
            return wrong("offset is a multiple of 4 KiB");
        }
        if self
            .offset
            .is_some_and(|offset| offset.checked_add(self.length).is_none())
        {
            return wrong("it ends beyond 64 bits");
        }
        if self.per_client && self.offset.is_some() && !self.shared {
            return wrong(
                "one for each client needs several places: leave offset out, or say shared",
            );
        }
        if self.revoke_on_disconnect && !self.per_client {
            return wrong(
                "revoke_on_disconnect needs per_client: revoking takes it from everybody",
            );
        }
        if self.backing == BackingArg::Page && self.cache == CacheArg::Wc {
            return wrong("page backing is uncached only");
        }
        if self.allow.is_empty() {
            return wrong("allow is empty: nobody could have it");
        }
        for allow in &self.allow {
            let given = [
                allow.uid.is_some(),
                allow.gid.is_some(),
                allow.user.is_some(),
                allow.group.is_some(),
            ];
            if given.iter().filter(|given| **given).count() != 1 {
                return wrong("each element of allow has one of uid, gid, user and group");
            }
        }
        Ok(())
    }

    pub fn allows(&self, caller: &Caller) -> bool {
        self.allow.iter().any(|allow| {
            allow.uid.is_some_and(|uid| uid == caller.uid)
                || allow.gid.is_some_and(|gid| caller.gids.contains(&gid))
        })
    }
}

impl Allow {
    pub fn of_uid(uid: u32) -> Allow {
        Allow {
            uid: Some(uid),
            ..Allow::default()
        }
    }

    pub fn of_gid(gid: u32) -> Allow {
        Allow {
            gid: Some(gid),
            ..Allow::default()
        }
    }

    fn resolve(&mut self, buffer: &str, names: &impl Names) -> Result<()> {
        let unknown = |what: &str, name: &str| {
            Error::usage(format!("buffer {buffer:?}: there is no {what} {name:?}"))
        };
        if let Some(user) = self.user.take() {
            self.uid = Some(names.uid(&user).ok_or_else(|| unknown("user", &user))?);
        }
        if let Some(group) = self.group.take() {
            self.gid = Some(names.gid(&group).ok_or_else(|| unknown("group", &group))?);
        }
        Ok(())
    }
}

/// Names go into messages and logs as they are.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn pfn() -> BackingArg {
    BackingArg::Pfn
}

fn uc() -> CacheArg {
    CacheArg::Uc
}

fn bdf<'de, D: Deserializer<'de>>(from: D) -> Result<Bdf, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// A size as text, or bytes as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bytes {
    Number(u64),
    Text(String),
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match Bytes::deserialize(from)? {
        Bytes::Number(bytes) => Ok(bytes),
        Bytes::Text(text) => size::parse(&text).map_err(serde::de::Error::custom),
    }
}

fn maybe_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    bytes(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Fixed;

    impl Names for Fixed {
        fn uid(&self, user: &str) -> Option<u32> {
            (user == "alice").then_some(1000)
        }

        fn gid(&self, group: &str) -> Option<u32> {
            (group == "render").then_some(44)
        }
    }

    const GOOD: &str = r#"
        [limits]
        clients = 2
        [[buffer]]
        name = "weights"
        device = "05:00.0"
        length = "1G"
        offset = 4096
        backing = "page"
        allow = [{ user = "alice" }, { group = "render" }, { uid = 7 }]
    "#;

    fn caller(uid: u32, gids: &[u32]) -> Caller {
        Caller {
            uid,
            gids: gids.to_vec(),
        }
    }

    #[test]
    fn a_good_file_says_who_may_have_what() {
        let rules = Rules::parse(GOOD, &Fixed).unwrap();
        assert_eq!(
            rules.limits,
            Limits {
                clients: 2,
                ..Limits::default()
            }
        );
        let rule = &rules.buffers[0];
        assert_eq!((rule.length, rule.offset), (1 << 30, Some(4096)));
        assert_eq!(
            (rule.access, rule.device.as_str()),
            (Grant::ReadOnly, "0000:05:00.0")
        );
        for (who, may) in [
            (caller(1000, &[1000]), true),
            (caller(7, &[]), true),
            (caller(1, &[100, 44]), true),
            (caller(0, &[0]), false),
            (caller(44, &[1000, 7]), false),
        ] {
            assert_eq!(rules.find("weights", &who).is_some(), may, "{who:?}");
            assert!(rules.find("other", &who).is_none());
        }
    }

    #[test]
    fn each_mistake_is_told_in_one_line() {
        let cases = [
            ("name = \"weights\"", "name = \"a b\"", "a name is"),
            ("name = \"weights\"", "name = \"\"", "a name is"),
            ("length = \"1G\"", "length = \"1Q\"", "is no size"),
            ("length = \"1G\"", "length = 0", "not 0"),
            ("length = \"1G\"", "length = 5", "multiple of 4 KiB"),
            ("length = \"1G\"", "length = -1", "line"),
            ("offset = 4096", "offset = 1", "offset is a multiple"),
            (
                "offset = 4096",
                "offset = \"0xfffffffffffff000\"",
                "beyond 64 bits",
            ),
            (
                "offset = 4096",
                "per_client = true\noffset = 0",
                "several places",
            ),
            (
                "offset = 4096",
                "revoke_on_disconnect = true",
                "needs per_client",
            ),
            ("offset = 4096", "cache = \"wc\"", "uncached only"),
            ("05:00.0", "05:00", "is no PCI function"),
            ("user = \"alice\"", "user = \"bob\"", "there is no user"),
            ("uid = 7", "uid = 7, gid = 7", "has one of"),
            ("{ uid = 7 }", "{}", "has one of"),
            ("clients = 2", "clients = 0", "1 to 1024"),
            ("clients = 2", "timeout_s = 0", "1 to 3600"),
            ("clients = 2", "clientz = 2", "clientz"),
            ("backing = \"page\"", "backing = \"pages\"", "pages"),
            (
                "[{ user = \"alice\" }, { group = \"render\" }, { uid = 7 }]",
                "[]",
                "nobody",
            ),
        ];
        for (old, new, message) in cases {
            let text = GOOD.replace(old, new);
            assert_ne!(text, GOOD, "{old}");
            let error = Rules::parse(&text, &Fixed).unwrap_err();
            assert!(error.message.contains(message), "{new}: {}", error.message);
            assert_eq!(error.message.lines().count(), 1);
            assert_eq!(error.exit, crate::error::Exit::Usage);
        }
        let twice = format!("{GOOD}\n{}", &GOOD[GOOD.find("[[").unwrap()..]);
        assert!(
            Rules::parse(&twice, &Fixed)
                .unwrap_err()
                .message
                .contains("two buffers")
        );
    }

    #[test]
    fn a_file_that_others_can_change_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), GOOD).unwrap();
        assert!(Rules::read(file.path(), &Fixed).is_ok());
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o620)).unwrap();
        let error = Rules::read(file.path(), &Fixed).unwrap_err();
        assert_eq!(error.exit, crate::error::Exit::Permission);
    }

    proptest! {
        #[test]
        fn who_is_not_named_gets_nothing(uid: u32, gids in prop::collection::vec(any::<u32>(), 0..8)) {
            let rules = Rules::parse(GOOD, &Fixed).unwrap();
            let named = uid == 1000 || uid == 7 || gids.contains(&44);
            prop_assert_eq!(rules.find("weights", &caller(uid, &gids)).is_some(), named);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]a-z_=\"0-9{}, .:\n-]{0,300}") {
            let _ = Rules::parse(&text, &Fixed);
        }
    }
}
