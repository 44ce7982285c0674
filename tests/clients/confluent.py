"""confluent-kafka (librdkafka) against a broker: `confluent.py HOST:PORT SCENARIO`."""

import functools
import subprocess
import sys
import time

import confluent_kafka as ck
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import admin as ca

from checks import AWKWARD, BASE, Failure, check, equal, run, value, within

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


@functools.cache  # A client that nobody holds ends its calls.
def admin(address):
    return ca.AdminClient({"bootstrap.servers": address})


def create(address, name, partitions=1, config=None):
    futures = admin(address).create_topics([ca.NewTopic(name, partitions, 1, config=config or {})], request_timeout=20)
    futures[name].result(20)


class Sender:
    """A producer that fails the check when a delivery fails."""

    def __init__(self, address, **config):
        self.producer = Producer({"bootstrap.servers": address, "linger.ms": 5, **{k.replace("_", "."): v for k, v in config.items()}})
        self.delivered, self.failures = [], []

    def send(self, topic, value, **rest):
        def done(error, message):
            if error:
                self.failures.append(error)
            else:
                self.delivered.append((message.topic(), message.partition(), message.offset()))

        while True:
            try:
                self.producer.produce(topic, value, on_delivery=done, **rest)
                break
            except BufferError:
                self.producer.poll(0.1)
        self.producer.poll(0)

    def flush(self):
        equal(self.producer.flush(60), 0, "unsent after flush")
        check(not self.failures, "deliveries failed", self.failures[:3])


def consumer(address, group="none", **config):
    settings = {"bootstrap.servers": address, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
                "fetch.wait.max.ms": 100, **{k.replace("_", "."): v for k, v in config.items()}}
    return Consumer(settings)


def read(address, topic, partition, **config):
    """Everything in a partition, up to its end as this reader is told it."""
    reader = consumer(address, enable_partition_eof=True, **config)
    reader.assign([TopicPartition(topic, partition, ck.OFFSET_BEGINNING)])
    messages, end = [], time.monotonic() + 60
    while time.monotonic() < end:
        message = reader.poll(1)
        if message is None:
            continue
        if message.error():
            equal(message.error().code(), KafkaError._PARTITION_EOF, "error while reading")
            reader.close()
            return messages
        messages.append(message)
    raise Failure("no end of the partition within 60 s")


def plain(message):
    return (message.key(), message.value(), list(message.headers() or []), message.timestamp()[1])


def roundtrip(address):
    create(address, "ck-roundtrip", len(CODECS))
    for partition, codec in enumerate(CODECS):
        sender = Sender(address, compression_codec=codec, enable_idempotence=True, message_max_bytes=1_000_000)
        for key, content, headers, timestamp in AWKWARD:
            sender.send("ck-roundtrip", content, key=key, headers=headers, timestamp=timestamp, partition=partition)
        for n in range(2000):
            sender.send("ck-roundtrip", value(n, n % 300), key=str(n).encode(), partition=partition, timestamp=BASE + n)
        sender.flush()
        offsets = sorted(offset for _, p, offset in sender.delivered if p == partition)
        equal(offsets, list(range(len(AWKWARD) + 2000)), f"offsets given to {codec}")
    for partition, codec in enumerate(CODECS):
        for settings in ({}, {"fetch_message_max_bytes": 1000, "fetch_max_bytes": 1000, "message_max_bytes": 1000}):
            found = read(address, "ck-roundtrip", partition, **settings)
            expected = AWKWARD + [(str(n).encode(), value(n, n % 300), [], BASE + n) for n in range(2000)]
            equal(len(found), len(expected), f"records read of {codec}")
            for n, message in enumerate(found):
                equal(plain(message), expected[n], f"{codec}: record {n}")
                equal((message.offset(), message.timestamp()[0]), (n, ck.TIMESTAMP_CREATE_TIME), f"{codec}: place of record {n}")
    # From the middle of a compressed batch: the client gets the whole batch and must find its place in it.
    reader = consumer(address)
    for partition in range(len(CODECS)):
        reader.assign([TopicPartition("ck-roundtrip", partition, 1007)])
        message = within(20, lambda: reader.poll(1), "a record from the middle")
        equal((message.error(), message.offset()), (None, 1007), "the first record read")
    reader.close()


def acks(address):
    create(address, "ck-acks")
    for n, level in enumerate(["0", "1", "all"]):
        sender = Sender(address, acks=level)
        for m in range(100):
            sender.send("ck-acks", f"{level}-{m}".encode())
        sender.flush()
        within(20, lambda: len(read(address, "ck-acks", 0)) == 100 * (n + 1), f"records with acks={level}")


