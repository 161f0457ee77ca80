// SPDX-License-Identifier: MIT OR Apache-2.0

//! What holds for every file of rules, for the fuzz target and for `tests/seeds.rs`.

use barbuf_cli::rules::{Caller, Names, Rules};

/// A machine with one user and one group.
pub(crate) struct Fixed;

impl Names for Fixed {
    fn uid(&self, user: &str) -> Option<u32> {
        (user == "alice").then_some(1000)
    }

    fn gid(&self, group: &str) -> Option<u32> {
        (group == "render").then_some(44)
    }
}

/// Panics if the rules break a promise.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let rules = match Rules::parse(text, &Fixed) {
        Ok(rules) => rules,
        Err(error) => {
            assert_eq!(error.message.lines().count(), 1, "{}", error.message);
            return;
        }
    };
    // An accepted rule names its bytes and somebody.
    let stranger = Caller {
        uid: 4_294_967_294,
        gids: vec![4_294_967_293],
    };
    for rule in &rules.buffers {
        assert!(rule.length > 0 && rule.length % 4096 == 0);
        assert!(rule.offset.unwrap_or(0).checked_add(rule.length).is_some());
        assert!(!rule.allow.is_empty());
        for allow in &rule.allow {
            assert!(allow.user.is_none() && allow.group.is_none());
            assert!(allow.uid.is_some() != allow.gid.is_some());
        }
        let named = rule
            .allow
            .iter()
            .any(|allow| allow.uid == Some(stranger.uid) || allow.gid == Some(stranger.gids[0]));
        assert_eq!(rules.find(&rule.name, &stranger).is_some(), named);
    }
}
