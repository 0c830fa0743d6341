//! Tables: rows of anything, filtered, sorted and cut into pages, each row a JSON array in the order of the columns (`spec/05` §16.2).

use std::cmp::Ordering;

use talon_ids::{FlowId, QueryName, Target};
use talon_proto as proto;
use talon_server::{Lines, Session, flow_logs, flow_rows, flow_uploads};
use talon_store::ObjectName;
use talon_vql::{Dict, Value, json};
use tonic::Status;

use crate::service::Call;

/// Rows in an answer when the request does not say, and the most there are.
const DEFAULT_ROWS: u64 = 2_000;
const MAX_ROWS: u64 = 100_000;
/// Rows that can be sorted, or looked at for a filter.
const MAX_LOOKED_AT: usize = 1_000_000;
/// Rows of a table that is not there.
const MISSING: i64 = -1;

/// Rows on their way into a table.
pub(crate) type Found<'a> = Box<dyn Iterator<Item = Result<Dict, Status>> + 'a>;

/// A page of a table. `columns` are those that it has even when it has no rows.
pub(crate) fn page(request: &proto::GetTableRequest, columns: &[&str], rows: Found<'_>) -> Result<proto::GetTableResponse, Status> {
    let filter = Filter::of(request)?;
    let mut kept = Vec::new();
    for row in rows {
        let row = row?;
        if filter.as_ref().is_none_or(|filter| filter.takes(&row)) {
            kept.push(row);
        }
        if kept.len() > MAX_LOOKED_AT {
            return Err(Status::unknown(format!("the table has more than {MAX_LOOKED_AT} rows: read it with a query")));
        }
    }
    if !request.sort_column.is_empty() {
        let cell = |row: &Dict| row.get(&request.sort_column).cloned().unwrap_or_default();
        kept.sort_by(|a, b| {
            let order = compare(&cell(a), &cell(b));
            if request.sort_direction { order.reverse() } else { order }
        });
    }
    let total = i64::try_from(kept.len()).unwrap_or(i64::MAX);
    let count = if request.rows == 0 { DEFAULT_ROWS } else { request.rows.min(MAX_ROWS) };
    let (skip, take) = (usize::try_from(request.start_row).unwrap_or(usize::MAX), usize::try_from(count).unwrap_or(usize::MAX));
    let mut names: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
    let rows = kept.iter().skip(skip).take(take).map(|row| proto::Row { json: cells(&mut names, row) }).collect();
    Ok(proto::GetTableResponse { columns: names, rows, total_rows: total, ..proto::GetTableResponse::default() })
}

/// A table that is not there.
pub(crate) fn missing(columns: &[&str]) -> proto::GetTableResponse {
    let columns = columns.iter().map(|&name| name.to_owned()).collect();
    proto::GetTableResponse { columns, total_rows: MISSING, ..proto::GetTableResponse::default() }
}

/// The cells of a row in the order of the columns; a key that is new becomes a column.
fn cells(columns: &mut Vec<String>, row: &Dict) -> String {
    for (key, _) in row.iter() {
        if !columns.iter().any(|name| name == key.as_str()) {
            columns.push(key.to_string());
        }
    }
    let cells: Vec<String> = columns.iter().map(|name| row.get(name).map_or_else(|| "null".to_owned(), json::encode)).collect();
    format!("[{}]", cells.join(","))
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => shown(a).cmp(&shown(b)),
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| json::encode(value), str::to_owned)
}

/// Which rows a request wants.
struct Filter {
    column: String,
    pattern: talon_vql::regex::Regex,
    inverted: bool,
}

impl Filter {
    fn of(request: &proto::GetTableRequest) -> Result<Option<Self>, Status> {
        if request.filter_column.is_empty() || request.filter_regex.is_empty() {
            return Ok(None);
        }
        let (inverted, text) = match request.filter_regex.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, request.filter_regex.as_str()),
        };
        let pattern = talon_vql::regex::Regex::ignoring_case(text.as_bytes());
        let pattern = pattern.map_err(|error| Status::invalid_argument(format!("filter_regex: {error}")))?;
        Ok(Some(Self { column: request.filter_column.clone(), pattern, inverted }))
    }

    fn takes(&self, row: &Dict) -> bool {
        let matches = row.get(&self.column).is_some_and(|cell| self.pattern.is_match(shown(cell).as_bytes()));
        matches != self.inverted
    }
}

