//! The first state of a notebook: its id, what it is about, its variables and cells (`spec/05` §10).

use talon_artifacts::Compiler;
use talon_ids::{ArtifactName, FlowId, HuntId};
use talon_proto::{
    ArtifactCollectorArgs, Env, NotebookCellRequest, NotebookContext, NotebookMetadata, VqlCollectorArgs, VqlEnv, VqlRequest,
};
use talon_vql::format::canonical_statement;

use super::check_id;
use crate::ServerError;
use crate::session::Session;

/// Rows of a cell that is made for a source.
const ROWS: u64 = 50;
/// From this artifact on, cells wait for somebody to calculate them.
const CALCULATED: usize = 5;
/// What an empty notebook begins with.
const WELCOME: &str = "# New notebook\n\nAdd a cell to write text or a query.\n";

/// One cell to be made.
fn cell(kind: &str, input: String) -> NotebookCellRequest {
    NotebookCellRequest { r#type: kind.to_owned(), input, ..NotebookCellRequest::default() }
}

impl Session {
    pub(super) fn first_state(&self, wish: NotebookMetadata) -> Result<(NotebookMetadata, Vec<NotebookCellRequest>), ServerError> {
        let mut notebook = NotebookMetadata {
            name: wish.name,
            description: wish.description,
            collaborators: wish.collaborators,
            public: wish.public,
            artifacts: wish.artifacts,
            specs: wish.specs,
            env: wish.env,
            ..NotebookMetadata::default()
        };
        let special = ["N.H.", "N.F.", "N.E."].iter().any(|prefix| wish.notebook_id.starts_with(prefix));
        notebook.notebook_id = if special { wish.notebook_id } else { format!("N.{}", self.org().short_id()) };
        check_id(&notebook.notebook_id, "N.")?;
        let context = self.context_of(&notebook.notebook_id, wish.context.unwrap_or_default())?;
        let set = |env: &mut Vec<Env>, key: &str, value: &str| {
            if !value.is_empty() && !env.iter().any(|pair| pair.key == key) {
                env.push(Env { key: key.to_owned(), value: value.to_owned() });
            }
        };
        set(&mut notebook.env, "ClientId", &context.client_id);
        set(&mut notebook.env, "FlowId", &context.flow_id);
        set(&mut notebook.env, "HuntId", &context.hunt_id);
        let moment = |seconds: i64| if seconds > 0 { seconds.to_string() } else { String::new() };
        set(&mut notebook.env, "StartTime", &moment(context.start_time));
        set(&mut notebook.env, "EndTime", &moment(context.end_time));
        if notebook.artifacts.is_empty() {
            notebook.artifacts = self.artifacts_of(&context)?;
        }
        if let Some(first) = notebook.artifacts.first().cloned() {
            set(&mut notebook.env, "ArtifactName", &first);
        }
        notebook.context = Some(context);
        let cells = self.first_cells(&mut notebook)?;
        Ok((notebook, cells))
    }

    /// What a notebook is about: its id says so for those of a flow, hunt or event artifact.
    fn context_of(&self, id: &str, mut context: NotebookContext) -> Result<NotebookContext, ServerError> {
        if let Some(hunt) = id.strip_prefix("N.H.") {
            let hunt = if hunt.starts_with("H.") { hunt.to_owned() } else { format!("H.{hunt}") };
            let known = self.org().hunt(&hunt.parse::<HuntId>()?)?;
            context.hunt_id = known.ok_or_else(|| ServerError::not_found("Hunt", &hunt))?.hunt_id;
            context.r#type = "Hunt".into();
        } else if let Some(rest) = id.strip_prefix("N.F.") {
            let (flow, client) = rest.split_once('-').ok_or_else(|| ServerError::not_found("Notebook", id))?;
            let flow = if flow.starts_with("F.") { flow.to_owned() } else { format!("F.{flow}") };
            let target = client.parse()?;
            let known = self.org().flow(&target, &flow.parse::<FlowId>()?)?;
            context.flow_id = known.ok_or_else(|| ServerError::not_found("Flow", &flow))?.session_id;
            context.client_id = target.to_string();
            context.r#type = "Flow".into();
        } else if let Some(rest) = id.strip_prefix("N.E.") {
            let (artifact, client) = rest.split_once('-').ok_or_else(|| ServerError::not_found("Notebook", id))?;
            context.event_artifact = artifact.parse::<ArtifactName>()?.to_string();
            client.clone_into(&mut context.client_id);
            context.r#type = "Events".into();
        }
        Ok(context)
    }

    fn artifacts_of(&self, context: &NotebookContext) -> Result<Vec<String>, ServerError> {
        if !context.hunt_id.is_empty() {
            return Ok(self.org().hunt(&context.hunt_id.parse()?)?.map(|hunt| hunt.artifacts).unwrap_or_default());
        }
        if !context.flow_id.is_empty() {
            let flow = self.org().flow(&context.client_id.parse()?, &context.flow_id.parse()?)?;
            return Ok(flow.and_then(|flow| flow.request).map(|request| request.artifacts).unwrap_or_default());
        }
        Ok(if context.event_artifact.is_empty() { Vec::new() } else { vec![context.event_artifact.clone()] })
    }

    fn first_cells(&self, notebook: &mut NotebookMetadata) -> Result<Vec<NotebookCellRequest>, ServerError> {
        let repository = self.org().artifacts().clone();
        let request = ArtifactCollectorArgs {
            artifacts: notebook.artifacts.clone(),
            specs: notebook.specs.clone(),
            ..ArtifactCollectorArgs::default()
        };
        let about_results = notebook.context.as_ref().is_some_and(|context| !context.r#type.is_empty());
        let (mut cells, mut preamble) = (Vec::new(), VqlCollectorArgs::default());
        for (number, (definition, spec)) in Compiler::new(&repository).definitions(&request)?.into_iter().enumerate() {
            let name = definition.name().as_str();
            // What the artifact collects runs on endpoints; a notebook has its parameters, definitions and cells.
            for parameter in definition.parameters() {
                let given = spec.and_then(|spec| spec.parameters.as_ref()).into_iter().flat_map(|parameters| &parameters.env);
                let given = given.filter(|pair| pair.key == parameter.name).map(|pair| pair.value.clone()).next_back();
                let value = given.unwrap_or_else(|| parameter.default.clone());
                preamble.env.push(VqlEnv { key: parameter.name.clone(), value, comment: String::new() });
            }
            let imports: Vec<_> = definition.imports().iter().filter_map(|import| repository.get(import.as_str())).collect();
            let exports = definition.export().iter().chain(imports.iter().flat_map(|import| import.export()));
            let statements = definition.conversions().iter().chain(exports).map(canonical_statement);
            preamble.query.extend(statements.map(|vql| VqlRequest { vql, name: String::new() }));
            let is_event = definition.kind().is_event();
            for source in &definition.proto().sources {
                let own = source.notebook.iter().filter(|cell| matches!(cell.r#type.as_str(), "vql" | "md" | "markdown" | "none"));
                let mut found: Vec<_> = own.map(|own| cell(&own.r#type, own.template.clone())).collect();
                if found.is_empty() && about_results {
                    let table = if source.name.is_empty() { name.to_owned() } else { format!("{name}/{}", source.name) };
                    let times = if is_event { ", start_time=StartTime, end_time=EndTime" } else { "" };
                    found.push(cell("vql", format!("SELECT * FROM source(artifact=\"{table}\"{times})\nLIMIT {ROWS}\n")));
                }
                if number >= CALCULATED {
                    found.iter_mut().for_each(|cell| "none".clone_into(&mut cell.r#type));
                }
                cells.extend(found);
            }
        }
        if !preamble.env.is_empty() || !preamble.query.is_empty() {
            notebook.requests.push(preamble);
        }
        if cells.is_empty() {
            cells.push(cell("markdown", WELCOME.to_owned()));
        }
        Ok(cells)
    }
}
