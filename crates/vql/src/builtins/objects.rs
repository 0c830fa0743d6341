//! Values with behaviour: versions, addresses, caches; and `batch()`.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;

use crate::args;
use crate::call::Call;
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::ops::truth;
use crate::registry::Registry;
use crate::rows::Rows;
use crate::signature::{Arg, ArgType, Signature};
use crate::value::{List, Object, Value};

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("semver", "Reads a version, which then compares as versions do.")
            .args(args![Arg::required("version", ArgType::String, "The version.")])
            .version(1),
        |call| Ok(Version::parse(&call.string("version")).map_or(Value::Null, |version| Value::Object(Arc::new(version)))),
    );
    registry.function(
        Signature::function("ip", "Reads an IP address.").version(2).args(args![
            Arg::optional("parse", ArgType::String, "The address as text."),
            Arg::optional("netaddr4_le", ArgType::Int, "An IPv4 address as a little-endian number."),
            Arg::optional("netaddr4_be", ArgType::Int, "An IPv4 address as a big-endian number."),
        ]),
        ip,
    );
    registry.function(
        Signature::function("cidr_contains", "Whether an address is in any of the ranges.").args(args![
            Arg::required("ip", ArgType::String, "The address."),
            Arg::required("ranges", ArgType::Strings, "Ranges such as 10.0.0.0/8."),
        ]),
        |call| {
            let address: IpAddr = call.string("ip").parse().map_err(|_| CallError::from("not an IP address"))?;
            Ok(Value::Bool(call.strings("ranges").iter().any(|range| in_range(address, range))))
        },
    );
    registry.function(
        Signature::function("lru", "A cache that forgets what was set longest ago: get() reads it, set() writes.")
            .args(args![Arg::optional("size", ArgType::Int, "How many entries it keeps; 1000 unless given."),]),
        |call| {
            let size = call.opt_int("size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(1000);
            Ok(Value::Object(Arc::new(Recent { size: size.min(MAX_CACHE), entries: Mutex::default() })))
        },
    );
    registry.plugin(
        Signature::plugin("batch", "Gives rows in groups.")
            .args(args![
                Arg::optional("batch_size", ArgType::Int, "Rows in a group; 1000 unless given."),
                Arg::optional("batch_func", ArgType::Lambda, "Ends a group after a row for which this is true."),
                Arg::required("query", ArgType::Query, "Where rows come from."),
                Arg::optional("timeout", ArgType::UInt, "Seconds after which a group ends."),
            ])
            .version(2),
        batch,
    );
}

/// The most entries of one cache.
const MAX_CACHE: usize = 1_000_000;

/// A version by the rules of semver.org; missing parts are 0.
struct Version {
    numbers: [u64; 3],
    prerelease: String,
    metadata: String,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches(['v', 'V']);
        let (text, metadata) = text.split_once('+').unwrap_or((text, ""));
        let (core, prerelease) = text.split_once('-').unwrap_or((text, ""));
        let mut numbers = [0; 3];
        let mut parts = core.split('.');
        for slot in &mut numbers {
            let Some(part) = parts.next() else { break };
            *slot = part.parse().ok()?;
        }
        parts.next().is_none().then(|| Self { numbers, prerelease: prerelease.to_owned(), metadata: metadata.to_owned() })
    }

    fn text(&self) -> String {
        let [major, minor, patch] = self.numbers;
        let pre = if self.prerelease.is_empty() { String::new() } else { format!("-{}", self.prerelease) };
        let meta = if self.metadata.is_empty() { String::new() } else { format!("+{}", self.metadata) };
        format!("{major}.{minor}.{patch}{pre}{meta}")
    }

    fn order(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.prerelease.is_empty(), other.prerelease.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => order_prereleases(&self.prerelease, &other.prerelease),
        })
    }

    fn to_dict(&self) -> Dict {
        let [major, minor, patch] = self.numbers;
        let mut dict = Dict::new().with("Major", major).with("Minor", minor).with("Patch", patch);
        if !self.prerelease.is_empty() {
            dict.set("Prerelease", self.prerelease.as_str());
        }
        if !self.metadata.is_empty() {
            dict.set("Metadata", self.metadata.as_str());
        }
        dict.with("Version", self.text())
    }
}

