//! Clients that administrators make by hand or remove with all that was collected from them.

use talon_acl::{Administer, MachineState, Permit};
use talon_audit::{Details, Receipt};
use talon_crypto::random_array;
use talon_ids::{ClientId, FlowId, Target};
use talon_proto::{Cancel, ClientInfo, VeloMessage};
use talon_store::{ObjectName, Scan, Space, Txn};

use crate::ServerError;
use crate::clients::{add_labels, clean, index, unindex};
use crate::layout::{client_key, get, put, target_prefix};
use crate::org::{Org, lock};
use crate::session::Session;
use crate::tasks;

/// Something that belongs to a client or a flow, for those who list or delete it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belonging {
    /// What it is, such as `Result` or `Upload`.
    pub kind: &'static str,
    /// Where the API finds it.
    pub vfs_path: String,
}

impl Session {
    /// Makes a client that has no key: a stand-in for imported collections. An empty id is made up.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::Invalid`] when there is such a client.
    pub fn create_client(&self, mut info: ClientInfo) -> Result<ClientInfo, ServerError> {
        let permit = self.authority().permit::<Administer>()?;
        if info.client_id.is_empty() {
            let random: [u8; 8] = random_array(self.org().rng());
            info.client_id = format!("C.{}", hex::encode(random));
        }
        let client = self.org().parse_client(&info.client_id)?;
        info.client_id = client.to_string();
        let details = Details::new().text("client_id", client.as_str()).text("hostname", &clean(&info.hostname));
        let receipt = self.record("client_create", details)?;
        self.org().create_client(&permit, receipt, &client, info)
    }

    /// Asks an agent to end itself; whatever supervises it starts it again. A client that is not known is passed over.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn restart_agent(&self, client: &ClientId) -> Result<(), ServerError> {
        let permit = self.authority().permit::<MachineState>()?;
        self.org().own(&permit)?;
        drop(self.record("killkillkill", Details::new().text("client_id", client.as_str()))?);
        let (org, of, id) = (self.org().clone(), client.clone(), self.org().shared().task_ids.next(self.org().now_ns()));
        self.org()
            .submit(move |txn| {
                if get::<ClientInfo>(&*txn, org.id(), Space::Clients, &client_key(&of))?.is_some() {
                    let kill = Some(Cancel::default());
                    tasks::queue(txn, org.id(), &of, id, VeloMessage { kill_kill_kill: kill, urgent: true, ..VeloMessage::default() });
                }
                Ok(())
            })
            .wait()?;
        self.org().state().readers.wake(client);
        Ok(())
    }

    /// Removes a client and all that was collected from it; with `really` false, only tells what that would be.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn delete_client(&self, client: &ClientId, really: bool) -> Result<Vec<Belonging>, ServerError> {
        let permit = self.authority().permit::<Administer>()?;
        let belongings = self.org().client_belongings(client)?;
        if really {
            let details = Details::new().text("client_id", client.as_str()).text("org_id", self.org().id().as_str());
            let receipt = self.record("client_delete", details)?;
            self.org().delete_client(&permit, receipt, client)?;
            let columns = [("ClientId", client.as_str().into()), ("Principal", self.principal().as_str().into())];
            self.org().announce("Server.Internal.ClientDelete", &columns);
        }
        Ok(belongings)
    }
}

