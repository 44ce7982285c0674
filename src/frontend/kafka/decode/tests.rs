//! The decoder against bytes written by hand here, and against another implementation's encoder.

mod differential;

use super::*;

fn reader(bytes: &[u8], flexible: bool) -> Reader<'_> {
    Reader::new(bytes, 0, flexible)
}

#[test]
fn varint_of_five_bytes_and_no_more() {
    let read = |bytes: &[u8]| reader(bytes, true).unsigned_varint();
    assert_eq!(read(&[0]), Ok(0));
    assert_eq!(read(&[0x80, 0x01]), Ok(128));
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
    // Padded, as encoders do that fill in a length later.
    assert_eq!(read(&[0x83, 0x80, 0x80, 0x80, 0x00]), Ok(3));
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]), Err(DecodeError::Varint));
    assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), Err(DecodeError::Varint));
    assert_eq!(read(&[0x80]), Err(DecodeError::Truncated { needed_bytes: 1, left_bytes: 0 }));
}

#[test]
fn null_is_any_negative_length() {
    assert_eq!(reader(&[0xff, 0xff], false).string(), Ok(None));
    assert_eq!(reader(&[0x80, 0x00], false).string(), Ok(None));
    assert_eq!(reader(&[0x80, 0, 0, 0], false).bytes(), Ok(None));
    assert_eq!(reader(&[0], true).string(), Ok(None));
    assert_eq!(reader(&[1], true).string(), Ok(Some("")));
    assert_eq!(<&str>::decode(&mut reader(&[0], true)), Err(DecodeError::Null));
}

#[test]
fn lengths_are_checked_against_what_is_left() {
    assert_eq!(reader(&[0x7f, 0xff, b'a'], false).string(), Err(DecodeError::Truncated { needed_bytes: 32767, left_bytes: 1 }));
    assert_eq!(reader(&[0x7f, 0xff, 0xff, 0xff], false).count(1), Err(DecodeError::Count { count: 0x7fff_ffff, left_bytes: 0 }));
    let longest = [0xff, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(reader(&longest, true).string(), Err(DecodeError::StringLength { len_bytes: 0xffff_fffe }));
    assert_eq!(reader(&longest, true).count(1), Err(DecodeError::Count { count: 0xffff_fffe, left_bytes: 0 }));
    // Three elements of four bytes and more don't fit in eleven bytes.
    let three = [0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0];
    assert_eq!(Vec::<i32>::decode(&mut reader(&three, false)), Err(DecodeError::Count { count: 3, left_bytes: 11 }));
}

#[test]
fn lists_of_one_request_are_bounded() {
    // Empty names: one byte on the wire, sixteen in memory.
    let mut request = vec![0xff, 0xff, 0xff, 0x07];
    request.resize(32 << 20, 1);
    assert_eq!(DescribeGroupsRequest::from_body(&request, 5), Err(DecodeError::TooLarge { heap_bytes: HEAP_MAX_BYTES }));
}

#[test]
fn header_ends_where_the_api_says() {
    let classic = [0, 0, 0, 3, 0, 0, 0, 9, 0, 2, b'm', b'e', 7];
    let (header, body) = RequestHeader::read(&classic).unwrap();
    let start = HeaderStart { api_key: 0, api_version: 3, correlation_id: 9 };
    assert_eq!((header, body), (RequestHeader { start, client_id: Some("me") }, &[7][..]));
    // One tagged field of number 5 and two bytes, between header and body.
    let flexible = [0, 18, 0, 3, 0, 0, 0, 9, 0xff, 0xff, 1, 5, 2, 0, 0, 7];
    let (header, body) = RequestHeader::read(&flexible).unwrap();
    assert_eq!((header.client_id, body), (None, &[7][..]));
    let (header, body) = RequestHeader::read(&[0, 3, 0, 1, 0, 0, 0, 5, 0, 3, b'g', 0xf6, b'r', 7]).unwrap();
    assert_eq!((header.client_id, body), (Some("g"), &[7][..]));
    for len in 0..flexible.len() - 1 {
        assert!(matches!(RequestHeader::read(&flexible[..len]), Err(DecodeError::Truncated { .. })), "{len}");
    }
    // Of a later version: whatever stands there.
    let later = [0, 18, 0, 99, 0, 0, 0, 9, 0xff, 0xff, 0xff, 5];
    assert_eq!(RequestHeader::read(&later).unwrap().0.start.api_version, 99);
    let unknown = [0x7f, 0xff, 0, 3, 0, 0, 0, 9];
    assert_eq!(RequestHeader::read(&unknown), Err(DecodeError::Unsupported { api_key: 0x7fff, version: 3 }));
}

#[test]
fn null_counts_by_version() {
    let all = [0xff, 0xff, 0xff, 0xff, 1, 0, 0];
    assert_eq!(MetadataRequest::from_body(&all, 0), Err(DecodeError::Null));
    assert_eq!(MetadataRequest::from_body(&all, 1).unwrap().topics, None);
    assert_eq!(MetadataRequest::from_body(&all, 13), Err(DecodeError::Unsupported { api_key: 3, version: 13 }));
}

#[test]
fn bytes_behind_a_request_are_ignored() {
    assert_eq!(SaslHandshakeRequest::from_body(&[0, 1, b'x', 9, 9], 1).unwrap().mechanism, "x");
}

#[test]
fn part_of_a_buffer_is_found_again() {
    let whole = [0; 8];
    assert_eq!((position_in(&whole, &whole[3..5]), position_in(&whole, &whole[8..])), (3, 8));
}
