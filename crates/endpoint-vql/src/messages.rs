//! Messages between users of a server: `user_message()` leaves one, `user_messages()` reads them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use talon_acl::Authority;
use talon_ids::{Permission, Permissions};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Scope, Signature, Value};

/// The most messages that wait for one user; the oldest go first.
const MAX_WAITING: usize = 1000;
/// The most users that have messages.
const MAX_USERS: usize = 10_000;
/// The largest message in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// What waits, by organisation and user.
type Waiting = HashMap<(String, String), VecDeque<Arc<Dict>>>;

/// The messages of a server: an extension of the environment. Without it they reach the same query only.
#[derive(Default)]
pub struct UserMessages(Mutex<Waiting>);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("user_message", "Leaves a message for a user of this organisation; further arguments are part of it.")
            .args(const { &[Arg::required("user", ArgType::String, "The user."), Arg::optional("message", ArgType::Dict, "The message.")] })
            .free_form()
            .version(1),
        leave,
    );
    registry.plugin(
        Signature::plugin(
            "user_messages",
            "The messages that were left for the user who asks, or for another one, which takes the right to administer.",
        )
        .args(const { &[Arg::optional("clear", ArgType::Bool, "Forget them."), Arg::optional("user", ArgType::String, "Another user.")] })
        .version(1),
        read,
    );
}

fn place(scope: &Scope) -> Arc<UserMessages> {
    scope.extension::<UserMessages>().unwrap_or_else(|| scope.shared::<UserMessages>())
}

/// Who asks, and in which organisation.
fn principal(scope: &Scope) -> Result<(String, String), CallError> {
    let authority = scope.extension::<Authority>().ok_or("nobody asks: this query runs for no user")?;
    Ok((authority.org().to_string(), authority.principal().to_string()))
}

fn locked(messages: &UserMessages) -> MutexGuard<'_, Waiting> {
    messages.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn leave(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let (org, sender) = principal(scope)?;
    let mut message = call.dict("message").map(|message| Dict::clone(&message)).unwrap_or_default();
    for (name, value) in call.extras() {
        message.set(name.clone(), value.clone().materialized(scope));
    }
    let message = Dict::new().with("Timestamp", scope.now()).with("Sender", sender).with("Message", message);
    if message.weight() > MAX_SIZE {
        return Err("the message is too long".into());
    }
    let place = place(scope);
    let mut all = locked(&place);
    let key = (org, call.string("user"));
    if all.len() >= MAX_USERS && !all.contains_key(&key) {
        return Err("too many users have messages that nobody reads".into());
    }
    let waiting = all.entry(key).or_default();
    if waiting.len() >= MAX_WAITING {
        waiting.pop_front();
    }
    waiting.push_back(Arc::new(message));
    Ok(Value::Bool(true))
}

fn read(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope();
    let (org, mut user) = principal(scope)?;
    if let Some(other) = call.opt_string("user").filter(|other| !other.is_empty() && *other != user) {
        scope.check(Permissions::of(&[Permission::ServerAdmin]))?;
        user = other;
    }
    let place = place(scope);
    let mut all = locked(&place);
    let key = (org, user);
    let rows: Vec<Value> = all.get(&key).into_iter().flatten().cloned().map(Value::Dict).collect();
    if call.bool("clear") {
        all.remove(&key);
    }
    Ok(Rows::of(rows))
}

#[cfg(test)]
mod tests {
    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    #[test]
    fn messages_wait_for_their_user() {
        let messages = Arc::new(UserMessages::default());
        let log = Arc::new(MemoryLog::default());
        let scope_of = |user: &str| {
            let authority = Arc::new(Authority::endpoint(user.parse().unwrap(), EndpointPolicy::default()));
            crate::with_authority(Environment::new(Arc::new(crate::registry())), authority)
                .extension(messages.clone())
                .log(log.clone())
                .open()
        };
        let rows = |user: &str, vql: &str| -> Vec<String> {
            Query::new(&scope_of(user), &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
        };
        assert_eq!(rows("mike", "SELECT user_message(user='anna', message=dict(text='hi'), level=3) AS X FROM scope()"), [r#"{"X":true}"#]);
        assert!(rows("mike", "SELECT * FROM user_messages()").is_empty());
        let read = "SELECT Sender, Message FROM user_messages(clear=TRUE)";
        let message = r#"{"Sender":"mike","Message":{"text":"hi","level":3}}"#;
        assert_eq!((rows("anna", read), rows("anna", read).len()), (vec![message.to_owned()], 0));
    }

    #[test]
    fn messages_of_others_take_the_right_to_administer() {
        let log = Arc::new(MemoryLog::default());
        let authority = Arc::new(Authority::endpoint("mike".parse().unwrap(), EndpointPolicy::default()));
        let environment = Environment::new(Arc::new(crate::registry())).extension(authority).log(log.clone());
        let scope = environment.open();
        assert_eq!(Query::new(&scope, &parse_statement("SELECT * FROM user_messages(user='anna')").unwrap()).count(), 0);
        assert!(log.take().contains(&"user_messages: PermissionDenied: Permission denied: [SERVER_ADMIN]".to_owned()));
    }
}
