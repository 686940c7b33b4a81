//! The homeserver's side of the mail calls: leases that a test hands out, reports that a test reads.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::Json,
    routing::post,
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, watch},
};

use crate::harness::TOKEN;

pub struct Homeserver {
    pub url: String,
    leases: mpsc::UnboundedSender<Value>,
    reports: mpsc::UnboundedReceiver<(String, Value)>,
    bridges: watch::Sender<u32>,
}

struct Shared {
    leases: Mutex<mpsc::UnboundedReceiver<Value>>,
    reports: mpsc::UnboundedSender<(String, Value)>,
    bridges: watch::Receiver<u32>,
}

impl Homeserver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (leases, lease_receiver) = mpsc::unbounded_channel();
        let (report_sender, reports) = mpsc::unbounded_channel();
        let (bridges, bridge_receiver) = watch::channel(0);
        let shared = Arc::new(Shared {
            leases: Mutex::new(lease_receiver),
            reports: report_sender,
            bridges: bridge_receiver,
        });
        let router = Router::new()
            .route("/_heya/v1/mail/lease", post(lease))
            .route("/_heya/v1/mail/{what}", post(report))
            .with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, leases, reports, bridges }
    }

    /// Ends the long polls of a bridge that died, so that they lease nothing any more.
    pub fn bridge_died(&self) {
        self.bridges.send_modify(|bridges| *bridges += 1);
    }

    /// Answers the next long poll with this mail.
    pub fn owe(&self, mail: Value) {
        self.leases.send(mail).unwrap();
    }

    pub async fn next_report(&mut self) -> (String, Value) {
        let wait = std::time::Duration::from_secs(20);
        tokio::time::timeout(wait, self.reports.recv()).await.expect("no report came").unwrap()
    }

    pub fn assert_silent(&mut self) {
        assert_eq!(self.reports.try_recv().ok(), None);
    }
}

async fn lease(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    check(&headers)?;
    let mut bridges = shared.bridges.clone();
    bridges.mark_unchanged();
    let mail = tokio::select! {
        biased;
        _ = bridges.changed() => None,
        mail = async { shared.leases.lock().await.recv().await } => mail,
    };
    let mail = mail.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(Json(json!({"mails": [mail]})))
}

async fn report(
    State(shared): State<Arc<Shared>>,
    Path(what): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    check(&headers)?;
    shared.reports.send((what, body)).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(Json(json!({})))
}

fn check(headers: &HeaderMap) -> Result<(), StatusCode> {
    let is_known = headers
        .get("authorization")
        .is_some_and(|token| token.as_bytes() == format!("Bearer {TOKEN}").as_bytes());
    if is_known { Ok(()) } else { Err(StatusCode::UNAUTHORIZED) }
}
