//! Exports: flows, hunts and notebooks as zip files that are kept among the downloads until somebody fetches them.

use talon_acl::{Permit, PrepareResults};
use talon_audit::{Details, Receipt};
use talon_ids::{ClientId, FlowId, HuntId, Target};
use talon_proto::NotebookMetadata;
use talon_store::ObjectName;

use crate::ServerError;
use crate::flows::redacted;
use crate::layout::{flow_logs, flow_objects, flow_rows, flow_uploads};
use crate::notebooks::cell_table;
use crate::org::Org;
use crate::reflect;
use crate::session::Session;

mod archive;

use archive::Archive;

/// The form of tables in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableFormat {
    /// JSON lines.
    #[default]
    Json,
    /// Comma-separated values.
    Csv,
    /// Both.
    Both,
}

impl TableFormat {
    /// The format that built-ins call `json`, `csv_only` or `csv`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" | "json" | "jsonl" => Some(Self::Json),
            "csv_only" => Some(Self::Csv),
            "csv" => Some(Self::Both),
            _ => None,
        }
    }

    fn json(self) -> bool {
        self != Self::Csv
    }

    fn csv(self) -> bool {
        self != Self::Json
    }
}

/// What is to be exported, and how.
#[derive(Default)]
pub struct ExportOptions {
    /// The form of tables.
    pub format: TableFormat,
    /// Encrypts the files of the archive; names stay readable. Empty for none.
    pub password: String,
    /// The name of the archive without ending; made of what it holds when empty.
    pub name: String,
    /// For hunts: only the tables over all clients.
    pub only_combined: bool,
}

/// The parts of a download's name, below `downloads`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download(Vec<String>);

impl Download {
    fn new(parts: &[&str], name: &str, options: &ExportOptions) -> Self {
        let locked = if options.password.is_empty() { "" } else { "_locked" };
        let file = format!("{}{locked}.zip", if options.name.is_empty() { name.to_owned() } else { plain(&options.name) });
        Self(parts.iter().map(|&part| part.to_owned()).chain([file]).collect())
    }

    fn object(&self) -> ObjectName {
        ObjectName::new(std::iter::once("downloads".to_owned()).chain(self.0.iter().cloned()))
    }

    /// Its components, as the API takes them to read it.
    #[must_use]
    pub fn components(&self) -> Vec<String> {
        self.object().components().to_vec()
    }
}

/// A download by the components that the API has for it.
#[must_use]
pub fn download(parts: &[&str]) -> ObjectName {
    ObjectName::new(std::iter::once("downloads").chain(parts.iter().copied()))
}

/// A name as part of a file name.
fn plain(name: &str) -> String {
    let sound = |character: char| if character.is_ascii_alphanumeric() || "._-".contains(character) { character } else { '_' };
    let name: String = name.chars().take(150).map(sound).collect();
    if name.trim_matches('.').is_empty() { "export".into() } else { name }
}

impl Session {
    /// Packs a flow: its record, log, results and uploads.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn export_flow(&self, target: &Target, flow: &FlowId, options: &ExportOptions) -> Result<Download, ServerError> {
        let permit = self.authority().permit::<PrepareResults>()?;
        if self.org().flow(target, flow)?.is_none() {
            return Err(ServerError::not_found("Flow", flow));
        }
        let details = Details::new().text("client_id", target.as_str()).text("flow_id", flow.as_str());
        let receipt = self.record("create_flow_download", details.text("format", &format!("{:?}", options.format)))?;
        self.org().export_flow(&permit, receipt, target, flow, options)
    }

    /// Packs a hunt: its record, tables over all clients, and the flow of each client.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn export_hunt(&self, hunt: &HuntId, options: &ExportOptions) -> Result<Download, ServerError> {
        let permit = self.authority().permit::<PrepareResults>()?;
        if self.org().hunt(hunt)?.is_none() {
            return Err(ServerError::not_found("Hunt", hunt));
        }
        let details = Details::new().text("hunt_id", hunt.as_str()).text("format", &format!("{:?}", options.format));
        let receipt = self.record("create_hunt_download", details)?;
        self.org().export_hunt(&permit, receipt, hunt, options)
    }

    /// Packs a notebook that is shared with the principal: its cells and their tables.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`], [`ServerError::NotShared`].
    pub fn export_notebook(&self, id: &str, options: &ExportOptions) -> Result<Download, ServerError> {
        let permit = self.authority().permit::<PrepareResults>()?;
        let notebook = self.notebook(id)?;
        let receipt = self.record("ExportNotebook", Details::new().text("notebook_id", id))?;
        self.org().export_notebook(&permit, receipt, self, &notebook, options)
    }
}

