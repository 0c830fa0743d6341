//! `interfaces()`: network interfaces and their addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use talon_acl::{MachineState, Permit};
use talon_ids::Permission;
use talon_vql::{Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::authority::permit;
use crate::host;

/// Bits of an interface's flags, as Linux numbers them.
const UP: u64 = 0x1;
const BROADCAST: u64 = 0x2;
const LOOPBACK: u64 = 0x8;
const POINT_TO_POINT: u64 = 0x10;
const RUNNING: u64 = 0x40;
const MULTICAST: u64 = 0x1000;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("interfaces", "The network interfaces of this machine.").permissions(&[Permission::MachineState]),
        interfaces,
    );
}

fn interfaces(call: Call) -> Result<Rows, CallError> {
    let permit: Permit<MachineState> = permit(call.scope())?;
    let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for interface in if_addrs::get_if_addrs()? {
        addresses.entry(interface.name.clone()).or_default().push(with_prefix(&interface.addr));
    }
    let mut names = host::state_names(&permit, Path::new("/sys/class/net"))?;
    names.sort_unstable();
    let rows: Vec<Dict> = names.iter().filter_map(|name| row(&permit, name, addresses.remove(name).unwrap_or_default())).collect();
    Ok(Rows::of(rows))
}

fn with_prefix(address: &if_addrs::IfAddr) -> String {
    let bits = match address {
        if_addrs::IfAddr::V4(v4) => u32::from(v4.netmask).count_ones(),
        if_addrs::IfAddr::V6(v6) => u128::from(v6.netmask).count_ones(),
    };
    let ip: IpAddr = address.ip();
    format!("{ip}/{bits}")
}

fn row(permit: &Permit<MachineState>, name: &str, addresses: Vec<String>) -> Option<Dict> {
    let read = |file: &str| {
        let content = host::state(permit, &Path::new("/sys/class/net").join(name).join(file)).ok()?;
        Some(String::from_utf8_lossy(&content).trim().to_owned())
    };
    let flags = read("flags").and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()).unwrap_or_default();
    let hardware = read("address").filter(|address| address.bytes().any(|byte| !matches!(byte, b'0' | b':'))).unwrap_or_default();
    let yes = |bit: u64| if flags & bit == 0 { "N" } else { "Y" };
    Some(
        Dict::new()
            .with("Name", name)
            .with("HardwareAddr", Value::Bytes(bytes_of(&hardware).into()))
            .with("MTU", read("mtu")?.parse::<i64>().ok()?)
            .with("Index", read("ifindex")?.parse::<i64>().ok()?)
            .with("Flags", flag_names(flags))
            .with("Loopback", yes(LOOPBACK))
            .with("PointToPoint", yes(POINT_TO_POINT))
            .with("Up", yes(UP))
            .with("HardwareAddrString", hardware)
            .with("Addrs", addresses.clone())
            .with("AddrsString", addresses.join(", "))
            .with("MulticastAddrs", Value::list(Vec::<Value>::new()))
            .with("MulticastAddrsString", ""),
    )
}

fn bytes_of(hardware: &str) -> Vec<u8> {
    hardware.split(':').filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

fn flag_names(flags: u64) -> String {
    let names = [
        (UP, "up"),
        (BROADCAST, "broadcast"),
        (LOOPBACK, "loopback"),
        (POINT_TO_POINT, "pointtopoint"),
        (MULTICAST, "multicast"),
        (RUNNING, "running"),
    ];
    names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_names() {
        assert_eq!(flag_names(0x49), "up|loopback|running");
        assert_eq!(flag_names(0), "");
    }

    #[test]
    fn hardware_addresses_are_bytes() {
        assert_eq!(bytes_of("02:42:ac:11:00:02"), [0x02, 0x42, 0xac, 0x11, 0x00, 0x02]);
        assert!(bytes_of("").is_empty());
    }
}
