//! Messages on the wire: headers, a blank line, a JSON body. The length of a body is checked before memory is taken for it.

use std::io::{self, BufRead, Read};

use lsp_server::Message;

use crate::LanguageServerError;

/// The largest message that is read; larger ones are passed over.
const MAX_BODY: u64 = 32 << 20;
/// The largest message that is passed over.
const MAX_SKIPPED: u64 = 1 << 30;
/// The longest line of a header.
const MAX_HEADER: u64 = 4 << 10;
/// The most headers of one message.
const MAX_HEADERS: usize = 32;

/// The next message. Bodies that are no messages are passed over; `None` at the end of the input.
pub(crate) fn read(input: &mut impl BufRead) -> Result<Option<Message>, LanguageServerError> {
    while let Some(length) = length(input)? {
        if length > MAX_BODY {
            if length > MAX_SKIPPED {
                return Err(LanguageServerError::Protocol("a message is far too long"));
            }
            io::copy(&mut input.by_ref().take(length), &mut io::sink())?;
            tracing::warn!(length, "a message of the editor is too long and was passed over");
            continue;
        }
        let mut body = Vec::new();
        input.by_ref().take(length).read_to_end(&mut body)?;
        if (body.len() as u64) < length {
            return Ok(None);
        }
        match serde_json::from_slice(&body) {
            Ok(message) => return Ok(Some(message)),
            Err(error) => tracing::warn!(%error, "a message of the editor is malformed and was passed over"),
        }
    }
    Ok(None)
}

/// The length in the headers of the next message.
fn length(input: &mut impl BufRead) -> Result<Option<u64>, LanguageServerError> {
    let mut length = None;
    for _ in 0..MAX_HEADERS {
        let mut line = Vec::new();
        input.by_ref().take(MAX_HEADER).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        let Some(line) = line.strip_suffix(b"\n") else {
            return Err(LanguageServerError::Protocol("a header is too long"));
        };
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if line.is_empty() {
            return match length {
                Some(length) => Ok(Some(length)),
                None => Err(LanguageServerError::Protocol("a message has no Content-Length")),
            };
        }
        let Some((name, value)) = line.split_once(':') else {
            return Err(LanguageServerError::Protocol("a header has no colon"));
        };
        if name.trim().eq_ignore_ascii_case("content-length") {
            let value = value.trim().parse().map_err(|_| LanguageServerError::Protocol("Content-Length is no number"))?;
            length = Some(value);
        }
    }
    Err(LanguageServerError::Protocol("a message has too many headers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &str) -> String {
        format!("Content-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn messages_are_read_and_rubbish_is_passed_over() {
        let text = format!(
            "{}content-type: x\r\n{}{}",
            frame("{rubbish"),
            frame(r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#),
            frame(r#"{"method":"b"}"#)
        );
        let mut input = text.as_bytes();
        assert!(matches!(read(&mut input).unwrap(), Some(Message::Request(request)) if request.method == "a"));
        assert!(matches!(read(&mut input).unwrap(), Some(Message::Notification(note)) if note.method == "b"));
        assert!(read(&mut input).unwrap().is_none());
        assert!(read(&mut &b"Content-Length: 10\r\n\r\n{}"[..]).unwrap().is_none());
    }

    #[test]
    fn broken_framing_ends_the_session_without_taking_memory() {
        for text in [
            "Content-Length: 99999999999999\r\n\r\n",
            "Content-Length: x\r\n\r\n",
            "\r\n",
            "nonsense\r\n\r\n",
            &"a:b\r\n".repeat(100),
            &"x".repeat(9000),
        ] {
            assert!(matches!(read(&mut text.as_bytes()), Err(LanguageServerError::Protocol(_))), "{text:.40}");
        }
        assert!(read(&mut &b"Content-Length: 99999999\r\n\r\n{}"[..]).unwrap().is_none());
    }
}