fn damaged(error: impl std::fmt::Display) -> Status {
    Status::unknown(format!("a stored row cannot be read: {error}"))
}

fn stored_rows(call: &Call, lines: Lines) -> Found<'_> {
    Box::new(lines.map(|line| {
        let line = line.map_err(|error| call.failed(&error))?;
        json::decode_row(line.as_bytes()).map_err(damaged)
    }))
}

/// A page of one stored table, read only as far as the page needs when nothing is sorted or filtered.
fn stored(call: &Call, request: &proto::GetTableRequest, table: &ObjectName) -> Result<proto::GetTableResponse, Status> {
    let org = call.session.org();
    let held = org.reader().table(org.id(), table).map_err(|error| call.failed(&error.into()))?.rows;
    if held == 0 {
        return Ok(missing(&[]));
    }
    if !request.sort_column.is_empty() || !request.filter_column.is_empty() {
        let lines = org.rows(table, 0).map_err(|error| call.failed(&error))?;
        return page(request, &[], stored_rows(call, lines));
    }
    let (mut start, mut count) = (request.start_row, if request.rows == 0 { DEFAULT_ROWS } else { request.rows.min(MAX_ROWS) });
    if request.end_idx > request.start_idx {
        start = start.saturating_add(request.start_idx);
        count = count.min(request.end_idx.saturating_sub(start));
    }
    let lines = org.rows(table, start).map_err(|error| call.failed(&error))?;
    let taken = stored_rows(call, lines).take(usize::try_from(count).unwrap_or(usize::MAX));
    let unpaged = proto::GetTableRequest { rows: MAX_ROWS, start_row: 0, ..request.clone() };
    let mut response = page(&unpaged, &[], Box::new(taken))?;
    response.total_rows = i64::try_from(held).unwrap_or(i64::MAX);
    Ok(response)
}

pub(crate) fn get_table(call: Call, request: proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    match request.r#type.as_str() {
        "CLIENT_EVENT" | "SERVER_EVENT" | "CLIENT_EVENT_LOGS" | "SERVER_EVENT_LOGS" => return events(&call, &request),
        "CLIENT_FLOWS" => return client_flows(&call, &request),
        "NOTEBOOKS" => return notebooks(&call, &request),
        "USER_MESSAGES" => return Ok(missing(&[])),
        _ => {}
    }
    if !request.notebook_id.is_empty() {
        return cell(&call, &request);
    }
    if !request.hunt_id.is_empty() {
        return hunt_clients(&call, &request);
    }
    if request.flow_id.is_empty() {
        return Err(Status::unknown("Invalid request"));
    }
    let invalid = |_| Status::unknown("Invalid request");
    let target = target(&call.session, &request.client_id)?;
    let flow: FlowId = request.flow_id.parse().map_err(invalid)?;
    let table = match request.r#type.as_str() {
        "log" => flow_logs(&target, &flow),
        "uploads" => flow_uploads(&target, &flow),
        "" | "CLIENT" | "SERVER" if !request.artifact.is_empty() => {
            flow_rows(&target, &flow, &request.artifact.parse::<QueryName>().map_err(invalid)?)
        }
        _ => return Err(Status::unknown("Invalid request")),
    };
    stored(&call, &request, &table)
}

/// The client, or the server, that a request names.
pub(crate) fn target(session: &Session, text: &str) -> Result<Target, Status> {
    if text == Target::Server.as_str() {
        return Ok(Target::Server);
    }
    session.org().parse_client(text).map(Target::Client).map_err(|error| crate::status::of(&error))
}

