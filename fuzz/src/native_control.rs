//! Control messages of the native protocol, requests and replies: whatever is taken is written and read again the same.
//! Byte 0 says which message the rest is.

use ringmain_wire::control::*;
use ringmain_wire::group::{GroupAnswer, GroupList, GroupRequest, ListGroups, Share, Subscription};

macro_rules! messages {
    ($how:expr, $body:expr; open $($open:ident)*; fixed $($fixed:ident)*) => {{
        let mut number = 0u8;
        $(
            if $how == number && let Ok(message) = read_open::<$open>($body) {
                let mut again = Vec::new();
                write_open(&message, &mut again);
                assert_eq!(read_open::<$open>(&again).as_ref(), Ok(&message));
            }
            number += 1;
        )*
        $(
            if $how == number && let Ok(message) = $fixed::read($body) {
                assert_eq!($fixed::read(&message.to_bytes()), Ok(message));
            }
            number += 1;
        )*
        number
    }};
}

pub fn run(input: &[u8]) {
    let Some((&how, body)) = input.split_first() else { return };
    let number = messages! { how, body;
        open Hello HelloReply MetadataRequest MetadataReply TopicInfo CreateTopic AlterTopic TopicName TopicDescription CommitOffset
            ReadOffset ReadOffsetReply StatsRequest StatsReply ErrorReply GroupRequest GroupAnswer ListGroups GroupList;
        fixed ProduceReply FetchRequest FetchReply ListOffsets ListOffsetsReply
    };
    if how == number
        && let Some(subscription) = Subscription::read(body)
    {
        assert_eq!(Subscription::read(&subscription.to_bytes()), Some(subscription));
    }
    if how == number + 1
        && let Some(share) = Share::read(body)
    {
        assert_eq!(Share::read(&share.to_bytes()), Some(share));
    }
}
