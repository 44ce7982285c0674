"""kafka-python against a broker: `kafka_python.py HOST:PORT SCENARIO`."""

from kafka import ConsumerGroupMetadata, KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, OffsetSpec, TopicPartition
from kafka import errors as ke
from kafka.admin import ConfigResource, ConfigResourceType

from checks import AWKWARD, BASE, Failure, check, equal, run, value, within

CODECS = [None, "gzip", "snappy", "lz4", "zstd"]


def admin(address):
    return KafkaAdminClient(bootstrap_servers=address)


def create(address, name, partitions=1):
    admin(address).create_topics({name: {"num_partitions": partitions}}, wait_for_metadata=True)


def producer(address, **config):
    return KafkaProducer(bootstrap_servers=address, linger_ms=5, **config)


def consumer(address, **config):
    return KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=100, **config)


def read(address, topic, partition, **config):
    """Everything in a partition, up to its end as this reader is told it."""
    reader, place = consumer(address, **config), TopicPartition(topic, partition)
    reader.assign([place])
    reader.seek_to_beginning(place)
    end = reader.end_offsets([place])[place]
    messages = []
    within(60, lambda: messages.extend(sum(reader.poll(500).values(), [])) or reader.position(place) >= end, "the end of the partition")
    reader.close()
    return messages


def roundtrip(address):
    create(address, "kp-roundtrip", len(CODECS))
    # Its headers are always with a value, and it has no records without a key and without a value.
    records = [record for record in AWKWARD if all(v is not None for _, v in record[2]) and record[:2] != (None, None)]
    for partition, codec in enumerate(CODECS):
        sender = producer(address, compression_type=codec, max_request_size=2_000_000)
        places = [sender.send("kp-roundtrip", content, key, headers, partition, timestamp) for key, content, headers, timestamp in records]
        places += [sender.send("kp-roundtrip", value(n, n % 300), str(n).encode(), [], partition, BASE + n) for n in range(500)]
        sender.flush(60)
        equal([place.get(20).offset for place in places], list(range(len(records) + 500)), f"offsets given to {codec}")
        sender.close()
    expected = records + [(str(n).encode(), value(n, n % 300), [], BASE + n) for n in range(500)]
    for partition, codec in enumerate(CODECS):
        for settings in ({}, {"max_partition_fetch_bytes": 1000, "fetch_max_bytes": 1000}):
            found = read(address, "kp-roundtrip", partition, check_crcs=True, **settings)
            equal([m.offset for m in found], list(range(len(expected))), f"offsets read of {codec}")
            for n, m in enumerate(found):
                equal((m.key, m.value, list(m.headers), m.timestamp), expected[n], f"{codec}: record {n}")


def offsets(address):
    create(address, "kp-offsets")
    sender = producer(address, compression_type="gzip")
    for n in range(300):
        sender.send("kp-offsets", b"x" * 50, timestamp_ms=BASE + 10 * n)
    sender.close()
    reader, place = consumer(address), TopicPartition("kp-offsets", 0)
    equal((reader.beginning_offsets([place]), reader.end_offsets([place])), ({place: 0}, {place: 300}), "ends")
    found = [reader.offsets_for_times({place: BASE + t})[place] for t in (0, 1, 1995, 2990)]
    equal([(f.offset, f.timestamp) for f in found], [(0, BASE), (1, BASE + 10), (200, BASE + 2000), (299, BASE + 2990)], "by time")
    equal(reader.offsets_for_times({place: BASE + 2991})[place], None, "by a time in the future")
    reader.close()


def groups(address):
    create(address, "kp-groups", 4)
    sender = producer(address)
    for n in range(200):
        sender.send("kp-groups", str(n).encode(), partition=n % 4)
    sender.flush()

    def member():
        reader = consumer(address, group_id="kp-group", session_timeout_ms=6000, heartbeat_interval_ms=500)
        reader.subscribe(["kp-groups"])
        return reader

    got, put_off = [], []

    def poll(*members):
        for one in members:
            for messages in one.poll(100).values():
                got.extend((m.partition, m.offset) for m in messages)
            try:
                one.commit()
            except ke.RebalanceInProgressError:
                # A slow machine's other member joins at this moment: what was read may come again.
                put_off.append(one)
        return True

    first = member()
    within(40, lambda: poll(first) and len(got) == 200, "one member reads all")
    second = member()
    within(40, lambda: poll(first, second) and len(first.assignment()) == len(second.assignment()) == 2, "two members share")
    described = admin(address).describe_groups(["kp-group"])["kp-group"]
    equal((described["group_state"], len(described["members"])), ("Stable", 2), "description")
    check("kp-group" in [g["group_id"] for g in admin(address).list_groups()], "listed groups")
    first.close()
    within(40, lambda: poll(second) and len(second.assignment()) == 4, "one member is left")
    for n in range(200, 240):
        sender.send("kp-groups", str(n).encode(), partition=n % 4)
    sender.flush()
    within(40, lambda: poll(second) and len(set(got)) == 240, "the rest")
    check(put_off or len(got) == 240, "something was read twice", len(got))
    place = TopicPartition("kp-groups", 1)
    second.commit({place: OffsetAndMetadata(60, "note", -1)})
    equal(second.committed(place, metadata=True)[:2], (60, "note"), "metadata of a commit")
    second.close()
    listed = admin(address).list_group_offsets({"kp-group": None})["kp-group"]
    equal(sorted((p.partition, o.offset) for p, o in listed.items()), [(p, 60) for p in range(4)], "committed offsets")
    admin(address).delete_groups(["kp-group"])
    equal(consumer(address, group_id="kp-group").committed(place), None, "committed after the group is gone")


