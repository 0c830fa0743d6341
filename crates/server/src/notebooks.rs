//! Notebooks: cells of queries and text that their users share; each calculation runs with the rights of whoever asked for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex};

use talon_acl::{Administer, CollectServer, EditNotebooks, Permit};
use talon_audit::{Details, Receipt};
use talon_crypto::random_array;
use talon_ids::UserName;
use talon_proto::{Env, NotebookCell, NotebookCellRequest, NotebookMetadata};
use talon_store::{ObjectName, Scan, Space};
use talon_vql::CancelToken;

use crate::ServerError;
use crate::layout::{decode, get, put};
use crate::org::{Org, lock};
use crate::session::Session;

mod calculate;
mod initial;
mod render;

/// Versions of a cell that are kept.
const VERSIONS: usize = 5;
/// Cells of one notebook.
const MAX_CELLS: usize = 1_000;
/// The longest input of a cell, in bytes.
const MAX_INPUT: usize = 4 << 20;
/// The largest attachment, in bytes.
const MAX_ATTACHMENT: usize = 64 << 20;

/// Calculations that run now, by notebook, cell and version, and the bell that rings when one has ended.
#[derive(Default)]
pub(crate) struct Calculations {
    running: Mutex<HashMap<(String, String), (String, CancelToken)>>,
    ended: Condvar,
}

impl Calculations {
    /// Stops them all.
    pub(crate) fn stop(&self) {
        lock(&self.running).values().for_each(|(_, cancel)| cancel.cancel("the server is closing"));
    }
}

/// What allows a change of a notebook: over the API and in queries it is not the same permission (`spec/03` §12, §13).
pub enum NotebookPermit {
    /// Over the API.
    Edit(Permit<EditNotebooks>),
    /// In a query.
    Query(Permit<CollectServer>),
}

impl NotebookPermit {
    fn check(&self, org: &Org) -> Result<(), ServerError> {
        match self {
            Self::Edit(permit) => org.own(permit),
            Self::Query(permit) => org.own(permit),
        }
    }

    fn operation(&self, api: &'static str, query: &'static str) -> &'static str {
        match self {
            Self::Edit(_) => api,
            Self::Query(_) => query,
        }
    }
}

/// A notebook's id: letters, digits, dots and dashes, so that it is never a path.
fn check_id(id: &str, prefix: &str) -> Result<(), ServerError> {
    let sound = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_');
    if id.starts_with(prefix) && id.len() > prefix.len() && id.len() <= 200 && id.chars().all(sound) && !id.contains("..") {
        return Ok(());
    }
    Err(ServerError::not_found("Notebook", id))
}

fn notebook_key(id: &str) -> Vec<u8> {
    id.as_bytes().to_vec()
}

fn version_key(id: &str, cell: &str, version: &str) -> Vec<u8> {
    [id.as_bytes(), &[0], cell.as_bytes(), &[0], version.as_bytes()].concat()
}

/// The table that the query with this number, from 1, of a cell's version gave.
#[must_use]
pub fn cell_table(notebook: &str, cell: &str, version: &str, number: u64) -> ObjectName {
    ObjectName::new(["notebooks", notebook, cell, version, &format!("query_{number}")])
}

/// Where an attachment of a notebook is kept.
#[must_use]
pub fn attachment(notebook: &str, name: &str) -> ObjectName {
    ObjectName::new(["notebooks", notebook, "attach", name])
}

/// Whether `user` may see and change a notebook: it is public, their own, or shared with them. Nobody else, administrators included.
#[must_use]
pub fn is_shared(notebook: &NotebookMetadata, user: &UserName) -> bool {
    notebook.public || notebook.creator == user.as_str() || notebook.collaborators.iter().any(|name| name == user.as_str())
}

