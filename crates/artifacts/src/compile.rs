//! From a request for artifacts to the queries that an agent or the server runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use talon_proto::{self as proto, ArtifactCollectorArgs, ArtifactSpec, VqlCollectorArgs, VqlEnv, VqlRequest};
use talon_vql::ast::Statement;
use talon_vql::format::canonical_statement;

use crate::definition::Source;
use crate::parameter::ParameterType;
use crate::{ArtifactError, Definition, Reference, Repository, references};

/// The most requests of one collection, and the most artifacts that come along with a request.
const MAX_REQUESTS: usize = 5000;

/// Rows and bytes a response may hold, and how long an agent may collect them, unless an artifact or request says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Batching {
    /// Rows. 0 is unset.
    pub max_rows: u64,
    /// Bytes. 0 is unset.
    pub max_bytes: u64,
    /// Seconds. 0 is unset.
    pub max_wait: u64,
}

/// The limits of a whole collection.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CollectionLimits {
    /// Rows over all queries. 0 is unset.
    pub max_rows: u64,
    /// Bytes of all uploads.
    pub max_upload_bytes: u64,
    /// Seconds. 0 is the agent's default.
    pub timeout: u64,
    /// Percent. 0 is unlimited.
    pub cpu_limit: f32,
    /// Operations a second, the old form of a CPU limit. 0 is unlimited.
    pub ops_per_second: f32,
    /// I/O operations a second. 0 is unlimited.
    pub iops_limit: f32,
}

/// Gives the variables `Tool_<name>_…` through which queries find an external file, or says why not.
pub type ToolEnvironment<'a> = dyn Fn(&proto::Tool) -> Result<Vec<(String, String)>, String> + 'a;

/// Rewrites the name of a query.
pub type Obfuscate<'a> = dyn Fn(&str) -> String + 'a;

/// Looks up a value by its key.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// A definition, and what a request says of it.
pub type Requested<'r> = (Arc<Definition>, Option<&'r ArtifactSpec>);

/// Compiles requests against a repository. The caller's seams are optional: without them nothing is hidden, looked up or offered.
pub struct Compiler<'a> {
    repository: &'a Repository,
    batching: Batching,
    preconditions: bool,
    tolerant: bool,
    obfuscate: Option<&'a Obfuscate<'a>>,
    server_metadata: Option<&'a Lookup<'a>>,
    tools: Option<&'a ToolEnvironment<'a>>,
}

impl<'a> Compiler<'a> {
    /// A compiler with preconditions, strict about unknown artifacts.
    #[must_use]
    pub fn new(repository: &'a Repository) -> Self {
        Self {
            repository,
            batching: Batching::default(),
            preconditions: true,
            tolerant: false,
            obfuscate: None,
            server_metadata: None,
            tools: None,
        }
    }

    /// The defaults of the configuration.
    #[must_use]
    pub fn batching(mut self, batching: Batching) -> Self {
        self.batching = batching;
        self
    }

    /// Leaves preconditions out.
    #[must_use]
    pub fn without_preconditions(mut self) -> Self {
        self.preconditions = false;
        self
    }

    /// Passes over unknown artifacts: event tables outlive artifacts.
    #[must_use]
    pub fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// Hides the names of queries from who sees the agent's requests.
    #[must_use]
    pub fn obfuscate(mut self, obfuscate: &'a Obfuscate<'a>) -> Self {
        self.obfuscate = Some(obfuscate);
        self
    }

    /// Looks up the values of parameters of type `server_metadata`.
    #[must_use]
    pub fn server_metadata(mut self, lookup: &'a Lookup<'a>) -> Self {
        self.server_metadata = Some(lookup);
        self
    }

    /// Offers external files.
    #[must_use]
    pub fn tools(mut self, tools: &'a ToolEnvironment<'a>) -> Self {
        self.tools = Some(tools);
        self
    }