fn order_prereleases(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(left), Some(right)) => match (left.parse::<u64>(), right.parse::<u64>()) {
                (Ok(left), Ok(right)) => left.cmp(&right),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => left.cmp(right),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

impl Object for Version {
    fn type_name(&self) -> &'static str {
        "semver"
    }

    fn member(&self, name: &str) -> Option<Value> {
        self.to_dict().get(name).cloned()
    }

    fn to_value(&self) -> Value {
        self.to_dict().into()
    }

    fn is_true(&self) -> bool {
        true
    }

    fn compare(&self, other: &Value) -> Option<Ordering> {
        match other {
            Value::Object(object) => object.as_any().downcast_ref::<Self>().map(|other| self.order(other)),
            Value::Str(text) => Self::parse(&text.to_str()).map(|other| self.order(&other)),
            _ => None,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Address(IpAddr);

impl Object for Address {
    fn type_name(&self) -> &'static str {
        "net.IP"
    }

    fn member(&self, name: &str) -> Option<Value> {
        let global = |v4: fn(&std::net::Ipv4Addr) -> bool, v6: fn(&std::net::Ipv6Addr) -> bool| match &self.0 {
            IpAddr::V4(address) => v4(address),
            IpAddr::V6(address) => v6(address),
        };
        Some(match name {
            "String" => Value::from(self.0.to_string()),
            "IsPrivate" => Value::Bool(global(std::net::Ipv4Addr::is_private, std::net::Ipv6Addr::is_unique_local)),
            "IsLoopback" => Value::Bool(self.0.is_loopback()),
            "IsMulticast" => Value::Bool(self.0.is_multicast()),
            "IsUnspecified" => Value::Bool(self.0.is_unspecified()),
            "IsLinkLocalUnicast" => Value::Bool(global(std::net::Ipv4Addr::is_link_local, std::net::Ipv6Addr::is_unicast_link_local)),
            _ => return None,
        })
    }

    fn to_value(&self) -> Value {
        Value::from(self.0.to_string())
    }

    fn is_true(&self) -> bool {
        true
    }

    fn compare(&self, other: &Value) -> Option<Ordering> {
        match other {
            Value::Object(object) => object.as_any().downcast_ref::<Self>().map(|other| self.0.cmp(&other.0)),
            Value::Str(text) => text.to_str().parse::<IpAddr>().ok().map(|other| self.0.cmp(&other)),
            _ => None,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn ip(call: Call) -> Result<Value, CallError> {
    let number = |name| call.opt_int(name).map(|number| (number as u32).to_be_bytes());
    let address = if let Some(mut bytes) = number("netaddr4_le") {
        bytes.reverse();
        Some(IpAddr::from(bytes))
    } else if let Some(bytes) = number("netaddr4_be") {
        Some(IpAddr::from(bytes))
    } else {
        call.string("parse").parse::<IpAddr>().ok().map(|address| address.to_canonical())
    };
    Ok(address.map_or(Value::Null, |address| Value::Object(Arc::new(Address(address)))))
}

fn in_range(address: IpAddr, range: &str) -> bool {
    let Some((base, bits)) = range.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let (left, right, width) = match (address.to_canonical(), base.to_canonical()) {
        (IpAddr::V4(left), IpAddr::V4(right)) => (u128::from(left.to_bits()), u128::from(right.to_bits()), 32),
        (IpAddr::V6(left), IpAddr::V6(right)) => (left.to_bits(), right.to_bits(), 128),
        _ => return false,
    };
    let shift = u32::saturating_sub(width, bits);
    bits <= width && (shift >= 128 || left >> shift == right >> shift)
}

/// The entries, oldest first.
struct Recent {
    size: usize,
    entries: Mutex<IndexMap<Key, Value>>,
}

impl Object for Recent {
    fn type_name(&self) -> &'static str {
        "lru"
    }

    fn member(&self, name: &str) -> Option<Value> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn set_member(&self, name: Key, value: Value) -> bool {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.shift_remove(&name);
        entries.insert(name, value);
        if entries.len() > self.size {
            entries.shift_remove_index(0);
        }
        true
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn batch(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let size = call.opt_int("batch_size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(1000);
    let ends = call.lambda("batch_func");
    let limit = call.opt_uint("timeout").filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let mut rows = call.query("query").map_or_else(Rows::none, |query| query.open(&scope));
    let mut ready: VecDeque<Value> = VecDeque::new();
    let mut deadline = limit.map(|limit| scope.elapsed().saturating_add(limit));
    Ok(Rows::from_fn(move || {
        let mut held = scope.hold();
        let mut group: List = ready.drain(..).collect();
        loop {
            if scope.stopped() {
                return None;
            }
            let row = match rows.next() {
                Some(Ok(row)) => row,
                Some(Err(error)) => return Some(Err(error)),
                None if group.is_empty() => return None,
                None => return Some(Ok(Dict::new().with("rows", group).into())),
            };
            if !held.add(row.weight()) {
                return None;
            }
            let late = deadline.is_some_and(|deadline| scope.elapsed() >= deadline);
            if late {
                deadline = limit.map(|limit| scope.elapsed().saturating_add(limit));
                if !group.is_empty() {
                    ready.push_back(row);
                    return Some(Ok(Dict::new().with("rows", group).into()));
                }
            }
            let last = match &ends {
                Some(ends) => truth(&ends.call(&scope, std::slice::from_ref(&row)), &scope),
                None => group.len().saturating_add(1) >= size,
            };
            group.push(row);
            if last {
                deadline = limit.map(|limit| scope.elapsed().saturating_add(limit));
                return Some(Ok(Dict::new().with("rows", group).into()));
            }
        }
    }))
}
