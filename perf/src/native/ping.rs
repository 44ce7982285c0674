//! One message at a time on one connection: what a single synchronous producer waits for.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use ringmain_wire::control::ProduceReply;
use ringmain_wire::{Envelope, Op, envelope};

use super::{Clock, Door, Faults, Length, Measured, Progress, Target, Window};
use crate::broker::Meter;
use crate::control::error_text;
use crate::histogram::Recorder;
use crate::workload::{KeyRing, Shape, Stamp, Times, sequence_word};

/// An answer later than this is none.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs it: a blocking socket, so that waiting costs what it costs an ordinary program.
pub fn ping(
    door: &Door,
    target: Target,
    shape: &Shape,
    length: &Length,
    exclusive: bool,
    meter: Meter,
    progress: &Arc<Progress>,
) -> Result<Measured> {
    let mut stream = door.connect(target.port)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = shape.buffer(0);
    let mut recorder = Recorder::new(length.expected());
    let mut faults = Faults::default();
    let mut keys = KeyRing::default();
    let mut reply_bytes = [0; Envelope::BYTES + ProduceReply::BYTES];
    let mut window = Window::new(length);
    let (mut at_open, mut opened) = (meter.edge(), SystemTime::now());
    let (mut sent, mut acknowledged_bytes, mut next_offset) = (0_u64, 0_u64, target.end);
    let clock = Clock::new();
    loop {
        let mut sent_ns = clock.now_ns();
        if window.opened_ns.is_none() && sent_ns >= window.open_at_ns {
            (at_open, opened) = (meter.edge(), SystemTime::now());
            sent_ns = clock.now_ns();
            window.opened_ns = Some(sent_ns);
            window.close_at_ns = window.close_at_ns.saturating_add(sent_ns - window.open_at_ns);
            recorder.open(sent_ns);
        }
        if window.count.is_some_and(|count| window.messages >= count) || sent_ns >= window.close_at_ns {
            window.closed_ns = Some(sent_ns);
            break;
        }
        if progress.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let stamp = Stamp {
            correlation: sent,
            partition: target.number,
            count: 1,
            timestamp_ms: clock.unix_ms(sent_ns),
            clock_start_ms: clock.start_ms,
            sequence_word: sequence_word(0, sent),
        };
        let (range, payload_bytes) = buffer.stamp(0, stamp, Times::Absent, &mut keys);
        stream.write_all(&buffer.bytes[range])?;
        stream.read_exact(&mut reply_bytes).context("waiting for an acknowledgement")?;
        let now_ns = clock.now_ns();
        let Some(envelope) = Envelope::read(&reply_bytes) else { bail!("a reply without envelope") };
        if envelope.flags & envelope::flags::ERROR != 0 {
            let mut body = reply_bytes[Envelope::BYTES..].to_vec();
            body.resize(envelope.len as usize, 0);
            stream.read_exact(body.get_mut(ProduceReply::BYTES..).unwrap_or_default())?;
            bail!("the broker refused a message: {}", error_text(&body));
        }
        if envelope.op != Op::Produce as u16 || envelope.len as usize != ProduceReply::BYTES || envelope.correlation != sent {
            bail!("the reply to a produce request is none: {envelope:?}");
        }
        let reply = ProduceReply::read(&reply_bytes[Envelope::BYTES..])?;
        if reply.base_offset != next_offset && (exclusive || reply.base_offset < next_offset) {
            faults.note(|| format!("partition {}: a message got offset {}, {next_offset} was next", target.number, reply.base_offset));
        }
        next_offset = reply.base_offset + 1;
        sent += 1;
        acknowledged_bytes += payload_bytes;
        if window.is_open(now_ns) {
            window.messages += 1;
            window.payload_bytes += payload_bytes;
            recorder.tick(now_ns);
            recorder.count(1);
            recorder.record(now_ns - sent_ns, 1);
        }
        progress.messages.store(window.messages, Ordering::Relaxed);
        progress.elapsed_ns.store(now_ns, Ordering::Relaxed);
    }
    let at_close = meter.edge();
    let (opened_ns, closed_ns) = (window.opened_ns.unwrap_or(0), window.closed_ns.unwrap_or(0));
    Ok(Measured {
        messages: window.messages,
        payload_bytes: window.payload_bytes,
        window: Duration::from_nanos(closed_ns - opened_ns),
        recording: recorder.finish(closed_ns),
        opened,
        broker_cpu: at_open.broker_cpu.zip(at_close.broker_cpu).map(|(a, b)| b.saturating_sub(a)),
        client_cpu: at_close.client_cpu.saturating_sub(at_open.client_cpu),
        broker_rss_bytes: meter.rss_bytes(),
        acknowledged: vec![vec![sent]],
        acknowledged_bytes,
        acknowledged_in_window: vec![window.messages],
        faults,
    })
}