    /// The definitions that a request means, each with the parameters it was given, in the order of its `artifacts`.
    ///
    /// # Errors
    /// One of them is unknown.
    pub fn definitions<'r>(&self, request: &'r ArtifactCollectorArgs) -> Result<Vec<Requested<'r>>, ArtifactError> {
        let mut found = Vec::with_capacity(request.artifacts.len().min(MAX_REQUESTS));
        for name in &request.artifacts {
            if found.len() >= MAX_REQUESTS {
                return Err(ArtifactError::TooMany(MAX_REQUESTS));
            }
            let custom = if request.allow_custom_overrides { self.repository.get(&format!("Custom.{name}")) } else { None };
            match custom.or_else(|| self.repository.get(name)) {
                Some(definition) => found.push((definition, request.specs.iter().find(|spec| spec.artifact == *name))),
                None if self.tolerant => {}
                None => return Err(ArtifactError::Unknown(name.clone())),
            }
        }
        Ok(found)
    }

    /// Compiles a request.
    ///
    /// # Errors
    /// An artifact, import or reference is unknown, or a tool cannot be offered.
    pub fn compile(&self, request: &ArtifactCollectorArgs) -> Result<Vec<VqlCollectorArgs>, ArtifactError> {
        let mut compiled = Vec::new();
        for (definition, spec) in self.definitions(request)? {
            let mut requests = self.artifact(&definition, spec)?;
            for args in &mut requests {
                self.limit(args, &definition, spec, request);
            }
            compiled.append(&mut requests);
            if compiled.len() > MAX_REQUESTS {
                return Err(ArtifactError::TooMany(MAX_REQUESTS));
            }
        }
        let total = i64::try_from(compiled.len()).unwrap_or(i64::MAX);
        for (args, id) in compiled.iter_mut().zip(1..) {
            args.query_id = id;
            args.total_queries = total;
        }
        Ok(compiled)
    }

    /// The limits of the collection as a whole, from a request and what it was compiled to.
    ///
    /// # Errors
    /// An artifact is unknown.
    pub fn collection_limits(
        &self,
        request: &ArtifactCollectorArgs,
        compiled: &[VqlCollectorArgs],
    ) -> Result<CollectionLimits, ArtifactError> {
        const DEFAULT_UPLOAD_BYTES: u64 = 1 << 30;
        let definitions = self.definitions(request)?;
        let most = |field: fn(&proto::Resources) -> u64| {
            definitions.iter().filter_map(|(definition, _)| definition.proto().resources.as_ref()).map(field).max().unwrap_or(0)
        };
        let last = compiled.last().cloned().unwrap_or_default();
        Ok(CollectionLimits {
            max_rows: first_set([request.max_rows, most(|resources| resources.max_rows)]),
            max_upload_bytes: first_set([request.max_upload_bytes, most(|resources| resources.max_upload_bytes), DEFAULT_UPLOAD_BYTES]),
            timeout: first_set([request.timeout, last.timeout]),
            cpu_limit: first_positive([request.cpu_limit, last.cpu_limit]),
            ops_per_second: first_positive([request.ops_per_second, last.ops_per_second]),
            iops_limit: first_positive([request.iops_limit, last.iops_limit]),
        })
    }

    /// Compiles one artifact: one request, or one for each source where these run side by side. Limits are still those of the artifact.
    ///
    /// # Errors
    /// An import or reference is unknown, or a tool cannot be offered.
    pub fn artifact(&self, definition: &Definition, spec: Option<&ArtifactSpec>) -> Result<Vec<VqlCollectorArgs>, ArtifactError> {
        let mut requests = Vec::new();
        for group in definition.groups() {
            let group = definition.sources().get(group).unwrap_or_default();
            if group.iter().any(|source| !source.statements.is_empty()) {
                requests.push(self.request(definition, group, spec)?);
            }
        }
        Ok(requests)
    }

    /// One request, built in the order in which stock servers build it.
    fn request(&self, definition: &Definition, sources: &[Source], spec: Option<&ArtifactSpec>) -> Result<VqlCollectorArgs, ArtifactError> {
        let artifact = definition.proto();
        let conversions: Vec<String> = definition.conversions().iter().map(canonical_statement).collect();
        let unnamed = |vql: String| VqlRequest { vql, name: String::new() };
        let mut args = VqlCollectorArgs { effective_principal: artifact.impersonate.clone(), ..VqlCollectorArgs::default() };
        args.query = conversions.iter().cloned().map(unnamed).collect();
        args.env = self.environment(definition);
        if let Some(resources) = &artifact.resources {
            args.timeout = resources.timeout;
            args.ops_per_second = resources.ops_per_second;
            args.cpu_limit = resources.cpu_limit;
            args.iops_limit = resources.iops_limit;
        }
        let imported = self.imported(definition)?;
        let exports = definition.export().iter().chain(imported.iter().flat_map(|import| import.export()));
        args.query.extend(exports.map(canonical_statement).map(unnamed));

        let gate = definition.gate(sources);
        let gate_text = match sources {
            [source] if std::ptr::eq(gate, source.precondition.as_slice()) => &source.precondition_text,
            _ => &artifact.precondition,
        };
        let gated = self.preconditions && !gate.is_empty();
        if gated {
            args.precondition = conversions.iter().map(|statement| format!("{statement}\n\n")).collect::<String>() + gate_text;
        }
        for source in sources {
            let Some((last, definitions)) = source.statements.split_last() else { continue };
            args.query.extend(definitions.iter().map(canonical_statement).map(unnamed));
            args.query.push(VqlRequest { vql: canonical_statement(last), name: source.query_name.to_string() });
        }
        let exports = definition.export().iter().chain(imported.iter().flat_map(|import| import.export()));
        let statements = exports.chain(sources.iter().flat_map(|source| &source.statements)).chain(if gated { gate } else { &[] });
        args.artifacts = self.dependencies(definition, statements)?;
        for given in spec.and_then(|spec| spec.parameters.as_ref()).map(|parameters| parameters.env.as_slice()).unwrap_or_default() {
            match args.env.iter_mut().find(|env| env.key == given.key) {
                Some(env) => env.value.clone_from(&given.value),
                None => args.env.push(given.clone()),
            }
        }
        for (key, value) in self.tool_environment(definition)? {
            args.env.push(VqlEnv { key, value, comment: String::new() });
        }
        if let Some(obfuscate) = self.obfuscate {
            for query in args.query.iter_mut().filter(|query| !query.name.is_empty()) {
                query.name = obfuscate(&query.name);
            }
        }
        Ok(args)
    }

    fn environment(&self, definition: &Definition) -> Vec<VqlEnv> {
        let variable = |parameter: &crate::Parameter| {
            let stored = match (parameter.kind, self.server_metadata) {
                (ParameterType::ServerMetadata, Some(lookup)) => lookup(&parameter.name),
                _ => None,
            };
            let comment = if parameter.kind == ParameterType::Redacted { "redacted" } else { "" };
            VqlEnv { key: parameter.name.clone(), value: stored.unwrap_or_else(|| parameter.default.clone()), comment: comment.to_owned() }
        };
        definition.parameters().iter().map(variable).collect()
    }

    fn imported(&self, definition: &Definition) -> Result<Vec<Arc<Definition>>, ArtifactError> {
        let import = |name: &talon_ids::ArtifactName| {
            self.repository
                .get(name.as_str())
                .ok_or_else(|| ArtifactError::UnknownImport { artifact: definition.name().to_string(), import: name.to_string() })
        };
        definition.imports().iter().map(import).collect()
    }

    fn tool_environment(&self, definition: &Definition) -> Result<Vec<(String, String)>, ArtifactError> {
        let Some(tools) = self.tools else { return Ok(Vec::new()) };
        let mut environment = Vec::new();
        for tool in &definition.proto().tools {
            environment.extend(tools(tool).map_err(|problem| ArtifactError::Tool {
                artifact: definition.name().to_string(),
                tool: tool.name.clone(),
                problem,
            })?);
        }
        Ok(environment)
    }

    /// Everything that the statements call, and what that calls in turn, stripped, by name.
    fn dependencies<'s>(
        &self,
        definition: &Definition,
        statements: impl Iterator<Item = &'s Statement>,
    ) -> Result<Vec<proto::Artifact>, ArtifactError> {
        let mut found: BTreeMap<String, Arc<Definition>> = BTreeMap::new();
        let mut waiting: Vec<(String, Vec<Reference>)> = vec![(definition.name().to_string(), references(statements))];
        while let Some((artifact, references)) = waiting.pop() {
            for reference in references {
                let Some(dependency) = self.repository.referred(&reference) else {
                    if !reference.called {
                        continue;
                    }
                    return Err(ArtifactError::UnknownReference { artifact, reference: reference.name });
                };
                self.require(dependency, &mut found, &mut waiting)?;
            }
        }
        let mut stripped = Vec::with_capacity(found.len());
        for dependency in found.values() {
            stripped.push(dependency.stripped(self.tool_environment(dependency)?));
        }
        Ok(stripped)
    }

    fn require(
        &self,
        dependency: Arc<Definition>,
        found: &mut BTreeMap<String, Arc<Definition>>,
        waiting: &mut Vec<(String, Vec<Reference>)>,
    ) -> Result<(), ArtifactError> {
        let mut next = vec![dependency];
        while let Some(dependency) = next.pop() {
            let name = dependency.name().to_string();
            if found.contains_key(&name) {
                continue;
            }
            if found.len() >= MAX_REQUESTS {
                return Err(ArtifactError::TooMany(MAX_REQUESTS));
            }
            next.extend(self.imported(&dependency)?);
            let own = dependency.precondition().iter().chain(dependency.export());
            let sources = dependency.sources().iter().flat_map(|source| source.precondition.iter().chain(&source.statements));
            waiting.push((name.clone(), references(own.chain(sources))));
            found.insert(name, dependency);
        }
        Ok(())
    }

    fn limit(&self, args: &mut VqlCollectorArgs, definition: &Definition, spec: Option<&ArtifactSpec>, request: &ArtifactCollectorArgs) {
        const DEFAULT_ROWS: u64 = 1000;
        let resources = definition.proto().resources.unwrap_or_default();
        let batch = |default: u64, of_artifact: u64, of_spec: Option<u64>| first_set([of_spec.unwrap_or(0), default.max(of_artifact)]);
        args.max_row =
            first_set([batch(self.batching.max_rows, resources.max_batch_rows, spec.map(|spec| spec.max_batch_rows)), DEFAULT_ROWS]);
        args.max_row_buffer_size =
            batch(self.batching.max_bytes, resources.max_batch_rows_buffer, spec.map(|spec| spec.max_batch_rows_buffer));
        args.max_wait = batch(self.batching.max_wait, resources.max_batch_wait, spec.map(|spec| spec.max_batch_wait));
        args.timeout = first_set([request.timeout, spec.map_or(0, |spec| spec.timeout), args.timeout]);
        args.cpu_limit = first_positive([request.cpu_limit, spec.map_or(0.0, |spec| spec.cpu_limit), args.cpu_limit]);
        args.ops_per_second = first_positive([request.ops_per_second, args.ops_per_second]);
        args.iops_limit = first_positive([request.iops_limit, args.iops_limit]);
        args.progress_timeout = request.progress_timeout;
    }
}

fn first_set<const N: usize>(values: [u64; N]) -> u64 {
    values.into_iter().find(|value| *value > 0).unwrap_or(0)
}

fn first_positive<const N: usize>(values: [f32; N]) -> f32 {
    values.into_iter().find(|value| *value > 0.0).unwrap_or(0.0)
}