def offsets(address):
    create(address, "ck-offsets")
    sender = Sender(address, compression_codec="lz4", linger_ms=50)
    for n in range(1000):
        sender.send("ck-offsets", b"x" * 50, timestamp=BASE + 10 * n)
    sender.flush()
    reader = consumer(address)
    equal(reader.get_watermark_offsets(TopicPartition("ck-offsets", 0), timeout=20), (0, 1000), "watermarks")

    def at(timestamp):
        [found] = reader.offsets_for_times([TopicPartition("ck-offsets", 0, timestamp)], timeout=20)
        equal(found.error, None, "offset by time")
        return found.offset

    # The first record that isn't older, inside a compressed batch, too.
    equal([at(BASE + t) for t in (-5, 0, 1, 10, 4995, 9990)], [0, 0, 1, 1, 500, 999], "offsets by time")
    equal(at(BASE + 9991), ck.OFFSET_END, "offset by a time in the future")
    reader.close()
    listed = admin(address).list_offsets({TopicPartition("ck-offsets", 0): ca.OffsetSpec.max_timestamp()})
    [found] = [future.result(20) for future in listed.values()]
    equal((found.offset, found.timestamp), (999, BASE + 9990), "the largest timestamp")


def member(address, topic, group, *config):
    """A group member until it is killed or its input closes: prints what it gets, commits each poll."""
    reader = consumer(address, group, session_timeout_ms=6000, heartbeat_interval_ms=500, **dict(c.split("=") for c in config))

    def assigned(_, partitions):
        print("assigned", *sorted(p.partition for p in partitions), flush=True)

    reader.subscribe([topic], on_assign=assigned)
    while True:
        message = reader.poll(0.2)
        if message is not None and not message.error():
            reader.commit(message, asynchronous=False)
            print("got", message.partition(), message.offset(), flush=True)


class Member:
    """`member` in a process of its own."""

    def __init__(self, address, topic, group, *config):
        command = [sys.executable, __file__, address, "member", topic, group, *config]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.lines = []
        import threading

        threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")), daemon=True).start()

    def assigned(self):
        found = [line.split()[1:] for line in list(self.lines) if line.startswith("assigned")]
        return [int(partition) for partition in found[-1]] if found else None

    def got(self):
        return [tuple(int(n) for n in line.split()[1:]) for line in list(self.lines) if line.startswith("got")]

    def kill(self):
        self.process.kill()
        self.process.wait()


