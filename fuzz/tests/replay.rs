//! Every input of the corpora, without a fuzzer.

use std::fs;
use std::path::Path;

use talon_fuzz::TARGETS;

fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), fs::read(&path).unwrap())
        })
        .collect()
}

#[test]
fn corpora_are_replayed() {
    for (target, run) in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for (name, data) in inputs {
            println!("{name}");
            run(&data);
        }
    }
}

/// Each seed cut at every byte and with every byte changed: what a fuzzer tries first.
#[test]
fn simple_mutations_are_survived() {
    for (target, run) in TARGETS {
        for (name, data) in inputs(target) {
            println!("{name}");
            let step = (data.len() / 60).max(1);
            for at in (0..data.len()).step_by(step) {
                run(&data[..at]);
                let mut changed = data.clone();
                changed[at] ^= 1 << (at % 8);
                run(&changed);
            }
        }
    }
}

#[test]
fn every_target_and_corpus_is_listed() {
    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let mut listed = TARGETS.map(|(name, _)| name.to_owned());
    listed.sort();
    assert_eq!(names("fuzz_targets"), listed);
    assert_eq!(names("corpus"), listed);
}