impl Session {
    /// What allows this principal to change notebooks over the API.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn notebook_editor(&self) -> Result<NotebookPermit, ServerError> {
        Ok(NotebookPermit::Edit(self.authority().permit()?))
    }

    /// What allows this principal to change notebooks in a query.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn notebook_in_query(&self) -> Result<NotebookPermit, ServerError> {
        Ok(NotebookPermit::Query(self.authority().permit()?))
    }

    /// A notebook that is shared with this principal.
    ///
    /// # Errors
    /// [`ServerError::NotFound`]; [`ServerError::Forbidden`] when it is not shared, which is put on record.
    pub fn notebook(&self, id: &str) -> Result<NotebookMetadata, ServerError> {
        let notebook = self.org().notebook(id)?.ok_or_else(|| ServerError::not_found("Notebook", id))?;
        if is_shared(&notebook, self.principal()) {
            return Ok(notebook);
        }
        let details = Details::new().text("action", "Access Denied").text("notebook", id);
        self.org().record_denial(self.principal().as_str(), "notebook not shared.", details)?;
        Err(ServerError::NotShared)
    }

    /// The notebooks that are shared with this principal, newest first; with `all` those of everybody, which takes an administrator.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn notebooks(&self, all: bool) -> Result<Vec<NotebookMetadata>, ServerError> {
        if all {
            self.authority().permit::<Administer>()?;
        }
        let mut found = self.org().all_notebooks()?;
        found.retain(|notebook| all || is_shared(notebook, self.principal()));
        Ok(found)
    }

    /// Makes a notebook with its first cells, which are calculated.
    ///
    /// # Errors
    /// [`ServerError::Invalid`], and what the artifacts that it names fail with.
    pub fn new_notebook(&self, permit: &NotebookPermit, wish: NotebookMetadata) -> Result<NotebookMetadata, ServerError> {
        let (mut notebook, cells) = self.first_state(wish)?;
        let now_s = self.org().now_us() / 1_000_000;
        notebook.creator = self.principal().to_string();
        notebook.created_time = signed(now_s);
        notebook.modified_time = signed(now_s);
        let details = Details::new()
            .text("notebook_id", &notebook.notebook_id)
            .text("name", &notebook.name)
            .flag("public", notebook.public)
            .list("collaborators", &notebook.collaborators)
            .list("artifacts", &notebook.artifacts);
        let receipt = self.record(permit.operation("CreateNotebook", "notebook_create"), details)?;
        self.org().put_notebook(permit, receipt, notebook.clone(), true)?;
        for cell in cells {
            let request = NotebookCellRequest { notebook_id: notebook.notebook_id.clone(), ..cell };
            self.add_cell(permit, request)?;
        }
        self.notebook(&notebook.notebook_id)
    }

    /// Changes name, description, sharing of a notebook.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] when it is not shared with the principal.
    pub fn update_notebook(&self, permit: &NotebookPermit, wish: &NotebookMetadata) -> Result<NotebookMetadata, ServerError> {
        let mut notebook = self.notebook(&wish.notebook_id)?;
        if !wish.name.is_empty() {
            notebook.name.clone_from(&wish.name);
        }
        notebook.description.clone_from(&wish.description);
        notebook.collaborators.clone_from(&wish.collaborators);
        notebook.public = wish.public;
        notebook.modified_time = signed(self.org().now_us() / 1_000_000);
        let details = Details::new()
            .text("notebook_id", &notebook.notebook_id)
            .text("description", &notebook.description)
            .flag("public", notebook.public)
            .list("collaborators", &notebook.collaborators);
        let receipt = self.record(permit.operation("UpdateNotebook", "notebook_update"), details)?;
        self.org().put_notebook(permit, receipt, notebook.clone(), false)?;
        Ok(notebook)
    }

    /// Deletes a notebook with its cells and their results.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Forbidden`] when it is not shared with the principal.
    pub fn delete_notebook(&self, permit: &NotebookPermit, id: &str) -> Result<(), ServerError> {
        self.notebook(id)?;
        let receipt = self.record("DeleteNotebook", Details::new().text("notebook_id", id))?;
        permit.check(self.org())?;
        self.org().remove_notebook(receipt, id)
    }

    /// Deletes a notebook as an administrator, whoever it belongs to.
    ///
    /// # Errors
    /// [`ServerError::Denied`].
    pub fn delete_any_notebook(&self, id: &str) -> Result<(), ServerError> {
        let permit = self.authority().permit::<Administer>()?;
        let receipt = self.record("notebook_delete", Details::new().text("notebook_id", id))?;
        self.org().own(&permit)?;
        self.org().remove_notebook(receipt, id)
    }

    /// One cell in one of its versions, the present one when `version` is empty.
    ///
    /// # Errors
    /// As [`Session::notebook`].
    pub fn notebook_cell(&self, notebook: &str, cell: &str, version: &str) -> Result<NotebookCell, ServerError> {
        let metadata = self.notebook(notebook)?;
        self.org().cell(&metadata, cell, version)
    }

    /// Adds a cell behind the one that the request names, or at the end, and calculates it.
    ///
    /// # Errors
    /// As [`Session::notebook`]; [`ServerError::Invalid`] for an unknown type of cell.
    pub fn add_cell(&self, permit: &NotebookPermit, request: NotebookCellRequest) -> Result<NotebookMetadata, ServerError> {
        let mut notebook = self.notebook(&request.notebook_id)?;
        check_cell(&request)?;
        if notebook.cell_metadata.len() >= MAX_CELLS {
            return Err(ServerError::invalid(format!("a notebook has at most {MAX_CELLS} cells")));
        }
        let cell = self.org().cell_id();
        let summary = NotebookCell {
            cell_id: cell.clone(),
            notebook_id: notebook.notebook_id.clone(),
            r#type: request.r#type.clone(),
            timestamp: signed(self.org().now_ns()),
            ..NotebookCell::default()
        };
        let behind = notebook.cell_metadata.iter().position(|other| other.cell_id == request.cell_id);
        let at = behind.map_or(notebook.cell_metadata.len(), |at| at.saturating_add(1));
        notebook.cell_metadata.insert(at, summary);
        notebook.latest_cell_id.clone_from(&cell);
        let receipt = self.cell_receipt(permit, &notebook.notebook_id, &cell, &request.input)?;
        self.org().put_notebook(permit, receipt, notebook, false)?;
        self.calculate_cell(&NotebookCellRequest { cell_id: cell, ..request.clone() })?;
        self.notebook(&request.notebook_id)
    }

    /// Gives a cell a new version and calculates it. Waits a moment for the end, or until it comes when the request says so.
    ///
    /// # Errors
    /// As [`Session::add_cell`].
    pub fn update_cell(&self, permit: &NotebookPermit, request: &NotebookCellRequest) -> Result<NotebookCell, ServerError> {
        let notebook = self.notebook(&request.notebook_id)?;
        check_cell(request)?;
        if !notebook.cell_metadata.iter().any(|cell| cell.cell_id == request.cell_id) {
            return Err(ServerError::not_found("Notebook cell", &request.cell_id));
        }
        permit.check(self.org())?;
        drop(self.cell_receipt(permit, &request.notebook_id, &request.cell_id, &request.input)?);
        self.calculate_cell(request)
    }

    /// Takes a cell out of its notebook.
    ///
    /// # Errors
    /// As [`Session::notebook`].
    pub fn remove_cell(&self, permit: &NotebookPermit, notebook: &str, cell: &str) -> Result<NotebookMetadata, ServerError> {
        let mut metadata = self.notebook(notebook)?;
        self.org().cancel_calculation(notebook, cell);
        metadata.cell_metadata.retain(|other| other.cell_id != cell);
        let receipt = self.cell_receipt(permit, notebook, cell, "")?;
        self.org().put_notebook(permit, receipt, metadata.clone(), false)?;
        Ok(metadata)
    }

    /// Makes an older version of a cell the present one.
    ///
    /// # Errors
    /// As [`Session::notebook`]; [`ServerError::Invalid`] when there is no such version.
    pub fn revert_cell(&self, permit: &NotebookPermit, notebook: &str, cell: &str, version: &str) -> Result<NotebookCell, ServerError> {
        let mut metadata = self.notebook(notebook)?;
        let summary = metadata.cell_metadata.iter_mut().find(|other| other.cell_id == cell);
        let known = summary.filter(|summary| summary.available_versions.iter().any(|known| known == version));
        let Some(summary) = known else { return Err(ServerError::invalid("Version not found")) };
        version.clone_into(&mut summary.current_version);
        let receipt = self.cell_receipt(permit, notebook, cell, "")?;
        self.org().put_notebook(permit, receipt, metadata.clone(), false)?;
        self.org().cell(&metadata, cell, version)
    }

    /// Stops the calculation of a cell, if one runs.
    ///
    /// # Errors
    /// As [`Session::notebook`].
    pub fn cancel_cell(&self, permit: &NotebookPermit, notebook: &str, cell: &str) -> Result<(), ServerError> {
        self.notebook(notebook)?;
        permit.check(self.org())?;
        drop(self.record("CancelNotebookCell", Details::new().text("notebook_id", notebook).text("cell_id", cell))?);
        self.org().cancel_calculation(notebook, cell);
        Ok(())
    }

    /// Attaches a file to a notebook; gives its name, which no other has.
    ///
    /// # Errors
    /// As [`Session::notebook`]; [`ServerError::Invalid`] when the file is too large.
    pub fn attach(&self, permit: &NotebookPermit, notebook: &str, name: &str, content: &[u8]) -> Result<String, ServerError> {
        self.notebook(notebook)?;
        permit.check(self.org())?;
        if content.len() > MAX_ATTACHMENT {
            return Err(ServerError::invalid(format!("an attachment has at most {MAX_ATTACHMENT} bytes")));
        }
        let plain: String =
            name.chars().filter(|&character| character.is_ascii_alphanumeric() || "._- ".contains(character)).take(100).collect();
        let stored = format!("NA.{}-{plain}", self.org().short_id());
        let details = Details::new().text("notebook_id", notebook).text("filename", &stored);
        drop(self.record("UploadNotebookAttachment", details)?);
        self.org().store_file(attachment(notebook, &stored), content.to_vec())?;
        Ok(stored)
    }

    /// Takes an attachment of a notebook away.
    ///
    /// # Errors
    /// As [`Session::notebook`]; [`ServerError::NotFound`].
    pub fn detach(&self, permit: &Permit<talon_acl::PrepareResults>, notebook: &str, name: &str) -> Result<(), ServerError> {
        self.notebook(notebook)?;
        self.org().own(permit)?;
        let object = attachment(notebook, name);
        if self.org().reader().upload(self.org().id(), &object)?.is_none() {
            return Err(ServerError::not_found("Attachment", name));
        }
        drop(self.record("RemoveNotebookAttachment", Details::new().text("notebook_id", notebook).text("filename", name))?);
        let id = self.org().id().clone();
        self.org().submit(move |txn| Ok(txn.delete_object(&id, &object)?)).wait()
    }

    fn cell_receipt(&self, permit: &NotebookPermit, notebook: &str, cell: &str, input: &str) -> Result<Receipt, ServerError> {
        let details = Details::new().text("notebook_id", notebook).text("cell_id", cell).text("input", input);
        self.record(permit.operation("UpdateNotebookCell", "notebook_update_cell"), details)
    }
}

