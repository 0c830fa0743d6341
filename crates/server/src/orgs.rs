//! Organisations of a deployment: made and deleted by whoever administers all of them. What a deleted one held is purged before its id can come back.

use std::sync::{Arc, PoisonError};

use prost::Message;
use talon_audit::Receipt;
use talon_crypto::random_array;
use talon_ids::OrgId;
use talon_proto::OrgRecord;
use talon_store::{Engine, ObjectName, Scan, Space};

use crate::ServerError;
use crate::deployment::Server;
use crate::org::Org;
use crate::transaction::Pending;
use crate::users::AdminRight;

/// Keys in [`Space::Deployment`] that say that an organisation is being purged begin with this.
const DELETING: &str = "deleting/";
/// Records and objects that one transaction of a purge deletes.
const BATCH: usize = 1000;
/// The longest name of an organisation, in characters.
const MAX_NAME: usize = 256;

fn mark(org: &OrgId) -> Vec<u8> {
    format!("{DELETING}{org}").into_bytes()
}

/// Whether a right is the one over all organisations.
fn over_all(right: &AdminRight) -> Result<(), ServerError> {
    if right.is_over_all() { Ok(()) } else { Err(ServerError::Forbidden("PermissionDenied: Permission denied: [ORG_ADMIN]".into())) }
}

impl Server {
    /// Makes an organisation. An empty id or nonce is replaced by a random one.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] without the right over all organisations, [`ServerError::Invalid`] when the id or the nonce is taken.
    pub fn create_org(&self, right: &AdminRight, receipt: Receipt, record: OrgRecord) -> Result<Org, ServerError> {
        over_all(right)?;
        drop(receipt);
        self.add_org(record)
    }

    /// Deletes an organisation with everything in it. Its agents and users are cut off when this returns; its data is purged in the background,
    /// also after a restart.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] without the right over all organisations, [`ServerError::Invalid`] for the root, [`ServerError::NotFound`].
    pub fn delete_org(&self, right: &AdminRight, receipt: Receipt, org: &OrgId) -> Result<(), ServerError> {
        over_all(right)?;
        drop(receipt);
        if org.is_root() {
            return Err(ServerError::invalid("Can not remove root org."));
        }
        let leaving = self.org(org)?;
        let gone = org.clone();
        Pending::submit(self.engine(), move |txn| {
            txn.delete(&OrgId::root(), Space::Orgs, gone.as_str().as_bytes());
            txn.put(&OrgId::root(), Space::Deployment, &mark(&gone), Vec::new());
            Ok(())
        })
        .wait()?;
        let mut orgs = self.orgs_table().write().unwrap_or_else(PoisonError::into_inner);
        orgs.by_id.remove(org);
        orgs.by_nonce.retain(|_, owner| owner != org);
        drop(orgs);
        leaving.close();
        self.users().rights().changed();
        self.purge_later(org.clone());
        Ok(())
    }

    /// An id that no organisation has: `O` and four characters.
    pub(crate) fn new_org_id(&self) -> Result<OrgId, ServerError> {
        loop {
            let random: [u8; 3] = random_array(&*self.shared().rng);
            let body: String = data_encoding::BASE32HEX_NOPAD.encode(&random).chars().take(4).collect();
            let id: OrgId = format!("O{body}").parse()?;
            if self.org(&id).is_err() {
                return Ok(id);
            }
        }
    }

    pub(crate) fn add_org(&self, mut record: OrgRecord) -> Result<Org, ServerError> {
        if record.id.is_empty() {
            record.id = self.new_org_id()?.to_string();
        }
        let id: OrgId = record.id.parse()?;
        if record.nonce.is_empty() {
            let random: [u8; 16] = random_array(&*self.shared().rng);
            record.nonce = data_encoding::BASE64.encode(&random);
        }
        if record.name.is_empty() {
            record.name.clone_from(&record.id);
        }
        if record.name.chars().count() > MAX_NAME || record.name.chars().any(char::is_control) {
            return Err(ServerError::invalid("the name of an organisation is at most 256 characters, none of them control characters"));
        }
        let taken = self.orgs_state(|orgs| orgs.by_id.contains_key(&id) || orgs.by_nonce.contains_key(&record.nonce));
        if taken || id.is_root() {
            return Err(ServerError::invalid(format!("the organisation {id} exists, or another one has its nonce")));
        }
        let stored = record.clone();
        Pending::submit(self.engine(), move |txn| {
            if txn.get(&OrgId::root(), Space::Deployment, &mark(&id))?.is_some() {
                return Err(ServerError::invalid(format!(
                    "what the deleted organisation {id} held is still being purged: try again later"
                )));
            }
            if txn.get(&OrgId::root(), Space::Orgs, stored.id.as_bytes())?.is_some() {
                return Err(ServerError::invalid(format!("the organisation {id} exists")));
            }
            txn.put(&OrgId::root(), Space::Orgs, stored.id.as_bytes(), stored.encode_to_vec());
            Ok(())
        })
        .wait()?;
        self.register(record)
    }

    /// Goes on with purges that the last process did not finish.
    pub(crate) fn resume_purges(&self) -> Result<(), ServerError> {
        let scan = Scan { prefix: DELETING.into(), ..Scan::default() };
        for (key, _) in self.engine().reader().scan(&OrgId::root(), Space::Deployment, &scan)? {
            let id = String::from_utf8_lossy(key.get(DELETING.len()..).unwrap_or_default()).into_owned();
            self.purge_later(id.parse()?);
        }
        Ok(())
    }

    fn purge_later(&self, org: OrgId) {
        let engine = self.shared().engine.clone();
        let purging = std::thread::Builder::new().name("purge".into()).spawn(move || {
            if let Err(error) = purge(&engine, &org) {
                tracing::error!(%org, %error, "a deleted organisation is not purged: the next start goes on with it");
            }
        });
        if let Err(error) = purging {
            tracing::error!(%error, "no thread for purging a deleted organisation: the next start does it");
        }
    }
}

/// Deletes all records, tables and uploads of an organisation, then the mark that says that this is to be done.
fn purge(engine: &Arc<dyn Engine>, org: &OrgId) -> Result<(), ServerError> {
    for space in Space::ALL {
        loop {
            let scan = Scan { limit: BATCH, ..Scan::default() };
            let keys: Vec<_> = engine.reader().scan(org, space, &scan)?.into_iter().map(|(key, _)| key).collect();
            if keys.is_empty() {
                break;
            }
            let org = org.clone();
            Pending::submit(&**engine, move |txn| {
                keys.iter().for_each(|key| txn.delete(&org, space, key));
                Ok(())
            })
            .wait()?;
        }
    }
    let objects = engine.reader().objects(org, &ObjectName::new(Vec::<String>::new()))?;
    for batch in objects.chunks(BATCH) {
        let (org, batch) = (org.clone(), batch.to_vec());
        Pending::submit(&**engine, move |txn| {
            for object in &batch {
                txn.delete_object(&org, object)?;
            }
            Ok(())
        })
        .wait()?;
    }
    let org = org.clone();
    Pending::submit(&**engine, move |txn| {
        txn.delete(&OrgId::root(), Space::Deployment, &mark(&org));
        Ok(())
    })
    .wait()
}
