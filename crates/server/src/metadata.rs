//! Metadata: named texts that administrators keep of a client, or of the server itself.

use std::collections::BTreeMap;

use talon_acl::{Administer, CollectClient, LabelClient, Permit};
use talon_audit::{Details, Receipt};
use talon_ids::Target;
use talon_proto::{ClientMetadata, ClientMetadataItem};
use talon_store::Space;

use crate::ServerError;
use crate::layout::{get, put};
use crate::org::Org;
use crate::session::Session;

/// More keys than anybody keeps of one client.
const MAX_KEYS: usize = 1_000;
/// The longest key, and the longest text, in bytes.
const MAX_KEY: usize = 256;
const MAX_TEXT: usize = 64 * 1024;

/// What allows a change of metadata: which permission is needed depends on the way in (`spec/03` §12, §13).
pub enum MetadataPermit {
    /// Over the API.
    Label(Permit<LabelClient>),
    /// In a query, for a client.
    Collect(Permit<CollectClient>),
    /// In a query, for the server.
    Administer(Permit<Administer>),
}

impl Session {
    /// Changes metadata: `None` takes a key away.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] when a key or text is too long or there are too many, [`ServerError::NotFound`] for an unknown client.
    pub fn set_metadata(
        &self,
        permit: &MetadataPermit,
        target: &Target,
        changes: BTreeMap<String, Option<String>>,
    ) -> Result<(), ServerError> {
        if let Target::Client(client) = target
            && self.org().client(client)?.is_none()
        {
            return Err(ServerError::not_found("Client", client));
        }
        let details = Details::new().list("updated_keys", changes.keys().map(String::as_str)).text("client_id", target.as_str());
        let receipt = self.record("SetMetadata", details)?;
        self.org().set_metadata(permit, receipt, target, changes)
    }

    /// What allows this principal to change metadata in a query.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn metadata_permit(&self, target: &Target) -> Result<MetadataPermit, ServerError> {
        Ok(match target {
            Target::Server => MetadataPermit::Administer(self.authority().permit()?),
            Target::Client(_) => MetadataPermit::Collect(self.authority().permit()?),
        })
    }
}

impl Org {
    /// The metadata of a client or of the server, by key.
    ///
    /// # Errors
    /// When storage fails.
    pub fn metadata(&self, target: &Target) -> Result<BTreeMap<String, String>, ServerError> {
        let stored: Option<ClientMetadata> = get(self.reader(), self.id(), Space::ClientMetadata, target.as_str().as_bytes())?;
        Ok(stored.unwrap_or_default().items.into_iter().map(|item| (item.key, item.value)).collect())
    }

    fn set_metadata(
        &self,
        permit: &MetadataPermit,
        receipt: Receipt,
        target: &Target,
        changes: BTreeMap<String, Option<String>>,
    ) -> Result<(), ServerError> {
        match permit {
            MetadataPermit::Label(permit) => self.own(permit)?,
            MetadataPermit::Collect(permit) => self.own(permit)?,
            MetadataPermit::Administer(permit) => self.own(permit)?,
        }
        drop(receipt);
        let too_long = |(key, text): (&String, &Option<String>)| {
            key.is_empty() || key.len() > MAX_KEY || text.as_ref().is_some_and(|text| text.len() > MAX_TEXT)
        };
        if changes.iter().any(too_long) {
            return Err(ServerError::invalid(format!("metadata keys have 1 to {MAX_KEY} bytes, texts at most {MAX_TEXT}")));
        }
        let (org, target) = (self.clone(), target.clone());
        let of = target.clone();
        let changed = self.submit(move |txn| {
            let key = of.as_str().as_bytes();
            let stored: ClientMetadata = get(&*txn, org.id(), Space::ClientMetadata, key)?.unwrap_or_default();
            let before: BTreeMap<String, String> = stored.items.into_iter().map(|item| (item.key, item.value)).collect();
            let mut kept = before.clone();
            for (key, text) in changes {
                match text {
                    Some(text) => drop(kept.insert(key, text)),
                    None => drop(kept.remove(&key)),
                }
            }
            if kept.len() > MAX_KEYS {
                return Err(ServerError::invalid(format!("more than {MAX_KEYS} metadata keys")));
            }
            let changed = kept != before;
            let items = kept.into_iter().map(|(key, value)| ClientMetadataItem { key, value }).collect();
            put(txn, org.id(), Space::ClientMetadata, key, &ClientMetadata { items, client_id: of.to_string() });
            Ok(changed)
        });
        if changed.wait()? {
            self.announce("Server.Internal.MetadataModifications", &[("client_id", target.as_str().into())]);
            if target == Target::Server {
                self.recompile_event_table()?;
                self.recompile_server_table()?;
            }
        }
        Ok(())
    }
}
