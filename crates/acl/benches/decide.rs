//! The decision, as it is made before every call of every built-in: below 100 ns, and without allocation.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use talon_acl::{ArtifactFacts, Authority, CustomRole, Holder, Inventory, Policy, Role, Unrestricted, decide, escalations};
use talon_ids::{OrgId, Permission, Permissions};

fn decisions(c: &mut Criterion) {
    let policy = Policy::of_roles([Role::Investigator]);
    let alice = Authority::user("alice".parse().unwrap(), OrgId::root(), None, Some(&policy), Arc::new(Unrestricted));
    let (held, org) = (Permissions::of(&[Permission::ReadResults, Permission::CollectClient]), OrgId::root());
    let lockdown = Permissions::of(&[Permission::Execve]);
    c.bench_function("decide, permitted", |bencher| {
        bencher.iter(|| decide(black_box(alice.token()), black_box(held), &org, None, lockdown, &Unrestricted).is_ok());
    });
    let missing = Permissions::of(&[Permission::FilesystemRead]);
    c.bench_function("decide, refused", |bencher| {
        bencher.iter(|| decide(black_box(alice.token()), black_box(missing), &org, None, lockdown, &Unrestricted).is_ok());
    });
}

/// 1,000 users who share 50 roles, and 500 artifacts: below a second.
fn analysis(c: &mut Criterion) {
    let all: Vec<Permission> =
        Permission::ALL.iter().copied().filter(|p| !matches!(p, Permission::Publish | Permission::OrgAdmin)).collect();
    let role = |number: usize| {
        let held: Vec<_> =
            all.iter().copied().enumerate().filter(|(bit, _)| (number * 7919 + 13) >> (bit % 9) & 1 == 1).map(|(_, p)| p).collect();
        CustomRole::new(&format!("role{number}"), Permissions::of(&held)).ok()
    };
    let roles: Vec<CustomRole> = (1..60).filter_map(role).take(50).collect();
    let holder = |number: usize| {
        let role = roles.get(number % roles.len()).cloned().unwrap();
        Holder { name: format!("user{number}"), org: OrgId::root(), policy: Policy::default().with_custom_role(role) }
    };
    let artifact = |number: usize| ArtifactFacts {
        name: format!("Custom.A{number}"),
        custom: number.is_multiple_of(2),
        on_server: number.is_multiple_of(3),
        basic: number.is_multiple_of(17),
        parameters: true,
        uses: Permissions::of(&[Permission::Execve]),
        required: all.get(number % all.len()).copied().into_iter().collect(),
        ..ArtifactFacts::default()
    };
    let inventory = Inventory {
        holders: (0..1000).map(holder).collect(),
        roles: [(OrgId::root(), roles.iter().cloned().collect())].into(),
        artifacts: (0..500).map(artifact).collect(),
    };
    c.bench_function("escalations of 1000 users, 50 roles, 500 artifacts", |bencher| {
        bencher.iter(|| escalations(black_box(&inventory)).len());
    });
}

criterion_group!(benches, decisions, analysis);
criterion_main!(benches);