impl Org {
    fn create_client(
        &self,
        permit: &Permit<Administer>,
        receipt: Receipt,
        client: &ClientId,
        given: ClientInfo,
    ) -> Result<ClientInfo, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, client, now_ns) = (self.clone(), client.clone(), self.now_ns());
        self.submit(move |txn| {
            if get::<ClientInfo>(&*txn, org.id(), Space::Clients, &client_key(&client))?.is_some() {
                return Err(ServerError::invalid(format!("the client {client} exists")));
            }
            let labels = given.labels.clone();
            let mut info = ClientInfo {
                hostname: clean(&given.hostname),
                fqdn: clean(&given.hostname),
                system: clean(&given.system),
                labels: Vec::new(),
                mac_addresses: given.mac_addresses.iter().take(256).map(|mac| clean(mac)).collect(),
                ..given
            };
            add_labels(&mut info, &labels, now_ns);
            index(txn, org.id(), &info);
            put(txn, org.id(), Space::Clients, &client_key(&client), &info);
            Ok(info)
        })
        .wait()
    }

    /// What a client owns: its record, and its flows and events.
    ///
    /// # Errors
    /// When storage fails.
    pub fn client_belongings(&self, client: &ClientId) -> Result<Vec<Belonging>, ServerError> {
        let target = Target::Client(client.clone());
        let mut found = Vec::new();
        if self.client(client)?.is_some() {
            found.push(Belonging { kind: "ClientInfo", vfs_path: format!("/clients/{client}") });
        }
        for flow in self.flow_ids(&target)? {
            found.extend(self.flow_belongings(&target, &flow)?);
        }
        for kind in ["events", "event_logs"] {
            for name in self.reader().objects(self.id(), &ObjectName::new([kind, target.as_str()]))? {
                found.push(Belonging { kind: "MonitoringData", vfs_path: event_path(&name) });
            }
        }
        Ok(found)
    }

    /// The flows of a target, oldest first.
    pub(crate) fn flow_ids(&self, target: &Target) -> Result<Vec<FlowId>, ServerError> {
        let prefix = target_prefix(target);
        let keys = self.reader().scan(self.id(), Space::Flows, &Scan { prefix: prefix.clone(), ..Scan::default() })?;
        let text = |key: &[u8]| String::from_utf8_lossy(key.get(prefix.len()..).unwrap_or_default()).parse().ok();
        Ok(keys.iter().filter_map(|(key, _)| text(key)).collect())
    }

    /// The record goes first, so that nothing more is taken from the client; then what it has collected, flow by flow.
    fn delete_client(&self, permit: &Permit<Administer>, receipt: Receipt, client: &ClientId) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        let target = Target::Client(client.clone());
        lock(&self.state().removed).insert(client.clone());
        let (org, of) = (self.clone(), client.clone());
        self.submit(move |txn| {
            let key = client_key(&of);
            if let Some(info) = get::<ClientInfo>(&*txn, org.id(), Space::Clients, &key)? {
                unindex(txn, org.id(), &info);
            }
            for space in [Space::Clients, Space::ClientKeys, Space::ClientMetadata] {
                txn.delete(org.id(), space, &key);
            }
            delete_prefix(txn, &org, Space::Tasks, &target_prefix(&Target::Client(of.clone())))
        })
        .wait()?;
        for flow in self.flow_ids(&target)? {
            self.remove_flow(&target, &flow).wait()?;
        }
        for kind in ["events", "event_logs"] {
            let (org, prefix) = (self.clone(), ObjectName::new([kind, target.as_str()]));
            self.submit(move |txn| {
                for object in txn.objects(org.id(), &prefix)? {
                    txn.delete_object(org.id(), &object)?;
                }
                Ok(())
            })
            .wait()?;
        }
        let org = self.clone();
        self.submit(move |txn| delete_prefix(txn, &org, Space::FlowStats, &target_prefix(&target))).wait()
    }

    /// Whether the client was removed while this process runs; its session is void until it enrols again.
    pub(crate) fn was_removed(&self, client: &ClientId) -> bool {
        lock(&self.state().removed).contains(client)
    }
}

/// The path of a day table.
pub(crate) fn event_path(name: &ObjectName) -> String {
    let parts = name.components();
    let [kind, target, artifact, source, day] = parts else { return format!("/{}", parts.join("/")) };
    let folder = if kind == "events" { "monitoring" } else { "monitoring_logs" };
    let source = source.trim_start_matches('@');
    let table = if source.is_empty() { artifact.clone() } else { format!("{artifact}/{source}") };
    if target == Target::Server.as_str() {
        let folder = if kind == "events" { "server_artifacts" } else { "server_artifact_logs" };
        return format!("/{folder}/{table}/{day}.json");
    }
    format!("/clients/{target}/{folder}/{table}/{day}.json")
}

fn delete_prefix(txn: &mut dyn Txn, org: &Org, space: Space, prefix: &[u8]) -> Result<(), ServerError> {
    for (key, _) in txn.scan(org.id(), space, &Scan { prefix: prefix.to_vec(), ..Scan::default() })? {
        txn.delete(org.id(), space, &key);
    }
    Ok(())
}
