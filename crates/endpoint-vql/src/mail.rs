//! `mail()`: sends a mail over SMTP, as plugin and as function.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};
use talon_acl::{Network, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, text};

use crate::authority::permit;
use crate::secrets;
use crate::web::{NetworkSettings, patiently};

/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The port on which TLS begins at once.
const TLS_PORT: u16 = 465;
/// The port unless the call says otherwise.
const PORT: u16 = 587;
/// The largest mail in bytes.
const MAX_BODY: usize = 25 << 20;

const ARGS: &[Arg] = &[
    Arg::required("to", ArgType::Strings, "Who gets it."),
    Arg::optional("from", ArgType::String, "Who sends it."),
    Arg::optional("cc", ArgType::Strings, "Who gets a copy."),
    Arg::optional("subject", ArgType::String, "The subject."),
    Arg::required("body", ArgType::String, "The text."),
    Arg::optional("period", ArgType::Int, "Seconds in which only one mail of this query is sent to the same addresses."),
    Arg::optional("server_port", ArgType::UInt, "The port: 587 unless given; on 465 TLS begins at once."),
    Arg::optional("server", ArgType::String, "The SMTP server."),
    Arg::optional("auth_username", ArgType::String, "The user."),
    Arg::optional("auth_password", ArgType::String, "The password."),
    Arg::optional("skip_verify", ArgType::Bool, "Accept any certificate."),
    Arg::optional("root_ca", ArgType::String, "A further authority to trust, in PEM."),
    Arg::optional("secret", ArgType::String, "The secret that has the server and the credentials."),
    Arg::optional("headers", ArgType::Dict, "Further headers, such as Content-Type."),
];

pub(crate) fn register(registry: &mut Registry) {
    const DOC: &str = "Sends a mail.";
    registry.plugin(Signature::plugin("mail", DOC).args(ARGS).permissions(&[Permission::Network]).version(2), |call| {
        Ok(Rows::one(outcome(&call)?))
    });
    registry.function(Signature::function("mail", DOC).args(ARGS).permissions(&[Permission::Network]).version(2), |call| {
        Ok(outcome(&call)?.into())
    });
}

/// When mails were sent to which addresses.
#[derive(Default)]
struct Sent(Mutex<HashMap<String, Duration>>);

fn outcome(call: &Call) -> Result<Dict, CallError> {
    let status = |text: &str| Dict::new().with("ErrorStatus", text);
    match send(call) {
        Ok(true) => Ok(status("Success")),
        Ok(false) => Ok(status("Suppressed: a mail was sent shortly before")),
        Err(error @ (CallError::Silent | CallError::Denied(_))) => Err(error),
        Err(error) => {
            call.log(format!("ERROR:{error}"));
            Ok(status(&error.to_string()))
        }
    }
}

/// False when a mail was sent to the same addresses shortly before.
fn send(call: &Call) -> Result<bool, CallError> {
    const KEPT: usize = 1000;
    let scope = call.scope();
    let permit: Permit<Network> = permit(scope)?;
    let secret = secrets::of_call(call, "SMTP Creds")?.unwrap_or_default();
    let given = |name: &str| call.opt_string(name).filter(|value| !value.is_empty()).or_else(|| secret.text(name).map(str::to_owned));
    let host = given("server").ok_or("server must name an SMTP server; configurations have none for mails")?;
    let message = message(call, &given("from").ok_or("from must say who sends the mail")?)?;
    if let Some(period) = call.opt_int("period").filter(|seconds| *seconds > 0) {
        let sent = scope.shared::<Sent>();
        let mut sent = sent.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = call.strings("to").join(",");
        let now = scope.elapsed();
        if sent.get(&key).is_some_and(|at| now.saturating_sub(*at) < Duration::from_secs(period.unsigned_abs())) {
            return Ok(false);
        }
        if sent.len() >= KEPT {
            sent.clear();
        }
        sent.insert(key, now);
    }
    let port = call.opt_uint("server_port").or_else(|| secret.text("server_port").and_then(|port| port.parse().ok()));
    let port = port.filter(|port| *port != 0).map_or(Ok(PORT), u16::try_from).map_err(|_| "server_port is no port")?;
    let skip_verify = call.bool("skip_verify") || secret.flag("skip_verify");
    let roots =
        format!("{}\n{}", given("root_ca").unwrap_or_default(), scope.extension::<NetworkSettings>().unwrap_or_default().root_certs);
    let mut tls = TlsParameters::builder(host.clone()).dangerous_accept_invalid_certs(skip_verify);
    for pem in certificates(&roots) {
        tls = tls.add_root_certificate(Certificate::from_pem(pem.as_bytes()).map_err(|error| CallError::failed(with_causes(&error)))?);
    }
    let tls = tls.build().map_err(|error| CallError::failed(with_causes(&error)))?;
    let credentials = given("auth_username").map(|user| Credentials::new(user, given("auth_password").unwrap_or_default()));
    // Passwords go over TLS only; without one a server may be too simple for TLS.
    let tls = match (port, credentials.is_some()) {
        (TLS_PORT, _) => Tls::Wrapper(tls),
        (_, true) => Tls::Required(tls),
        (_, false) => Tls::Opportunistic(tls),
    };
    let mut transport = SmtpTransport::builder_dangerous(host).port(port).tls(tls).timeout(Some(PATIENCE));
    if let Some(credentials) = credentials {
        transport = transport.credentials(credentials);
    }
    let transport = transport.build();
    patiently(&permit, scope, "vql mail", move || transport.send(&message).map_err(|error| CallError::failed(with_causes(&error))))?;
    Ok(true)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line = format!("{line}: {inner}");
        cause = inner.source();
    }
    line
}