def groups(address):
    create(address, "ck-groups", 6)
    sender, sent = Sender(address), [0]

    def send(count):
        for _ in range(count):
            sender.send("ck-groups", str(sent[0]).encode(), partition=sent[0] % 6)
            sent[0] += 1
        sender.flush()

    def everything(members):
        return {place for member in members for place in member.got()} == {(n % 6, n // 6) for n in range(sent[0])}

    def shared(*members):
        held = [member.assigned() for member in members]
        return all(held) and sorted(sum(held, [])) == list(range(6))

    members = [Member(address, "ck-groups", "ck-group")]
    send(60)
    within(40, lambda: everything(members), "one member reads all")
    members += [Member(address, "ck-groups", "ck-group"), Member(address, "ck-groups", "ck-group")]
    within(40, lambda: shared(*members) and [len(m.assigned()) for m in members] == [2, 2, 2], "three members share six partitions")
    send(60)
    within(40, lambda: everything(members), "three members read all")
    description = admin(address).describe_consumer_groups(["ck-group"])["ck-group"].result(20)
    equal((len(description.members), description.state, description.partition_assignor), (3, ck.ConsumerGroupState.STABLE, "range"), "description")
    equal(sorted(p.partition for m in description.members for p in m.assignment.topic_partitions), list(range(6)), "assignment described")
    members[1].kill()
    send(60)
    within(40, lambda: everything(members), "a killed member's partitions go to the others after its session")
    check(shared(members[0], members[2]), "two members share six partitions", [m.assigned() for m in members])
    got = [place for member in members for place in member.got()]
    equal(len(got), len(set(got)), "nothing was read twice, as each record was committed at once")
    for one in members:
        one.kill()
    reader = consumer(address, "ck-group")
    committed = reader.committed([TopicPartition("ck-groups", p) for p in range(6)], timeout=20)
    equal([c.offset for c in committed], [30] * 6, "committed offsets")
    reader.close()


def static_members(address):
    create(address, "ck-static", 4)
    members = [Member(address, "ck-static", "ck-static-group", f"group.instance.id=member-{n}") for n in range(2)]
    within(40, lambda: all(m.assigned() and len(m.assigned()) == 2 for m in members), "two static members")
    held = members[0].assigned()
    # Killed and back within its session: the same partitions, and no rebalance for the other.
    before = len(members[1].lines)
    members[0].kill()
    members[0] = Member(address, "ck-static", "ck-static-group", "group.instance.id=member-0")
    within(20, lambda: members[0].assigned() == held, "the same partitions again")
    time.sleep(1)
    equal(members[1].lines[before:], [], "the other member's rebalances")
    for one in members:
        one.kill()


def commits(address):
    create(address, "ck-commits", 2)
    one = consumer(address, "ck-commits")
    place = TopicPartition("ck-commits", 0, 17, "metadata →")
    equal([p.error for p in one.commit(offsets=[place], asynchronous=False)], [None], "commit of a simple consumer")
    found = one.committed([TopicPartition("ck-commits", 0), TopicPartition("ck-commits", 1)], timeout=20)
    equal([(p.offset, p.metadata) for p in found], [(17, "metadata →"), (ck.OFFSET_INVALID, None)], "committed")
    one.close()
    a = admin(address)
    listed = a.list_consumer_group_offsets([ck.ConsumerGroupTopicPartitions("ck-commits")])["ck-commits"].result(20)
    equal([(p.topic, p.partition, p.offset) for p in listed.topic_partitions], [("ck-commits", 0, 17)], "all offsets of the group")
    altered = [TopicPartition("ck-commits", 0, 3), TopicPartition("ck-commits", 1, 4)]
    a.alter_consumer_group_offsets([ck.ConsumerGroupTopicPartitions("ck-commits", altered)])["ck-commits"].result(20)
    listed = a.list_consumer_group_offsets([ck.ConsumerGroupTopicPartitions("ck-commits")])["ck-commits"].result(20)
    equal(sorted((p.partition, p.offset) for p in listed.topic_partitions), [(0, 3), (1, 4)], "altered offsets")
    groups_ = a.list_consumer_groups(request_timeout=20).result(20)
    equal(groups_.errors, [], "errors of list groups")
    check("ck-commits" in [g.group_id for g in groups_.valid], "listed groups", [g.group_id for g in groups_.valid])
    a.delete_consumer_groups(["ck-commits"])["ck-commits"].result(20)
    fails(KafkaError.GROUP_ID_NOT_FOUND, lambda: a.delete_consumer_groups(["ck-commits"])["ck-commits"].result(20))


def transactional(address, name, **config):
    sender = Sender(address, transactional_id=name, transaction_timeout_ms=30_000, **config)
    sender.producer.init_transactions(30)
    return sender


def transactions(address):
    create(address, "ck-tx", 2)
    create(address, "ck-tx-in", 1)
    source = Sender(address)
    for n in range(10):
        source.send("ck-tx-in", str(n).encode())
    source.flush()

    def seen(level):
        return [[m.value().decode() for m in read(address, "ck-tx", p, isolation_level=level)] for p in range(2)]

    one = transactional(address, "ck-one")

    def transaction(name, end):
        one.producer.begin_transaction()
        for n in range(6):
            one.send("ck-tx", f"{name}{n}".encode(), partition=n % 2)
        one.flush()
        end()

    transaction("a", lambda: one.producer.commit_transaction(30))
    transaction("b", lambda: one.producer.abort_transaction(30))
    transaction("c", lambda: one.producer.commit_transaction(30))
    every = [["a0", "a2", "a4", "b0", "b2", "b4", "c0", "c2", "c4"], ["a1", "a3", "a5", "b1", "b3", "b5", "c1", "c3", "c5"]]
    committed = [[v for v in part if v[0] != "b"] for part in every]
    equal(seen("read_uncommitted"), every, "read_uncommitted")
    equal(seen("read_committed"), committed, "read_committed")
    # An open transaction holds back committed readers, also from what others wrote behind it.
    one.producer.begin_transaction()
    one.send("ck-tx", b"d0", partition=0)
    one.flush()
    source.send("ck-tx", b"plain", partition=0)
    source.flush()
    equal(seen("read_committed"), committed, "read_committed behind an open transaction")
    every[0] += ["d0", "plain"]
    equal(seen("read_uncommitted"), every, "read_uncommitted of an open transaction")
    # Consume, transform, produce.
    reader = consumer(address, "ck-tx-group", isolation_level="read_committed")
    reader.subscribe(["ck-tx-in"])
    taken = []
    while len(taken) < 10:
        message = reader.poll(1)
        if message is not None and not message.error():
            taken.append(message)
    position = reader.position(reader.assignment())
    one.producer.send_offsets_to_transaction(position, reader.consumer_group_metadata(), 30)
    one.producer.commit_transaction(30)
    reader.close()
    committed[0] += ["d0", "plain"]
    equal(seen("read_committed"), committed, "read_committed after the commit")
    after = consumer(address, "ck-tx-group")
    equal([p.offset for p in after.committed([TopicPartition("ck-tx-in", 0)], timeout=20)], [10], "offset committed by the transaction")
    after.close()
    # A second producer of the same name fences the first, whose open transaction is aborted.
    one.producer.begin_transaction()
    one.send("ck-tx", b"zombie", partition=1)
    one.flush()
    two = transactional(address, "ck-one")
    one.producer.produce("ck-tx", b"zombie2", partition=1)
    try:
        one.producer.commit_transaction(30)
        raise Failure("the fenced producer could commit")
    except KafkaException as exception:
        equal(exception.args[0].code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED), True, "fenced")
    two.producer.begin_transaction()
    two.send("ck-tx", b"e1", partition=1)
    two.flush()
    two.producer.commit_transaction(30)
    equal(seen("read_committed")[1], committed[1] + ["e1"], "read_committed after fencing")


def fails(code, action):
    try:
        action()
    except KafkaException as exception:
        equal(exception.args[0].code(), code, f"error of a call, {exception}")
        return
    raise Failure(f"a call succeeded that should fail with {code}")


def admin_calls(address):
    a = admin(address)

    def one(futures):
        [(_, future)] = futures.items()
        return future.result(20)

    def new(name, **kind):
        return lambda: one(a.create_topics([ca.NewTopic(name, **{"num_partitions": 1, "replication_factor": 1, **kind})]))

    new("ck-admin", num_partitions=3, config={"retention.ms": "3600000", "cleanup.policy": "compact"})()
    fails(KafkaError.TOPIC_ALREADY_EXISTS, new("ck-admin"))
    fails(KafkaError.TOPIC_EXCEPTION, new("no spaces"))
    fails(KafkaError.TOPIC_EXCEPTION, new("x" * 250))
    fails(KafkaError.INVALID_REPLICATION_FACTOR, new("ck-admin-replicas", replication_factor=3))
    fails(KafkaError.INVALID_PARTITIONS, new("ck-admin-partitions", num_partitions=0))
    fails(KafkaError.INVALID_CONFIG, new("ck-admin-config", config={"retention.ms": "soon"}))
    one(a.create_topics([ca.NewTopic("ck-admin-dry", 1, 1)], validate_only=True))
    topics = within(20, lambda: (t := a.list_topics(timeout=20).topics) and "ck-admin" in t and t, "the topic is listed")
    check("ck-admin" in topics and "ck-admin-dry" not in topics, "listed topics", sorted(topics))
    equal(sorted(topics["ck-admin"].partitions), [0, 1, 2], "partitions listed")
    one(a.create_partitions([ca.NewPartitions("ck-admin", 5)]))
    within(20, lambda: len(a.list_topics("ck-admin", timeout=20).topics["ck-admin"].partitions) == 5, "partitions added")
    fails(KafkaError.INVALID_PARTITIONS, lambda: one(a.create_partitions([ca.NewPartitions("ck-admin", 2)])))
    sender = Sender(address)
    for n in range(50):
        sender.send("ck-admin", b"x", key=b"a compacted topic wants one", partition=4)
    sender.flush()

    resource = ca.ConfigResource(ca.ConfigResource.Type.TOPIC, "ck-admin")
    settings = one(a.describe_configs([resource]))
    equal(settings["retention.ms"].value, "3600000", "retention.ms")
    equal(settings["cleanup.policy"].value, "compact", "cleanup.policy")
    check("max.message.bytes" in settings and settings["max.message.bytes"].is_default, "max.message.bytes", sorted(settings))
    change = ca.ConfigResource(
        ca.ConfigResource.Type.TOPIC,
        "ck-admin",
        incremental_configs=[ca.ConfigEntry("retention.ms", "7200000", incremental_operation=ca.AlterConfigOpType.SET),
                             ca.ConfigEntry("cleanup.policy", None, incremental_operation=ca.AlterConfigOpType.DELETE)])
    one(a.incremental_alter_configs([change]))
    settings = one(a.describe_configs([resource]))
    equal((settings["retention.ms"].value, settings["cleanup.policy"].value), ("7200000", "delete"), "settings after a change")
    wrong = ca.ConfigResource(ca.ConfigResource.Type.TOPIC, "ck-admin",
                              incremental_configs=[ca.ConfigEntry("no.such.key", "1", incremental_operation=ca.AlterConfigOpType.SET)])
    fails(KafkaError.INVALID_CONFIG, lambda: one(a.incremental_alter_configs([wrong])))
    check(one(a.describe_configs([ca.ConfigResource(ca.ConfigResource.Type.BROKER, "0")])), "settings of the broker")

    low = one(a.delete_records([TopicPartition("ck-admin", 4, 20)])).low_watermark
    equal(low, 20, "low watermark after deleting records")
    equal(consumer(address).get_watermark_offsets(TopicPartition("ck-admin", 4), timeout=20), (20, 50), "watermarks after deleting")
    equal([m.offset() for m in read(address, "ck-admin", 4)], list(range(20, 50)), "records left")
    fails(KafkaError.OFFSET_OUT_OF_RANGE, lambda: one(a.delete_records([TopicPartition("ck-admin", 4, 51)])))

    cluster = a.describe_cluster(request_timeout=20).result(20)
    check(cluster.cluster_id and cluster.controller is not None and len(cluster.nodes) >= 1, "cluster", cluster.cluster_id, cluster.nodes)
    described = one(a.describe_topics(ck.TopicCollection(["ck-admin"])))
    equal((described.name, len(described.partitions)), ("ck-admin", 5), "topic described")
    one(a.delete_topics(["ck-admin"]))
    within(20, lambda: "ck-admin" not in a.list_topics(timeout=20).topics, "the topic is gone")
    fails(KafkaError.UNKNOWN_TOPIC_OR_PART, lambda: one(a.delete_topics(["ck-admin"])))


def errors(address):
    create(address, "ck-errors", 1, {"max.message.bytes": "10000"})
    sender = Sender(address, message_max_bytes=500_000)
    sender.send("ck-errors", bytes(9_000))
    sender.flush()
    sender.send("ck-errors", value(1, 200_000))
    sender.producer.flush(30)
    equal([e.code() for e in sender.failures], [KafkaError.MSG_SIZE_TOO_LARGE], "too large")
    equal(len(sender.delivered), 1, "what is small enough")
    # Made by being named.
    sender = Sender(address)
    sender.send("ck-auto", b"first")
    sender.flush()
    equal([m.value() for m in read(address, "ck-auto", 0)], [b"first"], "a topic made by producing to it")
    fails(KafkaError._UNKNOWN_PARTITION, lambda: sender.producer.produce("ck-auto", b"x", partition=77))
    reader = consumer(address, auto_offset_reset="error")
    reader.assign([TopicPartition("ck-auto", 0, 1000)])
    message = within(20, lambda: reader.poll(1), "an error from far behind the end")
    equal(message.error().code(), KafkaError._AUTO_OFFSET_RESET, "out of range")
    reader.close()


def endure_group(address, topic, partitions):
    """A group member that commits what it reads while the broker is killed: an offset that was committed is never lost."""
    import select

    committed, commits, checks_ = {}, 0, 0

    def lost(places):
        for place in places:
            mine = committed.get(place.partition, -1)
            check(place.error is None and max(place.offset, -1) >= mine, "a committed offset is lost", place, mine)

    def assigned(one, places):
        # Where it goes on is where it committed.
        lost(one.committed(places, timeout=60))

    reader = consumer(address, "endure", reconnect_backoff_max_ms=200, session_timeout_ms=10_000)
    reader.subscribe([topic], on_assign=assigned)
    places = [TopicPartition(topic, p) for p in range(int(partitions))]
    while not select.select([sys.stdin], [], [], 0)[0]:
        messages = [m for m in reader.consume(500, 0.2) if not m.error()]
        if not messages:
            continue
        ends = {m.partition(): m.offset() + 1 for m in messages}
        try:
            done = reader.commit(offsets=[TopicPartition(topic, p, end) for p, end in ends.items()], asynchronous=False)
        except KafkaException:
            continue
        for place in done:
            if place.error is None:
                committed[place.partition] = max(place.offset, committed.get(place.partition, 0))
                commits += 1
        if commits % 50 < len(done):
            try:
                lost(reader.committed(places, timeout=5))
                checks_ += 1
            except KafkaException:
                continue
    reader.close()
    lost(consumer(address, "endure").committed(places, timeout=60))
    check(commits > 0, "commits")
    print(commits, "commits,", checks_, "looks at them")


run({f.__name__: f for f in (roundtrip, acks, offsets, member, groups, static_members, commits, transactions, admin_calls, errors, endure_group)})