fn check_cell(request: &NotebookCellRequest) -> Result<(), ServerError> {
    if !matches!(request.r#type.as_str(), "vql" | "markdown" | "md" | "vql_suggestion" | "none" | "") {
        return Err(ServerError::invalid("Unsupported cell type."));
    }
    if request.input.len() > MAX_INPUT {
        return Err(ServerError::invalid(format!("the input of a cell has at most {MAX_INPUT} bytes")));
    }
    Ok(())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Org {
    /// An id from time and chance.
    pub(crate) fn short_id(&self) -> String {
        let seconds = u32::try_from(self.now_us() / 1_000_000).unwrap_or(u32::MAX);
        talon_ids::TimeOrderedId::from_parts(seconds, random_array(self.rng())).to_string()
    }

    fn cell_id(&self) -> String {
        format!("NC.{}", self.short_id())
    }

    /// A notebook, shared or not.
    ///
    /// # Errors
    /// When storage fails.
    pub(crate) fn notebook(&self, id: &str) -> Result<Option<NotebookMetadata>, ServerError> {
        if check_id(id, "N.").is_err() {
            return Ok(None);
        }
        get(self.reader(), self.id(), Space::Notebooks, &notebook_key(id))
    }

    fn all_notebooks(&self) -> Result<Vec<NotebookMetadata>, ServerError> {
        let mut found = Vec::new();
        for (key, value) in self.reader().scan(self.id(), Space::Notebooks, &Scan { prefix: b"N.".to_vec(), ..Scan::default() })? {
            if !key.contains(&0) {
                found.push(decode::<NotebookMetadata>(Space::Notebooks, &key, &value)?);
            }
        }
        found.sort_by_key(|notebook| std::cmp::Reverse(notebook.created_time));
        Ok(found)
    }

    fn put_notebook(&self, permit: &NotebookPermit, receipt: Receipt, notebook: NotebookMetadata, new: bool) -> Result<(), ServerError> {
        permit.check(self)?;
        drop(receipt);
        let org = self.clone();
        self.submit(move |txn| {
            let key = notebook_key(&notebook.notebook_id);
            let there = txn.get(org.id(), Space::Notebooks, &key)?.is_some();
            if there == new {
                return Err(if new {
                    ServerError::invalid(format!("the notebook {} exists", notebook.notebook_id))
                } else {
                    ServerError::not_found("Notebook", &notebook.notebook_id)
                });
            }
            put(txn, org.id(), Space::Notebooks, &key, &notebook);
            Ok(())
        })
        .wait()
    }

    fn remove_notebook(&self, receipt: Receipt, id: &str) -> Result<(), ServerError> {
        drop(receipt);
        check_id(id, "N.")?;
        let running: Vec<String> =
            lock(&self.state().notebooks.running).keys().filter(|(notebook, _)| notebook == id).map(|(_, cell)| cell.clone()).collect();
        running.iter().for_each(|cell| self.cancel_calculation(id, cell));
        let (org, id) = (self.clone(), id.to_owned());
        self.submit(move |txn| {
            txn.delete(org.id(), Space::Notebooks, &notebook_key(&id));
            let beside = [id.as_bytes(), &[0]].concat();
            for (key, _) in txn.scan(org.id(), Space::Notebooks, &Scan { prefix: beside, ..Scan::default() })? {
                txn.delete(org.id(), Space::Notebooks, &key);
            }
            for object in txn.objects(org.id(), &ObjectName::new(["notebooks", &id]))? {
                txn.delete_object(org.id(), &object)?;
            }
            Ok(())
        })
        .wait()
    }

    fn cell(&self, notebook: &NotebookMetadata, cell: &str, version: &str) -> Result<NotebookCell, ServerError> {
        let summary = notebook.cell_metadata.iter().find(|other| other.cell_id == cell);
        let summary = summary.ok_or_else(|| ServerError::not_found("Notebook cell", cell))?;
        let version = if version.is_empty() { summary.current_version.as_str() } else { version };
        let key = version_key(&notebook.notebook_id, cell, version);
        let stored: Option<NotebookCell> = get(self.reader(), self.id(), Space::Notebooks, &key)?;
        let mut found = stored.unwrap_or_else(|| summary.clone());
        found.available_versions.clone_from(&summary.available_versions);
        if found.calculating && !self.is_calculating(&notebook.notebook_id, cell, version) {
            // Nobody calculates it any more: the server was stopped meanwhile.
            found.calculating = false;
            found.error = "The server was stopped while the cell was calculated: calculate it again.".into();
        }
        Ok(found)
    }

    fn is_calculating(&self, notebook: &str, cell: &str, version: &str) -> bool {
        let key = (notebook.to_owned(), cell.to_owned());
        lock(&self.state().notebooks.running).get(&key).is_some_and(|(running, _)| running == version)
    }

    fn cancel_calculation(&self, notebook: &str, cell: &str) {
        if let Some((_, cancel)) = lock(&self.state().notebooks.running).get(&(notebook.to_owned(), cell.to_owned())) {
            cancel.cancel("Cancelled!");
        }
    }
}

/// The variables of a notebook, later ones over earlier ones.
fn variables(envs: &[&[Env]]) -> BTreeMap<String, String> {
    envs.iter().flat_map(|env| env.iter()).map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_paths() {
        for (id, sound) in
            [("N.ABC", true), ("N.H.H.1", true), ("N.", false), ("X.1", false), ("N.a/b", false), ("N...", false), ("N.a\0", false)]
        {
            assert_eq!(check_id(id, "N.").is_ok(), sound, "{id:?}");
        }
    }

    #[test]
    fn sharing_is_by_exact_name_and_has_no_way_around() {
        let user = |name: &str| name.parse::<UserName>().unwrap();
        let notebook = NotebookMetadata { creator: "alice".into(), collaborators: vec!["bob".into()], ..NotebookMetadata::default() };
        for (name, wanted) in [("alice", true), ("bob", true), ("Bob", false), ("admin", false)] {
            assert_eq!(is_shared(&notebook, &user(name)), wanted, "{name}");
        }
        assert!(is_shared(&NotebookMetadata { public: true, ..notebook }, &user("admin")));
    }
}
