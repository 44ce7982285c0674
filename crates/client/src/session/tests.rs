use std::time::{Duration, Instant};

use ringmain_wire::control::{ControlError, ErrorReply, FetchReply, HelloReply, MetadataRequest, write_open};
use ringmain_wire::envelope::flags;
use ringmain_wire::{Envelope, ErrorCode, Op};

use super::*;
use crate::fake::FakeBroker;

fn reply(op: Op, extra_flags: u16, correlation: u64, body: &[u8]) -> Vec<u8> {
    let envelope = Envelope { len: body.len() as u32, op: op as u16, flags: flags::REPLY | extra_flags, correlation };
    [&envelope.to_bytes()[..], body].concat()
}

fn hello(max_in_flight: u32) -> Vec<u8> {
    let hello = HelloReply { protocol_version: 1, broker_version: "9".into(), cluster_id: 1, max_request_bytes: 1 << 20, max_in_flight };
    let mut body = Vec::new();
    write_open(&hello, &mut body);
    reply(Op::Hello, 0, HELLO_CORRELATION, &body)
}

fn fetch_reply(correlation: u64, next_offset: u64, frames: &[u8]) -> Vec<u8> {
    let head = FetchReply { version: 1, reserved: 0, partition: 10, high_watermark: 9, log_start: 0, next_offset };
    reply(Op::Fetch, 0, correlation, &[&head.to_bytes()[..], frames].concat())
}

fn ready() -> Session<u32> {
    let mut session = Session::new(SessionConfig::default(), Instant::now());
    session.receive(&hello(3));
    assert!(matches!(session.poll_event(), Ok(Some(Event::Ready(_)))));
    let mut out = Vec::new();
    session.poll_transmit(&mut out);
    session
}

fn ask(session: &mut Session<u32>, op: Op, context: u32) {
    session.request(op, context, Instant::now(), Duration::ZERO, b"");
}

/// What a session says, as text, so that runs can be compared.
fn events(session: &mut Session<u32>) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(event) = session.poll_event().unwrap() {
        events.push(match event {
            Event::Ready(_) => "ready".into(),
            Event::FetchHead { context, head, body_bytes } => format!("head {context} next {} of {body_bytes}", head.next_offset),
            Event::Reply(reply) => format!("reply {} {} {:?}", reply.context, reply.moved, reply.result.map(|body| body.to_vec())),
        });
    }
    events
}

#[test]
fn hello_goes_first_and_requests_wait_for_its_answer() {
    let now = Instant::now();
    let mut session: Session<u32> = Session::new(SessionConfig::default(), now);
    session.request(Op::Metadata, 1, now, Duration::ZERO, b"m");
    let mut out = Vec::new();
    assert!(session.poll_transmit(&mut out));
    assert_eq!(Envelope::read(&out).unwrap().op, Op::Hello as u16);
    assert_eq!(out.len(), Envelope::BYTES + Envelope::read(&out).unwrap().len as usize);
    assert!(!session.poll_transmit(&mut out));
    session.receive(&hello(3));
    assert_eq!(events(&mut session), ["ready"]);
    let mut out = Vec::new();
    assert!(session.poll_transmit(&mut out));
    assert_eq!((Envelope::read(&out).unwrap().op, out.len()), (Op::Metadata as u16, Envelope::BYTES + 1));
}

