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
    #[ignore = "needs the group and transaction APIs"]
    confluent_groups: python("confluent.py") "groups";
    #[ignore = "needs the group and transaction APIs"]
    confluent_static_members: python("confluent.py") "static_members";
    #[ignore = "needs the group and transaction APIs"]
    confluent_commits: python("confluent.py") "commits";
    #[ignore = "needs the group and transaction APIs"]
    confluent_transactions: python("confluent.py") "transactions";
    confluent_admin_calls: python("confluent.py") "admin_calls";
    confluent_errors: python("confluent.py") "errors";
    kafka_python_roundtrip: python("kafka_python.py") "roundtrip";
    kafka_python_offsets: python("kafka_python.py") "offsets";
    #[ignore = "needs the group and transaction APIs"]
    kafka_python_groups: python("kafka_python.py") "groups";
    #[ignore = "needs the group and transaction APIs"]
    kafka_python_transactions: python("kafka_python.py") "transactions";
    kafka_python_admin_calls: python("kafka_python.py") "admin_calls";
    rdkafka_roundtrip: rdkafka "roundtrip";
    #[ignore = "needs the group and transaction APIs"]
    rdkafka_transactions: rdkafka "transactions";
    java_roundtrip: java("Check") "roundtrip";
    #[ignore = "needs the group and transaction APIs"]
    java_groups: java("Check") "groups";
    #[ignore = "needs the group and transaction APIs"]
    java_transactions: java("Check") "transactions";
    #[ignore = "needs the group and transaction APIs"]
    java_admin: java("Check") "admin";
}
