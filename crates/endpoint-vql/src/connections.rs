//! Open sockets of this machine: `netstat()` and `connections()`, from the kernel's tables.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use talon_acl::{MachineState, Permit};
use talon_ids::Permission;
use talon_vql::{Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::authority::permit;
use crate::host;

/// Tables with their address family and socket type, as the system's headers number them.
const TABLES: &[(&str, Family, Kind)] = &[
    ("/proc/net/tcp", Family::V4, Kind::Stream),
    ("/proc/net/tcp6", Family::V6, Kind::Stream),
    ("/proc/net/udp", Family::V4, Kind::Datagram),
    ("/proc/net/udp6", Family::V6, Kind::Datagram),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Datagram,
}

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("netstat", "The sockets of this machine, with the processes that hold them.")
            .permissions(&[Permission::MachineState]),
        |call| {
            let sockets = sockets(&call)?;
            Ok(Rows::of(sockets.into_iter().map(|(socket, owner)| socket.netstat(owner))))
        },
    );
    registry.plugin(
        Signature::plugin("connections", "The TCP connections of this machine that lead somewhere, with the processes that hold them.")
            .permissions(&[Permission::MachineState]),
        |call| {
            let sockets = sockets(&call)?.into_iter().filter(|(socket, _)| socket.kind == Kind::Stream && socket.remote.1 != 0);
            Ok(Rows::of(sockets.map(|(socket, owner)| socket.connection(owner)).collect::<Vec<_>>()))
        },
    );
}

/// Who holds a socket.
#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    pid: i64,
    fd: i64,
}

/// A line of a table.
#[derive(Debug, PartialEq)]
struct Socket {
    family: Family,
    kind: Kind,
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: u8,
    uid: i64,
    inode: u64,
}

fn sockets(call: &Call) -> Result<Vec<(Socket, Owner)>, CallError> {
    let permit: Permit<MachineState> = permit(call.scope())?;
    let owners = owners(&permit, call)?;
    let mut found = Vec::new();
    for (table, family, kind) in TABLES {
        // A kernel without IPv6 has no tables for it.
        let Ok(text) = host::state(&permit, Path::new(table)) else { continue };
        for line in String::from_utf8_lossy(&text).lines().skip(1) {
            if let Some(socket) = Socket::parse(line, *family, *kind) {
                let owner = owners.get(&socket.inode).copied().unwrap_or_default();
                found.push((socket, owner));
            }
        }
    }
    Ok(found)
}

/// The first holder of each socket.
fn owners(permit: &Permit<MachineState>, call: &Call) -> Result<HashMap<u64, Owner>, CallError> {
    let mut owners = HashMap::new();
    for pid in host::state_names(permit, Path::new("/proc"))?.iter().filter_map(|name| name.parse::<i64>().ok()) {
        if call.scope().stopped() {
            return Err(CallError::Silent);
        }
        let folder = PathBuf::from(format!("/proc/{pid}/fd"));
        let Ok(descriptors) = host::state_names(permit, &folder) else { continue };
        for name in descriptors {
            let Ok(target) = host::state_link(permit, &folder.join(&name)) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).and_then(|inode| inode.parse().ok());
            if let Some(inode) = inode {
                owners.entry(inode).or_insert(Owner { pid, fd: name.parse().unwrap_or(0) });
            }
        }
    }
    Ok(owners)
}

impl Socket {
    fn parse(line: &str, family: Family, kind: Kind) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some(Self {
            family,
            kind,
            local: endpoint(fields.get(1)?)?,
            remote: endpoint(fields.get(2)?)?,
            state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    }

    fn status(&self) -> &'static str {
        match (self.kind, self.state) {
            (Kind::Datagram, _) => "",
            (_, 1) => "ESTAB",
            (_, 2) => "SYN_SENT",
            (_, 3) => "SYN_RECV",
            (_, 4) => "FIN_WAIT1",
            (_, 5) => "FIN_WAIT2",
            (_, 6) => "TIME_WAIT",
            (_, 7) => "CLOSE",
            (_, 8) => "CLOSE_WAIT",
            (_, 9) => "LAST_ACK",
            (_, 10) => "LISTEN",
            (_, 11) => "CLOSING",
            _ => "NONE",
        }
    }

    fn names(&self) -> (&'static str, &'static str) {
        let family = if self.family == Family::V4 { "IPv4" } else { "IPv6" };
        (family, if self.kind == Kind::Stream { "TCP" } else { "UDP" })
    }

    fn netstat(&self, owner: Owner) -> Dict {
        let (family, kind) = self.names();
        let address = |(ip, port): (IpAddr, u16)| Dict::new().with("IP", ip.to_string()).with("Port", i64::from(port));
        Dict::new()
            .with("Fd", owner.fd)
            .with("Family", family)
            .with("Type", kind)
            .with("Laddr", address(self.local))
            .with("Raddr", address(self.remote))
            .with("Status", self.status())
            .with("Pid", owner.pid)
            .with("Uid", self.uid)
    }

    fn connection(&self, owner: Owner) -> Dict {
        let (family, _) = self.names();
        Dict::new()
            .with("Pid", owner.pid)
            .with("Family", family)
            .with("Status", self.status())
            .with("LocalAddr", self.local.0.to_string())
            .with("LocalPort", i64::from(self.local.1))
            .with("RemoteAddr", self.remote.0.to_string())
            .with("RemotePort", i64::from(self.remote.1))
            .with("Uid", Value::from(self.uid))
            .with("Inode", self.inode)
    }
}

/// `0100007F:0016`: an address in words of the machine's byte order, and a port.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len())
        .step_by(8)
        .map(|at| address.get(at..at.checked_add(8)?).and_then(|word| u32::from_str_radix(word, 16).ok()).map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let address = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, Query, parse_statement};

    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        if cfg!(target_endian = "little") {
            assert_eq!(endpoint("0100007F:0016"), Some(("127.0.0.1".parse().unwrap(), 22)));
            assert_eq!(endpoint("00000000000000000000000001000000:1F90"), Some(("::1".parse().unwrap(), 8080)));
        }
        for wrong in ["", "01:1", "0100007F", "0100007F:zz", "€€€€€€€€:1"] {
            assert_eq!(endpoint(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn our_own_sockets_are_among_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        let count = |vql: &str| Query::new(&scope, &parse_statement(vql).unwrap()).count();
        assert_eq!(
            count(&format!("SELECT * FROM netstat() WHERE Laddr.Port = {port} AND Status = 'LISTEN' AND Pid = getpid() AND Type = 'TCP'")),
            1
        );
        assert_eq!(count(&format!("SELECT * FROM connections() WHERE RemotePort = {port} AND Status = 'ESTAB' AND Pid = getpid()")), 1);
    }
}
