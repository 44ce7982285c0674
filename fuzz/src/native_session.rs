//! A whole connection of the native door: its bytes, and answers that are errors, in another order than they were asked.

use ringmain::frontend::native::{NativeConfig, NativeSession};
use ringmain::frontend::{Outbox, Received, Session, View};
use ringmain::request::{Failure, Now, Reply, Request};
use ringmain::shard::Catalog;
use ringmain_wire::ErrorCode;

const ANSWERS_MAX_BYTES: usize = 64 << 20;

pub fn run(input: &[u8]) {
    let catalog = Catalog::default();
    let view = View { now: Now { monotonic_us: 1000, wall_ms: 1_800_000_000_000 }, catalog: &catalog, memory_bytes: 1 << 30 };
    let mut session = NativeSession::new(NativeConfig { cluster_id: 7, max_request_bytes: 1 << 20, max_in_flight: 8 });
    let (mut out, mut pending, mut at, mut answers) = (Outbox::default(), Vec::new(), 0, 0u16);
    // Each step takes bytes or answers something, so there can't be many.
    for _ in 0..100_000 {
        let mut waits = session.closing().is_some() || session.in_flight() >= session.max_in_flight();
        if !waits {
            match session.receive(&input[at..], &view, &mut out) {
                Err(error) => return assert!(!error.message.is_empty()),
                Ok(Received::More { needed_bytes }) => {
                    assert!(needed_bytes == 0 || needed_bytes > input.len() - at, "{needed_bytes} bytes wanted that are there");
                    waits = true;
                }
                Ok(Received::Request { consumed_bytes, id, request }) => {
                    if let Request::Produce { frame, .. } = &request {
                        frame.verify_body().expect("a frame is checked before it is passed on");
                    }
                    at += consumed_bytes;
                    pending.push(id);
                }
                Ok(Received::Handled { consumed_bytes }) => at += consumed_bytes,
            }
        }
        if waits {
            // The latest first: other cores answer when they like.
            let Some(id) = pending.pop() else { return };
            answers += 1;
            let failure = Failure::new(ErrorCode::from_number(1 + answers % 24), "");
            session.reply(id, Reply::Failed(failure), false, &view, &mut out);
        }
        assert!(out.len_bytes < ANSWERS_MAX_BYTES, "{} bytes of answers", out.len_bytes);
        assert!(at <= input.len());
    }
    panic!("the session gets nowhere: {at} of {} bytes, {} requests unanswered", input.len(), pending.len());
}
