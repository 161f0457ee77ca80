// SPDX-License-Identifier: GPL-2.0

//! The life of a buffer.
//!
//! ```text
//!             suspend                 revoke
//!     live ------------> suspended ------------> revoked
//!      ^                     |                      ^
//!      +---------------------+                      |
//!      |       resume                               |
//!      +--------------------------------------------+
//!                          revoke
//! ```
//!
//! A suspended buffer has a reset in flight: its memory comes back, and faults wait for that. A
//! revoked one never comes back.
//!
//! The generation tells two lives of the same buffer apart. It starts at 1 and grows whenever what
//! a holder remembers of the device may no longer be true: when the buffer comes back from a reset,
//! and when it is revoked.
//!
//! This is the decision alone; who uses a buffer asks its gate. That nobody sees memory of a revoked
//! one needs an order of steps on top: the gate is shut, those inside are waited for, and only then
//! the mappings are taken away. `tests/pure/tests/state.rs` tries all interleavings of that.

/// Where in its life a buffer is. The values are those of `uapi/linux/barbuf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Usable.
    Live = 0,
    /// A reset is in flight; comes back.
    Suspended = 1,
    /// Gone for good.
    Revoked = 2,
}

impl State {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            State::Live => "live",
            State::Suspended => "suspended",
            State::Revoked => "revoked",
        }
    }

    /// The number that user space knows.
    pub const fn to_uapi(self) -> u32 {
        // CAST: The enum is `repr(u32)`, so the cast keeps the value.
        self as u32
    }
}

/// Something that happens to a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A reset begins.
    Suspend,
    /// The reset is over and memory decoding is on.
    Resume,
    /// Unbind, removal, the vendor driver or `BARBUF_REVOKE`.
    Revoke,
}

/// The state of a buffer together with its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    state: State,
    generation: u64,
}

impl Life {
    /// The bits that the state takes in [`Life::to_bits`].
    const STATE_BITS: u32 = 2;

    /// The largest generation; further changes keep it. One change per nanosecond reaches it in 146
    /// years.
    const MAX_GENERATION: u64 = u64::MAX >> Self::STATE_BITS;

    /// A new buffer: live, of generation 1.
    pub const fn new() -> Self {
        Life {
            state: State::Live,
            generation: 1,
        }
    }

    /// The state.
    pub const fn state(self) -> State {
        self.state
    }

    /// The generation, at least 1.
    pub const fn generation(self) -> u64 {
        self.generation
    }

    /// Both in one word, so that they can be read together from one atomic.
    pub const fn to_bits(self) -> u64 {
        // CAST: The state is at most 2.
        (self.generation << Self::STATE_BITS) | self.state as u64
    }

    /// The inverse of [`Life::to_bits`]; `None` for a word that it does not make.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let state = match bits & ((1 << Self::STATE_BITS) - 1) {
            0 => State::Live,
            1 => State::Suspended,
            2 => State::Revoked,
            _ => return None,
        };
        match bits >> Self::STATE_BITS {
            0 => None,
            generation => Some(Life { state, generation }),
        }
    }

    /// The life after `event`, which the caller stores before it does anything else.
    ///
    /// `None` when the event changes nothing: the buffer is in that state already and somebody else
    /// does the work, or it is revoked.
    pub const fn apply(self, event: Event) -> Option<Life> {
        match (self.state, event) {
            (State::Live, Event::Suspend) => Some(self.to(State::Suspended)),
            (State::Suspended, Event::Resume) => Some(self.next().to(State::Live)),
            (State::Live | State::Suspended, Event::Revoke) => Some(self.next().to(State::Revoked)),
            (State::Suspended, Event::Suspend) | (State::Live, Event::Resume) => None,
            (State::Revoked, _) => None,
        }
    }

    const fn to(self, state: State) -> Self {
        Life {
            state,
            generation: self.generation,
        }
    }

    const fn next(self) -> Self {
        let generation = if self.generation < Self::MAX_GENERATION {
            self.generation.saturating_add(1)
        } else {
            Self::MAX_GENERATION
        };
        Life {
            state: self.state,
            generation,
        }
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}