/// The certificates in a text, each by itself.
fn certificates(pem: &str) -> impl Iterator<Item = String> {
    const END: &str = "-----END CERTIFICATE-----";
    pem.split_inclusive(END).filter(|piece| piece.contains("-----BEGIN CERTIFICATE-----")).map(str::to_owned)
}

fn message(call: &Call, from: &str) -> Result<Message, CallError> {
    let address =
        |text: &str| text.trim().parse::<Mailbox>().map_err(|error| CallError::failed(format!("{text:?} is no mail address: {error}")));
    let mut builder: MessageBuilder = Message::builder().from(address(from)?).subject(call.string("subject"));
    for to in call.strings("to") {
        builder = builder.to(address(&to)?);
    }
    for copy in call.strings("cc") {
        builder = builder.cc(address(&copy)?);
    }
    let body = call.string("body");
    if body.len() > MAX_BODY {
        return Err("the mail is too long".into());
    }
    for (name, value) in call.dict("headers").iter().flat_map(|headers| headers.iter()) {
        let name = HeaderName::new_from_ascii(name.as_str().to_owned())
            .map_err(|_| CallError::failed(format!("{:?} is no header", name.as_str())))?;
        let value = text::display(value);
        if value.contains(['\r', '\n']) {
            return Err("a header must be one line".into());
        }
        builder = builder.raw_header(HeaderValue::new(name, value));
    }
    builder.body(body).map_err(CallError::failed)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    fn rows(environment: Environment, vql: &str) -> Vec<String> {
        let scope = environment.open();
        Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).clock(Arc::new(crate::SystemClock::new()))
    }

    /// An SMTP server that knows the least, for one mail. Gives what it was told.
    fn server(listener: TcpListener) -> String {
        let (stream, _) = listener.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let mut told = String::new();
        out.write_all(b"220 test\r\n").unwrap();
        while let Some(line) = lines.next() {
            told.push_str(&format!("{line}\n"));
            let reply: &[u8] = if line == "DATA" { b"354 go on\r\n" } else { b"250 ok\r\n" };
            out.write_all(reply).unwrap();
            if line == "DATA" {
                for line in lines.by_ref().take_while(|line| line != ".") {
                    told.push_str(&format!("{line}\n"));
                }
                out.write_all(b"250 taken\r\n").unwrap();
            }
            if line == "QUIT" {
                break;
            }
        }
        told
    }

    #[test]
    fn a_mail_is_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || server(listener));
        let vql = format!(
            "SELECT mail(to=['a@example.org', 'B <b@example.org>'], cc='c@example.org', `from`='me@example.org', subject='Hi', body='one\n.\ntwo', \
             headers=dict(`X-Mark`='7'), server='127.0.0.1', server_port={port}).ErrorStatus AS S FROM scope()"
        );
        assert_eq!(rows(allowed(), &vql), [r#"{"S":"Success"}"#]);
        let told = server.join().unwrap();
        for line in
            ["MAIL FROM:<me@example.org>", "RCPT TO:<b@example.org>", "RCPT TO:<c@example.org>", "Subject: Hi", "X-Mark: 7", "\n..\n"]
        {
            assert!(told.contains(line), "{line} in {told}");
        }
    }

    #[test]
    fn a_password_needs_tls_and_headers_are_one_line() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || server(listener));
        let vql = format!(
            "SELECT ErrorStatus =~ 'TLS' AS S FROM mail(to='a@example.org', `from`='b@example.org', body='x', server='127.0.0.1', server_port={port}, auth_username='u', auth_password='hunter2')"
        );
        assert_eq!(rows(allowed(), &vql), [r#"{"S":true}"#]);
        let told = server.join().unwrap();
        assert!(!told.contains("AUTH") && !told.contains("hunter2"), "{told}");
        let split = "SELECT ErrorStatus FROM mail(to='a@example.org', `from`='b@example.org', body='x', server='127.0.0.1', headers=dict(`X-A`='b\r\nBcc: evil@example.org'))";
        assert_eq!(rows(allowed(), split), [r#"{"ErrorStatus":"a header must be one line"}"#]);
    }

    #[test]
    fn without_the_permission_no_mail_is_sent() {
        let log = Arc::new(MemoryLog::default());
        let environment = Environment::new(Arc::new(crate::registry())).log(log.clone());
        assert!(rows(environment, "SELECT * FROM mail(to='a@example.org', body='x', server='127.0.0.1')").is_empty());
        assert!(log.take().contains(&"mail: PermissionDenied: Permission denied: [NETWORK]".to_owned()));
    }
}
