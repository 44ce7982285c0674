//! A message as the Kafka door gets it, the bytes after the length.

use ringmain::frontend::kafka::decode::{AnyRequest, HEAP_MAX_BYTES, ProduceRequest, ProduceWalk, Request, RequestHeader};

pub fn run(message: &[u8]) {
    let Ok((header, body)) = RequestHeader::read(message) else { return };
    let (api_key, version) = (header.start.api_key, header.start.api_version);
    let decoded = AnyRequest::from_body(api_key, version, body);
    if let Ok(request) = &decoded {
        // What was taken has to be all there: the text of it can't be longer than the lists allow.
        assert!(format!("{request:?}").len() < 64 * (HEAP_MAX_BYTES + message.len()));
    }
    if api_key == ProduceRequest::API_KEY {
        let walked = ProduceWalk::begin(body, version).and_then(|(_, walk)| walk.check(body));
        match (walked, decoded) {
            (Ok(count), Ok(AnyRequest::Produce(request))) => {
                assert_eq!(count, request.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>());
            }
            // The walk makes no lists, so it has no limit for them.
            (Ok(_), Err(ringmain::frontend::kafka::decode::DecodeError::TooLarge { .. })) => {}
            (walked, decoded) => assert_eq!(walked.err(), decoded.err()),
        }
    }
}
