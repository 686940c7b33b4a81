//! What the tree looks like: imports point down, and a few things appear in one place only.

use std::path::{Path, PathBuf};

/// The layers, from the top. A file may use its own layer and those below it.
const LAYERS: &[&[&str]] = &[
    &["parts"],
    &["serve", "backup"],
    &["api"],
    &["export", "originals", "registers"],
    &[
        "appservices",
        "search",
        "keys",
        "sync",
        "reading",
        "push",
        "media",
        "http",
        "server",
        "accounts",
        "rooms",
        "voip",
    ],
    &["audit", "store", "tls"],
    &["files", "config", "clock", "error"],
];

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn module(path: &Path) -> String {
    let part = path.components().nth(1).unwrap().as_os_str().to_string_lossy().into_owned();
    part.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for path in sources("src") {
        let from = module(&path);
        let Some(at) = layer(&from) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for to in LAYERS.iter().take(at).flat_map(|layer| layer.iter()) {
            if flat.contains(&format!("crate::{to}::")) || flat.contains(&format!("use crate::{to};")) {
                wrong.push(format!("{} uses crate::{to}, which is above it", path.display()));
            }
        }
    }
    // The store names the types of the rows it reads and writes, which are the rooms' own.
    wrong.retain(|line| !(line.starts_with("src/store/") && line.contains("crate::rooms")));
    assert!(
        wrong.is_empty(),
        "Imports point down only (ARCHITECTURE.md). Hand a value up instead, or move what both need down:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_module_has_its_layer() {
    for path in sources("src") {
        let name = module(&path);
        let outside = ["main", "lib", "command", "demo"].contains(&name.as_str());
        assert!(outside || layer(&name).is_some(), "src/{name} has no layer in tests/tidy.rs");
    }
}

#[test]
fn some_things_have_one_place() {
    for (what, word, places) in [
        ("certificates are parsed by tls only", "x509_parser", &["src/tls/"][..]),
        ("SQL connections are made by store only", "sqlx::query", &["src/store/"][..]),
        ("passwords are hashed in one place", "argon2::", &["src/accounts/passwords.rs"][..]),
        ("bot and bridge are known to parts only", "heya_city::", &["src/parts.rs"][..]),
        ("bot and bridge are known to parts only", "heya_mail::", &["src/parts.rs"][..]),
        (
            "transactions begin in the committer",
            ".begin()",
            &["src/rooms/committer.rs", "src/backup/", "src/store/"][..],
        ),
    ] {
        for path in sources("src") {
            let shown = path.to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let used = text.lines().any(|line| line.contains(word) && !line.trim_start().starts_with("//"));
            assert!(
                !used || places.iter().any(|place| shown.starts_with(place)),
                "{what}: {shown} has {word}"
            );
        }
    }
}

#[test]
fn nothing_unfinished_is_left() {
    for folder in ["src", "appservice/src", "bridges/email/src"] {
        for path in sources(folder) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} does not say what it is", path.display());
            for word in ["todo!(", "unimplemented!(", "TODO", "FIXME", "dbg!("] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

/// Telephone numbers begin with 0 and another digit, `0000-…` is nobody's; municipalities have a domain of their own.
#[test]
fn no_real_numbers_or_addresses() {
    let number = regex::Regex::new(r"\b0[1-9][0-9]{0,3}-[0-9]{1,4}-[0-9]{3,4}\b").unwrap();
    let municipal = ["lg", ".jp"].concat();
    let mut folders = vec![PathBuf::from(".")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let ours = !name.starts_with('.')
                    && !["target", "node_modules", "data", "demo-data", "screenshots"]
                        .contains(&name.as_str());
                if ours {
                    folders.push(path);
                }
                continue;
            }
            let read = ["rs", "py", "mjs", "md", "toml", "html", "css", "sql", "tsv", "txt"];
            if !path.extension().is_some_and(|e| read.iter().any(|known| e == *known)) {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains(&municipal), "{} has an address of a municipality", path.display());
            let found = number.find(&text).map(|found| found.as_str().to_owned());
            assert_eq!(found, None, "{} has a telephone number", path.display());
        }
    }
}
