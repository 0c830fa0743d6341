//! The answers of a frontend, byte for byte as agents know them: statuses, texts and headers.

use bytes::Bytes;
use hyper::header::{
    CONNECTION, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, SEC_WEBSOCKET_ACCEPT, UPGRADE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};

use crate::body::Answer;
use crate::routes::encode;
use crate::{PublicFile, Rejection};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const CONFLICT: &str = "Another Client connection exists. Only a single instance of the client is allowed to connect at the same time.";

/// The one place where refusals become statuses and texts.
pub(crate) fn face(rejection: Rejection) -> (u16, &'static str) {
    match rejection {
        Rejection::Unreadable => (403, ""),
        Rejection::PleaseEnrol => (406, "Please Enrol"),
        Rejection::Conflict => (409, CONFLICT),
        Rejection::EnrolmentFailed | Rejection::Overloaded => (503, ""),
    }
}

/// A refused packet.
pub(crate) fn rejected(rejection: Rejection) -> Response<Answer> {
    let (status, text) = face(rejection);
    error(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), text)
}

/// The answer that turns a connection into a WebSocket.
pub(crate) fn switching(accepted: HeaderValue) -> Response<Answer> {
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accepted);
    response
}

/// An error answer: the text, a newline, and the headers that keep a browser from guessing.
pub(crate) fn error(status: StatusCode, text: &str) -> Response<Answer> {
    let mut response = whole(status, format!("{text}\n").into());
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Answer> {
    whole(status, Bytes::new())
}

/// The answer to a public file that is not there.
pub(crate) fn no_file() -> Response<Answer> {
    let mut response = whole(StatusCode::NOT_FOUND, Bytes::from_static(b"Not Found"));
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// The answer to a path that has a plainer form.
pub(crate) fn redirect(to: &str) -> Response<Answer> {
    let link = to.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;").replace('<', "&lt;").replace('>', "&gt;");
    let mut response = whole(StatusCode::TEMPORARY_REDIRECT, format!("<a href=\"{link}\">Temporary Redirect</a>.\n\n").into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if let Ok(location) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// A public file.
pub(crate) fn file(file: PublicFile) -> Response<Answer> {
    let disposition = format!("attachment; filename={}", encode(&file.name).replace('/', "%2F"));
    let mut response = Response::new(Answer::File(file));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("binary/octet-stream"));
    if let Ok(value) = HeaderValue::from_str(&disposition) {
        response.headers_mut().insert(CONTENT_DISPOSITION, value);
    }
    response
}

/// A 200 that is flushed before its body is known.
pub(crate) fn streamed(body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// The same, for a body with pads: keeps a proxy in front from holding them back.
pub(crate) fn padded(body: Answer) -> Response<Answer> {
    let mut response = streamed(body);
    response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

fn whole(status: StatusCode, body: Bytes) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Some(body).filter(|body| !body.is_empty())));
    *response.status_mut() = status;
    response
}
