//! What queries of cases may call beside everything else.

use talon_server::Session;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use super::echo::Echo;
use super::world::{CaseClock, CaseLog, Files};

pub(super) fn register(registry: &mut Registry) {
    registry.plugin(Signature::plugin("test_read_logs", "Takes the lines out of the case's log."), read_logs);
    registry.function(
        Signature::function("mock_time", "Moves the date of the case.").args(talon_vql::args![Arg::required(
            "now",
            ArgType::Time,
            "The moment."
        )]),
        mock_time,
    );
    registry.function(
        Signature::function("write_filestore", "Writes a file of the organisation's store.").args(talon_vql::args![
            Arg::required("data", ArgType::String, "The content."),
            Arg::required("path", ArgType::Path, "The path, as the accessor fs has it."),
        ]),
        write_filestore,
    );
    registry.function(Signature::function("httpbin", "The address of a local HTTP server that echoes requests."), httpbin);
}

fn read_logs(call: Call) -> Result<Rows, CallError> {
    let lines = call.scope().extension::<CaseLog>().map(|log| log.take()).unwrap_or_default();
    Ok(Rows::of(lines.into_iter().map(|line| Dict::new().with("Log", format!("Velociraptor: {line}\n")))))
}

fn mock_time(call: Call) -> Result<Value, CallError> {
    let clock = call.scope().extension::<CaseClock>().ok_or("this is no case")?;
    let moment = call.time("now").ok_or("Field now is required")?;
    clock.set(moment);
    Ok(moment.into())
}

fn httpbin(call: Call) -> Result<Value, CallError> {
    let echo = call.scope().extension::<Echo>().ok_or("this is no case")?;
    Ok(echo.address()?.into())
}

fn write_filestore(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let (files, session) = (scope.extension::<Files>().ok_or("this is no case")?, scope.extension::<Session>().ok_or("this is no case")?);
    let path = call.path("path").ok_or("Field path is required")?;
    let components = path.components().iter().map(|part| part.to_str().into_owned()).collect();
    files.write(session.org().id(), components, call.bytes("data").to_vec()).map_err(CallError::failed)?;
    Ok(true.into())
}