fn events(call: &Call, request: &proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    let invalid = |_| Status::unknown("Invalid request");
    let queue: QueryName = request.artifact.parse().map_err(invalid)?;
    let of_server = request.r#type.starts_with("SERVER") || request.client_id.is_empty();
    let target = if of_server { Target::Server } else { target(&call.session, &request.client_id)? };
    let logs = request.r#type.ends_with("LOGS");
    let org = call.session.org();
    let (start, end) = (request.start_time, if request.end_time > 0 { request.end_time } else { i64::MAX });
    let column = if logs { "client_time" } else { "_ts" };
    let days = org.event_days(&target, &queue, logs).map_err(|error| call.failed(&error))?;
    let (first, last) = (day(start), if end == i64::MAX { "9999".to_owned() } else { day(end) });
    let days = days.into_iter().filter(|day| *day >= first && *day <= last);
    let rows = days.flat_map(|day| {
        let table = if logs { talon_server::event_logs(&target, &queue, &day) } else { talon_server::event_rows(&target, &queue, &day) };
        match org.rows(&table, 0) {
            Ok(lines) => stored_rows(call, lines),
            Err(error) => Box::new(std::iter::once(Err(call.failed(&error)))),
        }
    });
    let within = rows.filter(|row| {
        let at = row.as_ref().ok().and_then(|row| row.get(column)).and_then(Value::as_int);
        at.is_none_or(|at| at >= start && at < end)
    });
    let mut response = page(request, &[], Box::new(within))?;
    (response.start_time, response.end_time) = (request.start_time, request.end_time);
    Ok(response)
}

fn day(seconds: i64) -> String {
    let text = talon_vql::time::zone("UTC").and_then(|zone| talon_vql::Time::from_unix(seconds).rfc3339(&zone));
    text.and_then(|text| text.get(..10).map(str::to_owned)).unwrap_or_default()
}

const FLOW_COLUMNS: &[&str] =
    &["State", "FlowId", "Artifacts", "Created", "Last Active", "Creator", "Mb", "Rows", "_Flow", "_Urgent", "_ArtifactsWithResults"];

pub(crate) fn get_client_flows(call: Call, request: proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    client_flows(&call, &request)
}

fn client_flows(call: &Call, request: &proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    let target = target(&call.session, &request.client_id)?;
    // The store gives the newest first, which is the default.
    let flows = call.session.org().flows(&target).map_err(|error| call.failed(&error))?;
    page(request, FLOW_COLUMNS, Box::new(flows.into_iter().map(flow_cells)))
}

fn flow_cells(mut context: proto::ArtifactCollectorContext) -> Result<Dict, Status> {
    if let Some(request) = &mut context.request {
        request.compiled_collector_args.clear();
    }
    let shown = talon_server::reflect::to_json("ArtifactCollectorContext", &context).map_err(|error| crate::status::of(&error))?;
    let flow = json::decode_row(shown.as_bytes()).map_err(damaged)?;
    let request = context.request.clone().unwrap_or_default();
    let texts = |texts: &[String]| Value::list(texts.iter().map(|text| Value::str(text.as_str())));
    let state = context.state().as_str_name();
    Ok(Dict::new()
        .with("State", state)
        .with("FlowId", context.session_id.as_str())
        .with("Artifacts", texts(&request.artifacts))
        .with("Created", context.create_time)
        .with("Last Active", context.active_time)
        .with("Creator", request.creator.as_str())
        .with("Mb", context.total_uploaded_bytes / (1 << 20))
        .with("Rows", context.total_collected_rows)
        .with("_Flow", flow)
        .with("_Urgent", request.urgent)
        .with("_ArtifactsWithResults", texts(&context.artifacts_with_results)))
}

