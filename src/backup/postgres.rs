//! PostgreSQL's own tools: `pg_dump` writes the database into one file, `pg_restore` loads it, in one transaction.

use std::{path::Path, process::Command};

use crate::{
    error::{Error, Result},
    store,
};

/// The longest part of a tool's own words that is passed on, in characters.
const WORDS_MAX: usize = 2_000;

/// Dumps the database as of a snapshot that another connection holds.
pub async fn dump(url: &str, snapshot: &str, to: &Path) -> Result<()> {
    let mut command = tool("pg_dump", url)?;
    command.args(["--format=custom", "--no-owner", "--no-privileges"]);
    command.arg(format!("--snapshot={snapshot}"));
    command.arg("--file").arg(to);
    run("pg_dump", command).await?;
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

/// Loads a dump into an empty database: all of it or nothing.
pub async fn load(url: &str, from: &Path) -> Result<()> {
    let mut command = tool("pg_restore", url)?;
    command.args(["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges"]);
    // Without this it writes a script; an empty name is the one in the environment.
    command.arg("--dbname=").arg(from);
    run("pg_restore", command).await
}

/// A tool with the database's address in its environment: a command line is seen by everybody on the machine.
fn tool(name: &str, url: &str) -> Result<Command> {
    let mut command = Command::new(name);
    command.envs(store::libpq(url)?).arg("--no-password");
    Ok(command)
}

async fn run(name: &'static str, mut command: Command) -> Result<()> {
    let done = tokio::task::spawn_blocking(move || command.output()).await?;
    let done = match done {
        Ok(done) => done,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::internal(format!(
                "{name} がありません。PostgreSQL のクライアント（サーバーと同じか新しい版。Debian では postgresql-client）を入れてください。 \
                 {name} was not found: install the PostgreSQL client, of the server's version or newer (Debian: \
                 postgresql-client)"
            )));
        }
        Err(error) => return Err(Error::internal(format!("{name}: {error}"))),
    };
    if done.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&done.stderr).trim().chars().take(WORDS_MAX).collect();
    Err(Error::internal(format!("{name} が失敗しました ({name} failed): {words}")))
}
