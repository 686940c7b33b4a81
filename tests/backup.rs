//! A backup of a running server comes back whole: rooms, media, audit log; in a new epoch, without one-time keys.

use heya::{
    audit::{self, Verdict},
    backup,
    clock::Clock,
    config::Config,
    rooms::committer::Hint,
    server::Server,
    store,
};

fn config(data: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.open_profile(false).unwrap();
    config.server.server_name = "test.example".to_owned();
    config.server.data_dir = data.to_owned();
    config
}

#[tokio::test]
async fn what_was_backed_up_comes_back() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = std::env::temp_dir().join(format!("heya-backup-{}", heya::clock::random_token(12)));
    std::fs::create_dir(&place).unwrap();
    let (data, saved, restored) = (place.join("data"), place.join("saved"), place.join("restored"));
    let (server, _task) = Server::open(config(&data), Clock::default()).await.unwrap();
    let blob = audit::hex(&<sha2::Sha256 as sha2::Digest>::digest(b"photo"));
    let file = data.join("media").join(&blob[..2]).join(&blob);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, b"photo").unwrap();
    let medium = store::media::Medium {
        media_id: "m1".to_owned(),
        user_id: "@a:test.example".to_owned(),
        sha256: blob.clone(),
        content_type: "image/png".to_owned(),
        file_name: None,
        bytes: 5,
    };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::media::insert(batch.sql().await?, &medium, 1).await?;
                let position = batch.next_position();
                let key = ("signed_curve25519", "AAA");
                // As in every city, whose start writes one: before the first entry there is no file of heads to copy, and
                // entries that come between it and the copy of the database would rightly be called unproved.
                batch.audit(audit::Entry { action: "start".to_owned(), ..audit::Entry::default() });
                store::keys::put_one_time_key(batch.sql().await?, "@a:test.example", "D", key, "{}", position)
                    .await
            })
        })
        .await
        .unwrap();
    // The city goes on writing while the backup is made.
    let busy = std::sync::Arc::clone(&server);
    let writing = tokio::spawn(async move {
        for i in 0..400 {
            busy.commit(Hint::default(), move |batch| {
                Box::pin(async move {
                    batch.audit(audit::Entry { at: i, action: format!("a{i}"), ..audit::Entry::default() });
                    Ok(())
                })
            })
            .await
            .unwrap();
        }
    });
    let manifest = backup::write(&config(&data), &saved, 1).await.unwrap();
    writing.await.unwrap();
    assert_eq!(manifest.blobs, 1);
    assert!(backup::write(&config(&data), &saved, 1).await.is_err(), "an existing folder was written over");
    assert!(backup::restore(&config(&data), &saved).await.is_err(), "restored into a folder in use");
    assert!(!saved.join("keys").exists(), "keys are in the backup");

    backup::restore(&config(&restored), &saved).await.unwrap();
    let (again, _task) = Server::open(config(&restored), Clock::default()).await.unwrap();
    assert_ne!(again.epoch, server.epoch);
    assert_eq!(again.live.position(), manifest.position);
    let verdict = audit::verify(&again.db, &restored.join("audit/heads")).await.unwrap();
    assert!(matches!(verdict, Verdict::Whole { .. }), "{verdict:?}");
    let mut conn = again.db.read().await.unwrap();
    let keys = store::keys::one_time_key_counts(&mut conn, "@a:test.example", "D").await.unwrap();
    assert!(keys.is_empty(), "a one-time key could be handed out twice");
    assert_eq!(std::fs::read(restored.join("media").join(&blob[..2]).join(&blob)).unwrap(), b"photo");

    // A damaged backup is refused before anything is written.
    std::fs::write(saved.join("heya.sqlite"), b"damaged").unwrap();
    let third = place.join("third");
    assert!(backup::restore(&config(&third), &saved).await.is_err());
    assert!(!third.join("heya.sqlite").exists());
    std::fs::remove_dir_all(place).unwrap();
}