impl Org {
    fn export_flow(
        &self,
        permit: &Permit<PrepareResults>,
        receipt: Receipt,
        target: &Target,
        flow: &FlowId,
        options: &ExportOptions,
    ) -> Result<Download, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let host = match target {
            Target::Server => "server".to_owned(),
            Target::Client(client) => self.client(client)?.map(|info| plain(&info.hostname)).unwrap_or_default(),
        };
        let download = Download::new(&[target.as_str(), flow.as_str()], &format!("{host}-{target}-{flow}"), options);
        let mut archive = Archive::create(self, download.object(), &options.password)?;
        self.add_flow(&mut archive, "", target, flow, options)?;
        archive.finish()?;
        Ok(download)
    }

    fn add_flow(
        &self,
        archive: &mut Archive<'_>,
        prefix: &str,
        target: &Target,
        flow: &FlowId,
        options: &ExportOptions,
    ) -> Result<(), ServerError> {
        let Some(mut context) = self.flow(target, flow)? else { return Ok(()) };
        if let Some(request) = &mut context.request {
            *request = redacted(request);
        }
        archive.text(&format!("{prefix}collection_context.json"), &reflect::to_json("ArtifactCollectorContext", &context)?)?;
        if let Target::Client(client) = target
            && let Some(info) = self.client(client)?
        {
            archive.text(&format!("{prefix}client_info.json"), &reflect::to_json("ApiClient", &crate::clients::api_client(&info))?)?;
        }
        archive.table(self, &format!("{prefix}log"), &flow_logs(target, flow), options.format)?;
        archive.table(self, &format!("{prefix}uploads"), &flow_uploads(target, flow), options.format)?;
        for query in self.flow_queries(target, flow)? {
            let name = format!("{prefix}results/{}", query.to_string().replace('/', "%2F"));
            archive.table(self, &name, &flow_rows(target, flow, &query), options.format)?;
        }
        for object in self.reader().objects(self.id(), &flow_objects(target, flow))? {
            // `flows`, target, flow, `files`, accessor, path: as encoded when they came, so none of them is a path by itself.
            if let Some((kind, path)) = object.components().get(3..).and_then(<[String]>::split_first)
                && kind == "files"
            {
                archive.file(self, &format!("{prefix}uploads/{}", path.join("/")), &object)?;
            }
        }
        Ok(())
    }

    fn export_hunt(
        &self,
        permit: &Permit<PrepareResults>,
        receipt: Receipt,
        id: &HuntId,
        options: &ExportOptions,
    ) -> Result<Download, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let hunt = self.hunt(id)?.ok_or_else(|| ServerError::not_found("Hunt", id))?;
        let summary = if options.only_combined { "-summary" } else { "" };
        let download = Download::new(&["hunts", id.as_str()], &format!("{id}{summary}"), options);
        let mut archive = Archive::create(self, download.object(), &options.password)?;
        archive.text("hunt_info.json", &reflect::to_json("Hunt", &hunt)?)?;
        let clients = self.hunt_clients(id)?;
        for source in &hunt.artifact_sources {
            let query = source.parse()?;
            let name = format!("results/All {}", source.replace('/', "%2F"));
            let tables = clients.iter().filter_map(|participant| {
                let client: ClientId = participant.client_id.parse().ok()?;
                let flow = participant.flow_id.parse().ok()?;
                let added = [("FlowId", participant.flow_id.clone()), ("ClientId", participant.client_id.clone())];
                Some((flow_rows(&Target::Client(client), &flow, &query), added.to_vec()))
            });
            archive.combined(self, &name, tables.collect(), options.format)?;
        }
        if !options.only_combined {
            for participant in &clients {
                let (client, flow): (ClientId, FlowId) = (participant.client_id.parse()?, participant.flow_id.parse()?);
                self.add_flow(&mut archive, &format!("clients/{client}/{flow}/"), &Target::Client(client), &flow, options)?;
            }
        }
        archive.finish()?;
        Ok(download)
    }

    fn export_notebook(
        &self,
        permit: &Permit<PrepareResults>,
        receipt: Receipt,
        session: &Session,
        notebook: &NotebookMetadata,
        options: &ExportOptions,
    ) -> Result<Download, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let id = notebook.notebook_id.as_str();
        let download = Download::new(&["notebooks", id], id, options);
        let mut archive = Archive::create(self, download.object(), &options.password)?;
        archive.text("notebook.json", &reflect::to_json("NotebookMetadata", notebook)?)?;
        for summary in &notebook.cell_metadata {
            let cell = session.notebook_cell(id, &summary.cell_id, "")?;
            archive.text(&format!("cells/{}.json", summary.cell_id), &reflect::to_json("NotebookCell", &cell)?)?;
            for number in 1.. {
                let table = cell_table(id, &summary.cell_id, &cell.current_version, number);
                if self.reader().table(self.id(), &table)?.rows == 0 {
                    break;
                }
                archive.table(self, &format!("tables/{}_{number}", summary.cell_id), &table, options.format)?;
            }
        }
        archive.finish()?;
        Ok(download)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wished_name_is_never_a_path() {
        for (wish, wanted) in [("a b/../c", "a_b_.._c"), ("..", "export"), ("", "export"), ("x.zip", "x.zip")] {
            assert_eq!(plain(wish), wanted, "{wish:?}");
        }
        let options = ExportOptions { password: "p".into(), ..ExportOptions::default() };
        assert_eq!(Download::new(&["C.1", "F.1"], "n", &options).components(), ["downloads", "C.1", "F.1", "n_locked.zip"]);
    }
}