fn hunt_clients(call: &Call, request: &proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    let hunt = request.hunt_id.parse().map_err(|_| Status::unknown("Invalid request"))?;
    let clients = call.session.org().hunt_clients(&hunt).map_err(|error| call.failed(&error))?;
    let status = match request.r#type.as_str() {
        "clients" => false,
        "hunt_status" => true,
        _ => return Err(Status::unknown("Invalid request")),
    };
    let seconds = |micros: u64| micros / 1_000_000;
    let row = |client: talon_server::Participant| {
        let row = Dict::new().with("ClientId", client.client_id).with("FlowId", client.flow_id);
        if !status {
            return row.with("Timestamp", seconds(client.scheduled));
        }
        let outcome = if client.error.is_empty() { "FINISHED" } else { "ERROR" };
        row.with("StartTime", seconds(client.scheduled))
            .with("EndTime", seconds(client.ended))
            .with("Status", outcome)
            .with("Error", client.error)
    };
    page(request, &[], Box::new(clients.into_iter().filter(move |client| !status || client.ended > 0).map(move |client| Ok(row(client)))))
}

fn cell(call: &Call, request: &proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    // Stock clients name the version behind the cell: `NC.X-V`.
    let (cell, version) = match request.cell_id.split_once('-') {
        Some((cell, version)) => (cell, version),
        None => (request.cell_id.as_str(), request.cell_version.as_str()),
    };
    let found = call.session.notebook_cell(&request.notebook_id, cell, version).map_err(|error| crate::status::of(&error))?;
    if request.r#type == "logs" {
        let lines = found.messages.into_iter().map(|line| Ok(Dict::new().with("message", line)));
        return page(request, &["message"], Box::new(lines));
    }
    let number = u64::try_from(request.table_id).ok().filter(|&number| number > 0).unwrap_or(1);
    let version = if version.is_empty() { found.current_version.as_str() } else { version };
    stored(call, request, &talon_server::cell_table(&request.notebook_id, cell, version, number))
}

fn notebooks(call: &Call, request: &proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    let found = call.session.notebooks(false).map_err(|error| call.failed(&error))?;
    let texts = |texts: &[String]| Value::list(texts.iter().map(|text| Value::str(text.as_str())));
    let row = |notebook: proto::NotebookMetadata| {
        Dict::new()
            .with("NotebookId", notebook.notebook_id)
            .with("Name", notebook.name)
            .with("Description", notebook.description)
            .with("Creation Time", notebook.created_time)
            .with("Modified Time", notebook.modified_time)
            .with("Creator", notebook.creator)
            .with("Collaborators", texts(&notebook.collaborators))
    };
    page(request, &["NotebookId", "Name", "Description"], Box::new(found.into_iter().map(|notebook| Ok(row(notebook)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Dict> {
        [("b", 2_i64), ("a", 10), ("c", 1)].into_iter().map(|(name, number)| Dict::new().with("N", name).with("V", number)).collect()
    }

    fn shown(request: &proto::GetTableRequest) -> (i64, Vec<String>) {
        let table = page(request, &["N"], Box::new(rows().into_iter().map(Ok))).unwrap();
        assert_eq!(table.columns, ["N", "V"]);
        (table.total_rows, table.rows.into_iter().map(|row| row.json).collect())
    }

    #[test]
    fn rows_are_sorted_filtered_and_cut() {
        let request = |change: fn(&mut proto::GetTableRequest)| {
            let mut request = proto::GetTableRequest::default();
            change(&mut request);
            shown(&request)
        };
        let texts = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>();
        assert_eq!(request(|_| {}), (3, texts(&[r#"["b",2]"#, r#"["a",10]"#, r#"["c",1]"#])));
        assert_eq!(request(|r| r.sort_column = "V".into()).1, texts(&[r#"["c",1]"#, r#"["b",2]"#, r#"["a",10]"#]));
        let descending = request(|r| {
            r.sort_column = "N".into();
            r.sort_direction = true;
            r.rows = 1;
        });
        assert_eq!(descending, (3, texts(&[r#"["c",1]"#])));
        let filtered = request(|r| {
            r.filter_column = "N".into();
            r.filter_regex = "!B".into();
            r.start_row = 1;
        });
        assert_eq!(filtered, (2, texts(&[r#"["c",1]"#])));
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        let request = proto::GetTableRequest { filter_column: "N".into(), filter_regex: "(".into(), ..Default::default() };
        assert!(page(&request, &[], Box::new(rows().into_iter().map(Ok))).is_err());
    }
}
