//! Collections and the sessions in which their messages travel.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32HEX_NOPAD;

use crate::{InvalidId, textual};

/// The body of the time-ordered ids: 4 bytes of unix seconds and 4 random bytes, in base32hex, 13 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOrderedId([u8; 8]);

impl TimeOrderedId {
    /// The id of something made at `unix_seconds`.
    #[must_use]
    pub fn from_parts(unix_seconds: u32, random: [u8; 4]) -> Self {
        let mut bytes = [0; 8];
        let (time, rest) = bytes.split_at_mut(4);
        time.copy_from_slice(&unix_seconds.to_be_bytes());
        rest.copy_from_slice(&random);
        Self(bytes)
    }
}

impl fmt::Display for TimeOrderedId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE32HEX_NOPAD.encode(&self.0))
    }
}

/// A collection, `F.…`. A hunt's flows end in `.H` and have the same id on every client.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(String);

impl FlowId {
    /// A new flow's id.
    #[must_use]
    pub fn from_parts(unix_seconds: u32, random: [u8; 4]) -> Self {
        Self(format!("F.{}", TimeOrderedId::from_parts(unix_seconds, random)))
    }

    /// The flow that `hunt` runs on each of its clients.
    #[must_use]
    pub fn of_hunt(hunt: &HuntId) -> Self {
        Self(format!("F.{}.H", hunt.body()))
    }

    /// The hunt that this flow belongs to.
    #[must_use]
    pub fn hunt(&self) -> Option<HuntId> {
        let body = self.0.strip_prefix("F.")?.strip_suffix(".H")?;
        format!("H.{body}").parse().ok()
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

textual!(FlowId);

impl FromStr for FlowId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let body = text.strip_prefix("F.").unwrap_or_default();
        let body = body.strip_suffix(".H").unwrap_or(body);
        let known = matches!(body, "Monitoring" | "Status");
        if is_id_body(body) && !known { Ok(Self(text.to_owned())) } else { Err(InvalidId::new("a flow id", text)) }
    }
}

/// A hunt, `H.…`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HuntId(String);

impl HuntId {
    /// A new hunt's id.
    #[must_use]
    pub fn from_parts(unix_seconds: u32, random: [u8; 4]) -> Self {
        Self(format!("H.{}", TimeOrderedId::from_parts(unix_seconds, random)))
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn body(&self) -> &str {
        self.0.get(2..).unwrap_or_default()
    }
}

textual!(HuntId);

impl FromStr for HuntId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let valid = text.strip_prefix("H.").is_some_and(is_id_body);
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId::new("a hunt id", text)) }
    }
}

/// A part of a flow that an agent treats as a session of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChildFlow {
    /// `F.…/N`: the flow was appended to or resumed after N earlier runs.
    Run(u32),
    /// `F.…/S`: an interactive session.
    Shell,
}

/// The session that a message belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionId {
    /// A collection, or a child of one.
    Flow(FlowId, Option<ChildFlow>),
    /// `F.Monitoring`: event rows.
    Monitoring,
    /// `F.Status`: questions about flows in flight.
    Status,
    /// `E:Enrol`: a certificate request.
    Enrol,
    /// `E.Foreman`: the check-in of each poll.
    Foreman,
}

impl SessionId {
    /// The collection that this session belongs to.
    #[must_use]
    pub fn flow(&self) -> Option<&FlowId> {
        match self {
            Self::Flow(flow, _) => Some(flow),
            _ => None,
        }
    }
}

impl FromStr for SessionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId::new("a session id", text);
        match text {
            "F.Monitoring" => return Ok(Self::Monitoring),
            "F.Status" => return Ok(Self::Status),
            "E:Enrol" => return Ok(Self::Enrol),
            "E.Foreman" => return Ok(Self::Foreman),
            _ => {}
        }
        match text.split_once('/') {
            None => Ok(Self::Flow(text.parse().map_err(|_| invalid())?, None)),
            Some((flow, child)) => {
                let child = match child {
                    "S" => ChildFlow::Shell,
                    run => ChildFlow::Run(run.parse().map_err(|_| invalid())?),
                };
                Ok(Self::Flow(flow.parse().map_err(|_| invalid())?, Some(child)))
            }
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow(flow, None) => write!(out, "{flow}"),
            Self::Flow(flow, Some(ChildFlow::Run(run))) => write!(out, "{flow}/{run}"),
            Self::Flow(flow, Some(ChildFlow::Shell)) => write!(out, "{flow}/S"),
            Self::Monitoring => out.write_str("F.Monitoring"),
            Self::Status => out.write_str("F.Status"),
            Self::Enrol => out.write_str("E:Enrol"),
            Self::Foreman => out.write_str("E.Foreman"),
        }
    }
}

fn is_id_body(body: &str) -> bool {
    (1..=64).contains(&body.len()) && body.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_id_is_time_and_chance_in_base32hex() {
        assert_eq!(FlowId::from_parts(1_700_000_000, [1, 2, 3, 4]).as_str(), "F.CL9V2001081G8");
    }

    #[test]
    fn a_hunts_flow_names_its_hunt() {
        let hunt = HuntId::from_parts(1_700_000_000, [1, 2, 3, 4]);
        assert_eq!(FlowId::of_hunt(&hunt).as_str(), "F.CL9V2001081G8.H");
        assert_eq!(FlowId::of_hunt(&hunt).hunt(), Some(hunt));
    }

    #[test]
    fn sessions_parse_and_print_alike() {
        for text in [
            "F.CL9V2001081G8",
            "F.CL9V2001081G8.H",
            "F.CL9V2001081G8/2",
            "F.CL9V2001081G8/S",
            "F.Monitoring",
            "F.Status",
            "E:Enrol",
            "E.Foreman",
        ] {
            assert_eq!(text.parse::<SessionId>().map(|id| id.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn sessions_carry_no_paths() {
        for bad in ["", "F.", "F.a/../b", "F.a/", "F.a/x", "F.a/-1", "F../x", "F.a.b", "X.a", "F.Monitoring/1", "F.Status.H"] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }
}
