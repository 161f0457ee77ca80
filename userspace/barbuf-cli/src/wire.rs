// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `barbuf serve` and `barbuf get` say to each other, over a socket of packets.
//!
//! A request is one packet of JSON: `{"schema":1,"get":"weights"}` or `{"schema":1,"list":true}`.
//! The answer is a buffer in the form of [`barbuf::pass`], with what the kernel says of it as JSON
//! in its user bytes, or one packet of JSON: `{"schema":1,"buffers":[...]}` or
//! `{"schema":1,"error":{...}}`. A connection carries any number of requests.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit};
use crate::out::SCHEMA;

/// A longer request is none.
pub const MAX_REQUEST: usize = 4096;
/// A longer answer of JSON is none.
pub const MAX_ANSWER: usize = 256 << 10;

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub schema: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub list: bool,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Answer {
    pub schema: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffers: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub exit: u8,
    pub kind: String,
    pub message: String,
}

impl Request {
    pub fn get(name: &str) -> Request {
        Request {
            schema: SCHEMA,
            get: Some(name.to_owned()),
            list: false,
        }
    }

    /// # Errors
    ///
    /// What is wrong with it, for the client.
    pub fn parse(bytes: &[u8]) -> Result<Request, Error> {
        let request: Request = serde_json::from_slice(bytes)
            .map_err(|error| Error::usage(format!("this is no request: {error}")))?;
        if request.schema != SCHEMA {
            return Err(Error::usage(format!(
                "this server speaks schema {SCHEMA}, not {}",
                request.schema
            )));
        }
        if request.get.is_some() == request.list {
            return Err(Error::usage("a request has one of get and list"));
        }
        Ok(request)
    }
}

impl Answer {
    pub fn error(error: &Error) -> Answer {
        Answer {
            schema: SCHEMA,
            buffers: None,
            error: Some(Refusal {
                exit: error.exit as u8,
                kind: error.exit.name().into(),
                message: error.message.clone(),
            }),
        }
    }
}

impl Refusal {
    /// The error as the server would have exited with it.
    pub fn into_error(self) -> Error {
        let known = crate::error::EXIT_CODES
            .iter()
            .find(|(exit, _)| *exit as u8 == self.exit);
        let exit = known.map_or(Exit::Failed, |(exit, _)| *exit);
        // It is another process's text and goes to a terminal.
        let plain: String = self.message.chars().filter(|c| !c.is_control()).collect();
        Error::new(exit, format!("the server says: {plain}"))
    }
}

/// Sends one packet of JSON. Does not wait for who does not read.
///
/// # Errors
///
/// Those of send(2).
pub fn write(socket: BorrowedFd<'_>, value: &impl Serialize) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(value).map_err(|_| Errno::EINVAL)?;
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_EOR;
    send(socket.as_raw_fd(), &bytes, flags).map(drop)
}

/// Receives one packet of at most `most` bytes; file descriptors that come with it are dropped by
/// the kernel. `None` at the end.
///
/// # Errors
///
/// Those of recv(2); `EMSGSIZE` for a longer packet.
pub fn read(socket: BorrowedFd<'_>, most: usize) -> Result<Option<Vec<u8>>, Errno> {
    // One byte more tells a packet that is too long. Without room for control data the kernel
    // closes whatever descriptors come along.
    let mut bytes = vec![0; most + 1];
    let count = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?;
    if count > most {
        return Err(Errno::EMSGSIZE);
    }
    bytes.truncate(count);
    Ok((count > 0).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_read_back_and_others_are_refused() {
        let request = Request::get("weights");
        let bytes = serde_json::to_vec(&request).unwrap();
        assert_eq!(Request::parse(&bytes).unwrap(), request);
        for text in [
            "",
            "{}",
            r#"{"schema":2,"get":"a"}"#,
            r#"{"schema":1}"#,
            r#"{"schema":1,"get":"a","list":true}"#,
            r#"{"schema":1,"get":"a","length":5}"#,
        ] {
            assert!(Request::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes);
        }
    }
}
