//! The programs of `tests/clients`, one test per client and scenario, each with a broker of its own.

use super::clients::{broker, clients, run};

macro_rules! scenarios {
    ($($(#[$attribute:meta])* $test:ident: $client:ident $(($program:literal))? $scenario:literal;)*) => {$(
        #[test]
        $(#[$attribute])*
        fn $test() {
            let Some(clients) = clients() else { return };
            let broker = broker(stringify!($test));
            run(clients.$client($($program)?).args([&*broker.kafka(), $scenario]));
        }
    )*};
}

scenarios! {
    confluent_roundtrip: python("confluent.py") "roundtrip";
    confluent_acks: python("confluent.py") "acks";
    confluent_offsets: python("confluent.py") "offsets";
    confluent_groups: python("confluent.py") "groups";
    confluent_static_members: python("confluent.py") "static_members";
    confluent_commits: python("confluent.py") "commits";
    confluent_transactions: python("confluent.py") "transactions";
    confluent_admin_calls: python("confluent.py") "admin_calls";
    confluent_errors: python("confluent.py") "errors";
    kafka_python_roundtrip: python("kafka_python.py") "roundtrip";
    kafka_python_offsets: python("kafka_python.py") "offsets";
    kafka_python_groups: python("kafka_python.py") "groups";
    kafka_python_transactions: python("kafka_python.py") "transactions";
    kafka_python_admin_calls: python("kafka_python.py") "admin_calls";
    rdkafka_roundtrip: rdkafka "roundtrip";
    rdkafka_transactions: rdkafka "transactions";
    java_roundtrip: java("Check") "roundtrip";
    java_groups: java("Check") "groups";
    java_transactions: java("Check") "transactions";
    java_admin: java("Check") "admin";
}
