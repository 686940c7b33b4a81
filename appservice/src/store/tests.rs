//! The store's promises: no newer file, no illegal change, order within a lane.

use super::*;

fn file(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("heya-city-store-{name}-{}.sqlite", std::process::id()))
}

fn remove(path: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let path = file("newer");
    let store = Store::open(&path).await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&store.pool).await.unwrap();
    store.pool.close().await;
    assert!(matches!(Store::open(&path).await, Err(Error::NewerDatabase { found: 99, known: 5 })));
    remove(&path);
}

#[tokio::test]
async fn states_change_only_legally_and_are_kept() {
    let path = file("states");
    let store = Store::open(&path).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let origin = Origin { room_id: "!r", event_id: "$e", sender: "@p1", by_staff: false };
    let action = Action::Close { place: crate::cases::Place::default() };
    assert_eq!(file_case(&mut tx, origin, &action).await.unwrap(), Filed::New(1));
    assert_eq!(file_case(&mut tx, origin, &action).await.unwrap(), Filed::Known(1));
    let later = Origin { event_id: "$f", ..origin };
    assert_eq!(file_case(&mut tx, later, &action).await.unwrap(), Filed::Open(1));
    assert!(matches!(
        change_case(&mut tx, 1, State::Done, "@s", None).await,
        Err(Error::IllegalChange { case: 1 })
    ));
    change_case(&mut tx, 1, State::Refused, "@s", Some("理由")).await.unwrap();
    let kept = case(&mut tx, 1).await.unwrap().unwrap();
    assert_eq!((kept.decided_by.as_deref(), kept.reason.as_deref()), (Some("@s"), Some("理由")));
    assert_eq!(file_case(&mut tx, later, &action).await.unwrap(), Filed::New(2));
    let history: i64 =
        sqlx::query_scalar("SELECT count(*) FROM case_history").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(history, 3);
    tx.commit().await.unwrap();
    remove(&path);
}

#[tokio::test]
async fn a_waiting_task_holds_its_lane_only() {
    let path = file("lanes");
    let store = Store::open(&path).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    for (room, key) in [("!a", "1"), ("!a", "2"), ("!b", "3")] {
        enqueue(&mut tx, NewTask::say(room, key.to_owned(), String::new())).await.unwrap();
    }
    tx.commit().await.unwrap();
    let served = std::collections::HashMap::new();
    let first = store.due(0, &served).await.unwrap().unwrap();
    assert_eq!(first.key, "1");
    store.postpone(first.id, 100).await.unwrap();
    assert_eq!(store.due(0, &served).await.unwrap().unwrap().key, "3");
    assert_eq!(store.next_due().await.unwrap(), Some(0));
    assert_eq!(store.due(100, &served).await.unwrap().unwrap().key, "1");
    // The lane that was served last comes after the others.
    let served = std::collections::HashMap::from([("!a".to_owned(), 1)]);
    assert_eq!(store.due(100, &served).await.unwrap().unwrap().key, "3");
    remove(&path);
}

#[tokio::test]
async fn a_purge_takes_the_subjects_own_files_first() {
    let path = file("files");
    let store = Store::open(&path).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    for n in 0..150 {
        remember_application_file(&mut tx, &format!("$old{n}"), ("mxc://x/y", "a.csv"), "@s:x")
            .await
            .unwrap();
    }
    let key = crate::cases::subject_key("山田 太郎", "1940-05-01");
    for (event, subject) in
        [("$new", key.as_str()), ("$nameless", "山田太郎|"), ("$other", "鈴木花|1941-01-02")]
    {
        remember_application_file(&mut tx, event, ("mxc://x/y", "a.csv"), "@s:x").await.unwrap();
        remember_subjects(&mut tx, event, &[subject.to_owned()].into()).await.unwrap();
    }
    // The subject's own are the newest, whatever the clock said: those that go first go for being its own.
    sqlx::raw_sql(
        "UPDATE application_files SET posted_at = CASE WHEN event_id LIKE '$old%' THEN 1 ELSE 3 END",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    let files = applications::files_to_forget(&mut tx, &key, 2).await.unwrap();
    assert_eq!((&files[..2], files.len()), (["$nameless".to_owned(), "$new".to_owned()].as_slice(), 100));
    // The next purge goes on with those that are left.
    applications::forget_files(&mut tx, &key, 2).await.unwrap();
    assert_eq!(applications::files_to_forget(&mut tx, &key, 2).await.unwrap().len(), 52);
    tx.commit().await.unwrap();
    remove(&path);
}