def transactions(address):
    create(address, "kp-tx", 2)

    def transactional():
        sender = producer(address, transactional_id="kp-one", transaction_timeout_ms=30_000)
        sender.init_transactions()
        return sender

    def transaction(sender, name):
        sender.begin_transaction()
        return [sender.send("kp-tx", f"{name}{n}".encode(), partition=n % 2) for n in range(4)]

    def seen(level):
        return [[m.value.decode() for m in read(address, "kp-tx", p, isolation_level=level)] for p in range(2)]

    one = transactional()
    transaction(one, "a")
    one.commit_transaction()
    transaction(one, "b")
    one.flush()
    one.abort_transaction()
    transaction(one, "c")
    place = TopicPartition("kp-tx", 0)
    one.send_offsets_to_transaction({place: OffsetAndMetadata(7, "in a transaction", -1)}, ConsumerGroupMetadata("kp-tx-group", -1, "", None))
    one.commit_transaction()
    equal(seen("read_committed"), [["a0", "a2", "c0", "c2"], ["a1", "a3", "c1", "c3"]], "read_committed")
    equal(seen("read_uncommitted"), [["a0", "a2", "b0", "b2", "c0", "c2"], ["a1", "a3", "b1", "b3", "c1", "c3"]], "read_uncommitted")
    equal(consumer(address, group_id="kp-tx-group").committed(place, metadata=True)[:2], (7, "in a transaction"), "offset of the transaction")
    two = transactional()
    try:
        transaction(one, "zombie")
        one.commit_transaction()
        raise Failure("the fenced producer could commit")
    except ke.KafkaError:
        pass
    transaction(two, "d")
    two.commit_transaction()
    equal(seen("read_committed"), [["a0", "a2", "c0", "c2", "d0", "d2"], ["a1", "a3", "c1", "c3", "d1", "d3"]], "read_committed after fencing")


def fails(kind, action):
    try:
        action()
    except kind:
        return
    raise Failure(f"a call succeeded that should fail with {kind.__name__}")


def admin_calls(address):
    a = admin(address)
    a.create_topics({"kp-admin": {"num_partitions": 2, "configs": {"retention.ms": "3600000"}}}, wait_for_metadata=True)
    fails(ke.TopicAlreadyExistsError, lambda: a.create_topics({"kp-admin": {}}))
    fails(ke.InvalidTopicError, lambda: a.create_topics({"not/a/name": {}}))
    a.create_topics({"kp-admin-dry": {}}, validate_only=True)
    check("kp-admin" in a.list_topics() and "kp-admin-dry" not in a.list_topics(), "listed topics")
    a.create_partitions({"kp-admin": 4})
    within(20, lambda: len(a.describe_topics(["kp-admin"])[0]["partitions"]) == 4, "partitions added")
    resource = ConfigResource(ConfigResourceType.TOPIC, "kp-admin")

    def setting(name):
        return a.describe_configs([resource], config_filter="all")["topic"]["kp-admin"][name]["value"]

    equal(setting("retention.ms"), "3600000", "retention.ms")
    a.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "kp-admin", {"retention.ms": "7200000"})])
    equal(setting("retention.ms"), "7200000", "retention.ms altered")
    sender = producer(address)
    for n in range(30):
        sender.send("kp-admin", b"x", partition=3)
    sender.close()
    place = TopicPartition("kp-admin", 3)
    a.delete_records({place: 10})
    equal([m.offset for m in read(address, "kp-admin", 3)], list(range(10, 30)), "records left")
    listed = a.list_partition_offsets({place: OffsetSpec.EARLIEST})
    equal(listed[place].offset, 10, "earliest offset")
    cluster = a.describe_cluster()
    check(cluster["cluster_id"] and cluster["brokers"], "cluster", cluster)
    check(a.describe_log_dirs(), "log directories")
    a.delete_topics(["kp-admin"])
    within(20, lambda: "kp-admin" not in a.list_topics(), "the topic is gone")


run({f.__name__: f for f in (roundtrip, offsets, groups, transactions, admin_calls)})
