//! The signatures of all built-ins as one reviewed table: names, arguments and versions are what stored queries and artifacts rely on.

use talon_vql::{Kind, Signature};

/// One line for one built-in.
fn line(signature: &Signature) -> String {
    let kind = match signature.kind {
        Kind::Plugin => "plugin",
        Kind::Function => "function",
    };
    let mut line = format!("{kind} {}", signature.name);
    if signature.version != 0 {
        line.push_str(&format!(" v{}", signature.version));
    }
    if !signature.permissions.is_empty() {
        line.push_str(&format!(" {}", signature.permissions));
    }
    for arg in signature.args {
        line.push_str(&format!(" {}:{}{}", arg.name, arg.ty.name(), if arg.required { "!" } else { "" }));
    }
    if signature.free_form {
        line.push_str(" …");
    }
    line.push('\n');
    line
}

#[test]
fn the_table_is_reviewed() {
    let registry = crate::registry();
    let table: String = registry.signatures().map(line).collect();
    expect_test::expect_file!["signatures.txt"].assert_eq(&table);
}
