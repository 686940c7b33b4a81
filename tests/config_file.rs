//! The shipped `config.toml` lists every setting with its default.

use heya::config::Config;

#[test]
fn the_shipped_file_is_the_default() {
    let shipped = Config::parse(&std::fs::read_to_string("config.toml").unwrap()).unwrap();
    let default = Config::default();
    assert_eq!(format!("{shipped:#?}"), format!("{default:#?}"));
}

#[test]
fn the_shipped_file_names_every_setting_once_with_a_comment() {
    let text = std::fs::read_to_string("config.toml").unwrap();
    let table: toml::Table = text.parse().unwrap();
    let source = std::fs::read_to_string("src/config.rs").unwrap();
    for (section, value) in &table {
        let Some(settings) = value.as_table() else { panic!("{section} is no section") };
        for setting in settings.keys() {
            assert!(
                source.contains(&format!("pub {setting}:")),
                "{section}.{setting} is not in src/config.rs"
            );
        }
    }
    // One comment each, on its line or on the last line of its value.
    let mut waits: Option<&str> = None;
    for line in text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.trim().is_empty()) {
        let quotes = line.matches("\"\"\"").count();
        match (waits, quotes) {
            (None, 1) => waits = Some(line),
            (Some(_), 0) => {}
            _ => {
                assert!(line.contains("  # "), "no comment: {}", waits.unwrap_or(line));
                waits = None;
            }
        }
    }
    let shipped = table.values().filter_map(|v| v.as_table()).map(toml::Table::len).sum::<usize>();
    // `pub` fields of the section structs, less the one that no file sets and those of `Config` and `Link`.
    let fields = source.lines().filter(|line| line.starts_with("    pub ") && line.ends_with(',')).count();
    assert_eq!(shipped, fields - 1 - 12 - 2, "config.toml and src/config.rs differ");
}

#[test]
fn problems_are_told_together() {
    let text =
        "[server]\npublic_url = \"ftp://x\"\ninternal_listen = \"0.0.0.0:1\"\n[mail]\ntemplate = \"x\"\n";
    let error = Config::parse(text).unwrap_err().to_string();
    for part in ["public_url", "internal_listen", "mail.template"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(Config::parse("[server]\nlistem = \"x\"\n").is_err(), "an unknown key was taken");
}
