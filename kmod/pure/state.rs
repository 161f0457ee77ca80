// SPDX-License-Identifier: GPL-2.0

//! The life of a buffer, and of the provider that it belongs to.
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
//! This is the decision alone. That nobody sees memory of a revoked buffer needs an order of steps
//! on top: first the new state is stored, then the driver waits for every fault that read the old
//! one, and only then it takes the mappings away. `tests/pure/tests/state.rs` tries all
//! interleavings of that.

use super::errno::Errno;

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

/// Something that happens to a buffer, or that somebody wants to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A reset begins.
    Suspend,
    /// The reset is over and memory decoding is on.
    Resume,
    /// Unbind, removal, the vendor driver or `BARBUF_REVOKE`.
    Revoke,
    /// A new buffer of this provider.
    Export,
    /// mmap of the buffer.
    Mmap,
    /// A page fault in a mapping.
    Fault,
    /// A device attaches as an importer.
    Attach,
    /// An importer asks for DMA addresses.
    Map,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 8] = [
        Event::Suspend,
        Event::Resume,
        Event::Revoke,
        Event::Export,
        Event::Mmap,
        Event::Fault,
        Event::Attach,
        Event::Map,
    ];
}

/// What to do about an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Go on: the state does not stand in the way.
    Proceed,
    /// Wait until the state changes and ask again. Whoever waits must first let go of all that the
    /// change itself waits for: the read side of the buffer's SRCU domain, and its reservation
    /// lock.
    Wait,
    /// The state is a new one. The caller stores it before it does anything else.
    Changed,
    /// The buffer is in this state already: somebody else does the work, or there is none.
    Unchanged,
    /// Not possible in this state. A fault answers SIGBUS instead of the errno.
    Refused(Errno),
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

    /// A new buffer of a provider in this state, so that an export during a reset waits for its end
    /// like all others.
    pub const fn of(provider: Life) -> Self {
        Life {
            state: provider.state,
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

    /// Decides about `event`: the life after it, and what the caller has to do.
    ///
    /// The life differs from `self` exactly if the outcome is [`Outcome::Changed`].
    pub const fn apply(self, event: Event) -> (Life, Outcome) {
        let outcome = match (self.state, event) {
            (State::Live, Event::Suspend) => return (self.to(State::Suspended), Outcome::Changed),
            (State::Suspended, Event::Resume) => {
                return (self.next().to(State::Live), Outcome::Changed)
            }
            (State::Live | State::Suspended, Event::Revoke) => {
                return (self.next().to(State::Revoked), Outcome::Changed)
            }

            (State::Suspended, Event::Suspend) | (State::Live, Event::Resume) => Outcome::Unchanged,

            (State::Live, _) => Outcome::Proceed,

            // Does not touch the device: the first access comes with a fault.
            (State::Suspended, Event::Mmap) => Outcome::Proceed,
            // An export may have to fill the memory with zero.
            (State::Suspended, Event::Fault | Event::Export) => Outcome::Wait,
            // An importer that maps holds the reservation lock, which suspending needs to tell the
            // importers; they are told again when the memory is back. One that attaches is let in through
            // the buffer's gate, which is shut.
            (State::Suspended, Event::Attach | Event::Map) => Outcome::Refused(Errno::EAGAIN),

            (State::Revoked, Event::Revoke) => Outcome::Refused(Errno::EBADFD),
            (State::Revoked, _) => Outcome::Refused(Errno::ENODEV),
        };
        (self, outcome)
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
