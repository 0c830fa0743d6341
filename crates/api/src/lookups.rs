//! Small methods that look something up: favourites, requests of a flow, words of the language, places in a file.

use talon_ids::{FlowId, Target};
use talon_proto as proto;
use talon_vql::Kind;
use talon_vql::regex::Regex;
use tonic::Status;

use crate::service::Call;
use crate::stored;

/// Bytes of a file that one search looks at.
const SEARCHED: u64 = 64 << 20;
/// Bytes that are looked at together, and that the next look repeats: no hit is longer.
const WINDOW: usize = 1 << 20;
const OVERLAP: usize = 4 << 10;

pub(crate) fn get_user_favorites(call: Call, request: proto::Favorite) -> Result<proto::Favorites, Status> {
    let mut items = call.session.favorites(&request.r#type).map_err(|error| call.failed(&error))?;
    items.retain(|item| request.name.is_empty() || item.name == request.name);
    Ok(proto::Favorites { items })
}

/// What the agent was asked, without values that are not to be seen again.
pub(crate) fn get_flow_requests(call: Call, request: proto::ApiFlowRequest) -> Result<proto::ApiFlowRequestDetails, Status> {
    let missing = || Status::not_found(format!("Flow not found: {} in client '{}'", request.flow_id, request.client_id));
    let target: Target = crate::tables::target(&call.session, &request.client_id)?;
    let flow: FlowId = request.flow_id.parse().map_err(|_| missing())?;
    let context = call.session.org().flow(&target, &flow).map_err(|error| call.failed(&error))?.ok_or_else(missing)?;
    let collected = context.request.unwrap_or_default();
    let flow_request = proto::FlowRequest {
        vql_client_actions: collected.compiled_collector_args,
        max_rows: collected.max_rows,
        max_upload_bytes: collected.max_upload_bytes,
        ..proto::FlowRequest::default()
    };
    let message = proto::VeloMessage {
        session_id: flow.to_string(),
        request_id: 1,
        flow_request: Some(flow_request),
        ..proto::VeloMessage::default()
    };
    let page = |items: Vec<proto::VeloMessage>| {
        let skip = usize::try_from(request.offset).unwrap_or(usize::MAX);
        items.into_iter().skip(skip).collect()
    };
    Ok(proto::ApiFlowRequestDetails { items: page(vec![message]), ..proto::ApiFlowRequestDetails::default() })
}

/// Keywords, built-ins with their arguments, and artifacts.
pub(crate) fn get_keyword_completions(call: Call, (): ()) -> Result<proto::KeywordCompletions, Status> {
    const KEYWORDS: [&str; 11] = ["EXPLAIN", "SELECT", "FROM", "LET", "WHERE", "LIMIT", "GROUP BY", "ORDER BY", "DESC", "AND", "OR"];
    let keyword = |name: &&str| proto::Completion { name: (*name).to_owned(), r#type: "Keyword".into(), ..Default::default() };
    let mut items: Vec<_> = KEYWORDS.iter().map(keyword).collect();
    let environment = (call.service.options.environment)(&call.session);
    let scope = environment.open();
    for signature in scope.registry().signatures() {
        let argument = |arg: &talon_vql::Arg| proto::ArgDescriptor {
            name: arg.name.to_owned(),
            r#type: arg.ty.name().to_owned(),
            description: arg.doc.to_owned(),
            required: arg.required,
            ..proto::ArgDescriptor::default()
        };
        let permissions: Vec<_> = signature.permissions.iter().map(|permission| permission.name()).collect();
        let metadata = if permissions.is_empty() { None } else { Some(("permissions".to_owned(), permissions.join(","))) };
        items.push(proto::Completion {
            name: signature.name.to_owned(),
            description: signature.doc.to_owned(),
            r#type: if signature.kind == Kind::Plugin { "Plugin" } else { "Function" }.into(),
            args: signature.args.iter().map(argument).collect(),
            version: u64::try_from(signature.version).unwrap_or(0),
            free_form_args: signature.free_form,
            metadata: metadata.into_iter().collect(),
            ..proto::Completion::default()
        });
    }
    for (name, entry) in call.session.org().artifacts().entries() {
        let description = entry.definition.proto().description.clone();
        items.push(proto::Completion { name: format!("Artifact.{name}"), description, r#type: "Artifact".into(), ..Default::default() });
    }
    Ok(proto::KeywordCompletions { items })
}

/// The next place, or the one before, where a text, a pattern or bytes in hex occur in a stored file.
pub(crate) fn search_file(call: Call, request: proto::SearchFileRequest) -> Result<proto::SearchFileResponse, Status> {
    let wanted = match request.r#type.as_str() {
        "" | "string" => Wanted::Bytes(request.term.to_ascii_lowercase().into_bytes(), true),
        "regex" => {
            let pattern = Regex::ignoring_case(request.term.as_bytes());
            Wanted::Pattern(Box::new(pattern.map_err(|error| Status::invalid_argument(format!("term: {error}")))?))
        }
        "hex" => {
            let digits: String = request.term.chars().filter(|character| !character.is_whitespace()).collect();
            Wanted::Bytes(hex_bytes(&digits).ok_or_else(|| Status::invalid_argument("term is not hexadecimal"))?, false)
        }
        other => return Err(Status::invalid_argument(format!("unknown type of search {other}: must be string, regex or hex"))),
    };
    if request.term.is_empty() || request.term.len() > OVERLAP {
        return Err(Status::invalid_argument(format!("term has 1 to {OVERLAP} bytes")));
    }
    let read = |offset: u64, length: usize| {
        let piece = proto::VfsFileBuffer {
            components: request.vfs_components.clone(),
            offset,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            ..proto::VfsFileBuffer::default()
        };
        stored::read(&call, &piece)
    };
    let mut hit = None;
    let (mut looked, mut at) = (0_u64, request.offset);
    if !request.forward {
        at = request.offset.saturating_sub(SEARCHED);
    }
    while looked < SEARCHED {
        let window = read(at, WINDOW)?;
        if window.is_empty() {
            break;
        }
        for found in wanted.places(&window).into_iter().map(|found| at.saturating_add(found)) {
            if request.forward && found > request.offset {
                hit = Some(found);
                break;
            }
            if !request.forward && found < request.offset {
                hit = Some(found);
            }
        }
        let past = !request.forward && at >= request.offset;
        if (request.forward && hit.is_some()) || past || window.len() < WINDOW {
            break;
        }
        let step = u64::try_from(WINDOW.saturating_sub(OVERLAP)).unwrap_or(u64::MAX);
        at = at.saturating_add(step);
        looked = looked.saturating_add(step);
    }
    let Some(hit) = hit else { return Ok(proto::SearchFileResponse::default()) };
    Ok(proto::SearchFileResponse { vfs_components: request.vfs_components.clone(), hit })
}

/// What a search looks for.
enum Wanted {
    /// These bytes; letters of ASCII in any case when the flag is set.
    Bytes(Vec<u8>, bool),
    /// What fits.
    Pattern(Box<Regex>),
}

impl Wanted {
    /// Where it begins.
    fn places(&self, window: &[u8]) -> Vec<u64> {
        let at = |place: usize| u64::try_from(place).unwrap_or(u64::MAX);
        match self {
            Self::Bytes(bytes, fold) => {
                let same = |found: &[u8]| if *fold { found.eq_ignore_ascii_case(bytes) } else { found == bytes.as_slice() };
                window.windows(bytes.len().max(1)).enumerate().filter(|(_, found)| same(found)).map(|(place, _)| at(place)).collect()
            }
            Self::Pattern(pattern) => pattern.matches(window).filter_map(|groups| Some(at(groups.first().copied()??.start))).collect(),
        }
    }
}

fn hex_bytes(digits: &str) -> Option<Vec<u8>> {
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at.saturating_add(2))?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_any_bytes() {
        let window = b"ab\xffAB\x00ab";
        let text = Wanted::Bytes(b"ab".to_vec(), true);
        assert_eq!(text.places(window), [0, 3, 6]);
        assert_eq!(Wanted::Bytes(vec![0xff, b'A'], false).places(window), [2]);
        assert_eq!(Wanted::Pattern(Box::new(Regex::ignoring_case(b"b.a").unwrap())).places(b"xB-a"), [1]);
        assert_eq!(hex_bytes("ff41"), Some(vec![0xff, 0x41]));
        for bad in ["", "f", "zz", "\u{e9}\u{e9}"] {
            assert_eq!(hex_bytes(bad), None, "{bad}");
        }
    }
}