#[test]
fn stream_cut_at_every_byte_says_the_same() {
    let mut error = Vec::new();
    write_open(&ErrorReply { code: 7, message: "no".into() }, &mut error);
    let stream = [
        hello(9),
        fetch_reply(1, 4, &[1; 40]),
        reply(Op::CommitOffset, 0, 3, b""),
        reply(Op::Produce, flags::ERROR | flags::MOVED, 2, &error),
        fetch_reply(4, 5, b""),
    ]
    .concat();
    let run = |pieces: &[&[u8]]| {
        let mut session: Session<u32> = Session::new(SessionConfig::default(), Instant::now());
        for (context, op) in [Op::Fetch, Op::Produce, Op::CommitOffset, Op::Fetch].into_iter().enumerate() {
            ask(&mut session, op, context as u32);
        }
        let mut all = Vec::new();
        for piece in pieces {
            session.receive(piece);
            all.extend(events(&mut session));
        }
        assert_eq!(session.in_flight(), 0);
        all
    };
    let whole = run(&[&stream]);
    assert_eq!(whole.len(), 7, "{whole:?}");
    for cut in 0..=stream.len() {
        assert_eq!(run(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
    assert_eq!(run(&stream.iter().map(std::slice::from_ref).collect::<Vec<_>>()), whole);
}

#[test]
fn large_reply_arrives_whole_through_either_door() {
    let frames: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let stream = [fetch_reply(1, 4, &frames), fetch_reply(2, 5, b"12345678")].concat();
    for step in [1_000, 65_536, 100_000, 5_000_000] {
        let mut session = ready();
        ask(&mut session, Op::Fetch, 1);
        ask(&mut session, Op::Fetch, 2);
        let (mut rest, mut bodies) = (&stream[..], Vec::new());
        while !rest.is_empty() {
            let room = session.read_buffer();
            let n = room.len().min(rest.len()).min(step);
            room[..n].copy_from_slice(&rest[..n]);
            session.received(n);
            rest = &rest[n..];
            while let Some(event) = session.poll_event().unwrap() {
                if let Event::Reply(reply) = event {
                    let body = reply.result.unwrap();
                    bodies.push(body.to_vec());
                    session.recycle(body);
                }
            }
        }
        assert_eq!(bodies.len(), 2);
        assert!(bodies[0][FetchReply::BYTES..] == frames && &bodies[1][FetchReply::BYTES..] == b"12345678", "step {step}");
    }
}

fn refused(input: &[u8]) -> SessionError {
    let mut session = ready();
    ask(&mut session, Op::Metadata, 5);
    ask(&mut session, Op::Fetch, 6);
    session.receive(input);
    loop {
        match session.poll_event() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("taken"),
            Err(error) => {
                assert_eq!(session.poll_event().unwrap_err(), error, "a failed session stays failed");
                assert!(!error.to_string().is_empty());
                return error;
            }
        }
    }
}

#[test]
fn hostile_replies_are_typed_errors() {
    let envelope = |len, op, flags, correlation| Envelope { len, op, flags, correlation }.to_bytes();
    assert!(matches!(refused(b"HTTP/1.1 400 Bad Request\r\n\r\n"), SessionError::NotAReply { .. }));
    assert_eq!(
        refused(&envelope(u32::MAX, 2, flags::REPLY, 1)),
        SessionError::ReplyTooLarge { len: u32::MAX, limit_bytes: (64 << 20) + (64 << 10) }
    );
    assert_eq!(refused(&envelope(0, 2, flags::REPLY, 99)), SessionError::UnknownCorrelation { correlation: 99 });
    assert_eq!(refused(&envelope(0, 1, flags::REPLY, 0)), SessionError::UnknownCorrelation { correlation: 0 });
    assert_eq!(refused(&envelope(0, 17, flags::REPLY, 1)), SessionError::WrongOp { expected: Op::Metadata, got: 17 });
    assert_eq!(refused(&envelope(0, 2, 0, 1)), SessionError::NotAReply { op: 2, flags: 0 });
    assert_eq!(
        refused(&reply(Op::Metadata, flags::ERROR, 1, b"x")),
        SessionError::Malformed { op: Op::Metadata, error: ControlError::Truncated }
    );
    assert_eq!(refused(&reply(Op::Fetch, 0, 2, &[1; 31])), SessionError::Malformed { op: Op::Fetch, error: ControlError::Truncated });
    assert_eq!(
        refused(&reply(Op::Fetch, 0, 2, &[9; 40])),
        SessionError::Malformed { op: Op::Fetch, error: ControlError::UnknownVersion { got: 0x0909 } }
    );
}

#[test]
fn announced_length_costs_no_memory_before_it_arrives() {
    let mut session = ready();
    ask(&mut session, Op::Fetch, 1);
    session.receive(&Envelope { len: 64 << 20, op: Op::Fetch as u16, flags: flags::REPLY, correlation: 1 }.to_bytes());
    assert!(session.poll_event().unwrap().is_none());
    session.receive(&[0; 10]);
    assert!(session.poll_event().unwrap().is_none());
    assert!(session.body.as_ref().is_some_and(|body| body.bytes.len() <= FIRST_BODY_BYTES));
}

#[test]
fn hello_refused_or_from_a_newer_broker_is_a_typed_error() {
    let mut refusal = Vec::new();
    write_open(&ErrorReply { code: ErrorCode::Unauthenticated as u16, message: "who?".into() }, &mut refusal);
    let mut session: Session<()> = Session::new(SessionConfig::default(), Instant::now());
    session.receive(&reply(Op::Hello, flags::ERROR, HELLO_CORRELATION, &refusal));
    assert!(matches!(session.poll_event(), Err(SessionError::Refused(BrokerError { code: ErrorCode::Unauthenticated, .. }))));

    let newer = HelloReply { protocol_version: 2, broker_version: String::new(), cluster_id: 1, max_request_bytes: 1, max_in_flight: 1 };
    let mut body = Vec::new();
    write_open(&newer, &mut body);
    let mut session: Session<()> = Session::new(SessionConfig::default(), Instant::now());
    session.receive(&reply(Op::Hello, 0, HELLO_CORRELATION, &body));
    assert!(matches!(session.poll_event(), Err(SessionError::VersionTooNew { offered: 1, got: 2 })));
}

#[test]
fn broker_limit_bounds_the_requests_in_flight() {
    let mut session = ready();
    for context in 0..3 {
        assert!(session.has_room());
        ask(&mut session, Op::Fetch, context);
    }
    assert!(!session.has_room());
    session.receive(&fetch_reply(2, 1, b""));
    assert_eq!(events(&mut session).len(), 2);
    assert!(session.has_room());
    assert_eq!(session.into_lost().collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn unanswered_request_times_out() {
    let now = Instant::now();
    let mut session = ready();
    session.request(Op::Fetch, 1, now, Duration::from_secs(2), b"");
    assert_eq!(session.poll_timeout(), Some(now + Duration::from_secs(32)));
    assert!(session.handle_timeout(now + Duration::from_secs(31)).is_ok());
    assert!(matches!(session.handle_timeout(now + Duration::from_secs(32)), Err(SessionError::TimedOut { op: Op::Fetch, .. })));
}

proptest::proptest! {
    /// Garbage, and garbage in place of any byte of a good stream, is refused or taken; it never panics.
    #[test]
    fn random_bytes_never_panic(mut noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..400, seed in 0u64..50) {
        let mut broker = FakeBroker::new(&[0], 2, seed);
        let mut session: Session<u32> = Session::new(SessionConfig::default(), Instant::now());
        let mut body = Vec::new();
        write_open(&MetadataRequest { topics: None }, &mut body);
        session.request(Op::Metadata, 1, Instant::now(), Duration::ZERO, &body);
        let mut requests = Vec::new();
        session.poll_transmit(&mut requests);
        let mut stream = Vec::new();
        broker.serve(0, &mut requests, &mut stream);
        let at = at.min(stream.len());
        stream.splice(at..at, noise.drain(..));
        session.receive(&stream);
        while let Ok(Some(_)) = session.poll_event() {}
    }
}
