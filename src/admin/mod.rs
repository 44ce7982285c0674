//! The admin door: `/livez`, `/readyz`, `/metrics` over HTTP, on a thread of its own.
//!
//! Cores are asked for a snapshot of their counters through [`Control`]; nothing on the message path locks or
//! allocates for the metrics.

mod metrics;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router as Routes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::oneshot;

use crate::device::janitor::JanitorHandle;
use crate::net::core::{Control, Snapshot};
use crate::router::Broker;

/// A core that doesn't answer for so long is stuck in one turn, or gone.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(1);

/// Where the answers come from.
#[derive(Clone)]
pub struct Sources {
    /// By core.
    pub controls: Arc<[Arc<Control>]>,
    /// What every core knows.
    pub broker: Arc<Broker>,
    /// The files.
    pub janitor: JanitorHandle,
    /// False while stopping.
    pub is_ready: Arc<AtomicBool>,
}

/// The admin thread; ends when dropped.
pub struct Admin {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Serves on `listener`, non-blocking.
pub fn start(listener: TcpListener, sources: Sources) -> io::Result<Admin> {
    let (stop, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async move {
            if let Err(error) = serve(listener, sources, stopped).await {
                tracing::error!("the admin door has closed: {error}");
            }
        });
    })?;
    Ok(Admin { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Admin {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, sources: Sources, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let routes = Routes::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(serve_metrics))
        .with_state(sources);
    tokio::select! {
        result = async { axum::serve(listener, routes).await } => result,
        // Requests in progress are dropped: whoever asks a broker that stops can do without the answer.
        _ = stopped => Ok(()),
    }
}

async fn readyz(State(sources): State<Sources>) -> Response {
    if !sources.is_ready.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let snapshots = sources.snapshots();
    if snapshots.iter().any(Option::is_none) {
        return (StatusCode::SERVICE_UNAVAILABLE, "a core thread does not answer\n").into_response();
    }
    // Other shards go on, so the broker stays ready; who wants to be woken by this asks the metrics.
    let fenced: Vec<String> = snapshots
        .iter()
        .flatten()
        .flat_map(|core| &core.shards)
        .filter(|shard| shard.is_fenced)
        .map(|shard| format!("shard {} is fenced\n", shard.shard))
        .collect();
    (StatusCode::OK, format!("ok\n{}", fenced.concat())).into_response()
}

async fn serve_metrics(State(sources): State<Sources>) -> Response {
    match metrics::encode(&sources) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("encoding metrics: {error}\n")).into_response(),
    }
}

impl Sources {
    /// By core; `None` = it didn't answer. Blocks this thread, which has nothing else to do.
    fn snapshots(&self) -> Vec<Option<Snapshot>> {
        self.controls.iter().map(|control| control.snapshot(SNAPSHOT_PATIENCE)).collect()
    }
}
