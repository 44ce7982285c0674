import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.*;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.serialization.*;

/** The Java client against a broker: `java Check HOST:PORT SCENARIO`. */
public class Check {
    static String address;
    static final List<String> CODECS = List.of("none", "gzip", "snappy", "lz4", "zstd");
    static final Duration PATIENCE = Duration.ofSeconds(60);
    /** Yesterday: records that are years old are soon deleted. */
    static final long BASE = System.currentTimeMillis() / 86_400_000 * 86_400_000 - 86_400_000;

    public static void main(String[] arguments) throws Exception {
        address = arguments[0];
        try {
            switch (arguments[1]) {
                case "roundtrip" -> roundtrip();
                case "groups" -> groups();
                case "transactions" -> transactions();
                case "crash-in-transaction" -> crashInTransaction();
                case "admin" -> admin();
                case "copy" -> copy(arguments[2], arguments[3]);
                default -> throw new IllegalArgumentException(arguments[1]);
            }
        } catch (Throwable failure) {
            failure.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
        System.out.println("ok " + arguments[1]);
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    static void check(boolean holds, String text) {
        if (!holds) throw new AssertionError(text);
    }

    static void equal(Object found, Object expected, String text) {
        check(Objects.equals(found, expected), text + ": " + found + ", not " + expected);
    }

    static Map<String, Object> with(Object... settings) {
        Map<String, Object> all = new HashMap<>();
        all.put("bootstrap.servers", address);
        for (int at = 0; at < settings.length; at += 2) all.put((String) settings[at], settings[at + 1]);
        return all;
    }

    static KafkaProducer<byte[], byte[]> producer(Object... settings) {
        return new KafkaProducer<>(with(settings), new ByteArraySerializer(), new ByteArraySerializer());
    }

    static KafkaConsumer<byte[], byte[]> consumer(Object... settings) {
        Map<String, Object> all = with("group.id", "none", "enable.auto.commit", false, "auto.offset.reset", "earliest", "fetch.max.wait.ms", 100);
        all.putAll(with(settings));
        return new KafkaConsumer<>(all, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] content(long seed, int length) {
        byte[] content = new byte[length];
        new Random(seed).nextBytes(content);
        for (int at = 0; at < length; at++) if (at % 64 >= 32) content[at] = 0;
        return content;
    }

    /** Everything in a partition, up to its end as this reader is told it. */
    static List<ConsumerRecord<byte[], byte[]>> read(String topic, int partition, Object... settings) {
        List<ConsumerRecord<byte[], byte[]>> found = new ArrayList<>();
        TopicPartition place = new TopicPartition(topic, partition);
        try (var reader = consumer(settings)) {
            reader.assign(List.of(place));
            reader.seekToBeginning(List.of(place));
            long end = reader.endOffsets(List.of(place)).get(place);
            long late = System.nanoTime() + PATIENCE.toNanos();
            while (reader.position(place) < end) {
                reader.poll(Duration.ofMillis(500)).forEach(found::add);
                check(System.nanoTime() < late, topic + ": no end, at " + reader.position(place) + " of " + end);
            }
        }
        return found;
    }

    static List<String> values(String topic, int partition, String isolation) {
        return read(topic, partition, "isolation.level", isolation).stream().map(r -> new String(r.value())).toList();
    }

    static void create(String topic, int partitions) throws Exception {
        try (Admin admin = Admin.create(with())) {
            admin.createTopics(List.of(new NewTopic(topic, Optional.of(partitions), Optional.empty()))).all().get();
        }
    }

    static void roundtrip() throws Exception {
        create("java-roundtrip", CODECS.size());
        Header[] none = {};
        Header[] twice = {new RecordHeader("a", bytes("1")), new RecordHeader("a", null), new RecordHeader("a", bytes("")), new RecordHeader("", bytes("2"))};
        List<Object[]> records = new ArrayList<>();
        records.add(new Object[] {null, null, twice});
        records.add(new Object[] {bytes(""), bytes(""), none});
        records.add(new Object[] {bytes("schlüssel →"), bytes("größe 🦀"), twice});
        records.add(new Object[] {null, content(1, 16_384), none});
        records.add(new Object[] {null, content(2, 900 * 1024), none});
        for (int n = 0; n < 3000; n++) records.add(new Object[] {bytes("" + n), content(n, n % 400), none});
        for (int partition = 0; partition < CODECS.size(); partition++) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            try (var sender = producer("compression.type", CODECS.get(partition), "linger.ms", 5)) {
                for (int n = 0; n < records.size(); n++) {
                    Object[] record = records.get(n);
                    sent.add(sender.send(new ProducerRecord<>("java-roundtrip", partition, BASE + n, (byte[]) record[0], (byte[]) record[1], List.of((Header[]) record[2]))));
                }
            }
            for (int n = 0; n < sent.size(); n++) {
                equal(sent.get(n).get().offset(), (long) n, CODECS.get(partition) + ": offset given");
                equal(sent.get(n).get().timestamp(), BASE + n, CODECS.get(partition) + ": timestamp given");
            }
        }
        for (int partition = 0; partition < CODECS.size(); partition++) {
            for (int most : new int[] {1 << 20, 1000}) {
                var found = read("java-roundtrip", partition, "max.partition.fetch.bytes", most, "fetch.max.bytes", most);
                equal(found.size(), records.size(), "records of " + CODECS.get(partition));
                for (int n = 0; n < found.size(); n++) {
                    var record = found.get(n);
                    String what = CODECS.get(partition) + ", record " + n;
                    equal(record.offset(), (long) n, what);
                    equal(record.timestamp(), BASE + n, what);
                    equal(record.timestampType(), TimestampType.CREATE_TIME, what);
                    equal(record.leaderEpoch().isPresent(), true, what + " has a leader epoch");
                    check(Arrays.equals(record.key(), (byte[]) records.get(n)[0]), what + ": key");
                    check(Arrays.equals(record.value(), (byte[]) records.get(n)[1]), what + ": value");
                    check(Arrays.equals(record.headers().toArray(), (Header[]) records.get(n)[2]), what + ": headers");
                }
            }
        }
        TopicPartition place = new TopicPartition("java-roundtrip", 3);
        try (var reader = consumer()) {
            var at = reader.offsetsForTimes(Map.of(place, BASE + 2222)).get(place);
            equal(at.offset(), 2222L, "offset by time, inside a compressed batch");
            equal(reader.offsetsForTimes(Map.of(place, BASE + 1_000_000)).get(place), null, "offset by a time in the future");
        }
        try (Admin admin = Admin.create(with())) {
            var latest = admin.listOffsets(Map.of(place, OffsetSpec.maxTimestamp())).all().get().get(place);
            equal(latest.offset(), 3004L, "offset of the largest timestamp");
        }
    }

    static void groups() throws Exception {
        create("java-groups", 6);
        for (String assignor : List.of("RangeAssignor", "CooperativeStickyAssignor")) {
            Object[] settings = {"group.id", "java-" + assignor, "partition.assignment.strategy", "org.apache.kafka.clients.consumer." + assignor,
                "session.timeout.ms", 6000, "heartbeat.interval.ms", 300};
            Set<String> got = ConcurrentHashMap.newKeySet();
            var members = new ArrayList<KafkaConsumer<byte[], byte[]>>();
            int sent = 0;
            for (int count : new int[] {1, 3, 2}) {
                while (members.size() < count) {
                    var member = consumer(settings);
                    member.subscribe(List.of("java-groups"));
                    members.add(member);
                }
                while (members.size() > count) members.remove(0).close();
                try (var sender = producer()) {
                    for (int n = 0; n < 60; n++) sender.send(new ProducerRecord<>("java-groups", n % 6, null, bytes(assignor + (sent + n))));
                }
                sent += 60;
                int wanted = sent;
                long late = System.nanoTime() + PATIENCE.toNanos();
                while (got.size() < wanted || !members.stream().allMatch(m -> m.assignment().size() == 6 / count)) {
                    for (var member : members) {
                        for (var record : member.poll(Duration.ofMillis(50))) {
                            String value = new String(record.value());
                            if (value.startsWith(assignor)) check(got.add(value), assignor + ": " + value + " was read twice");
                        }
                        try {
                            member.commitSync();
                        } catch (RebalanceInProgressException passing) {
                            // Its next poll joins again.
                        }
                    }
                    check(System.nanoTime() < late, assignor + ": " + got.size() + " of " + wanted + " read by " + members.stream().map(KafkaConsumer::assignment).toList());
                }
            }
            try (Admin admin = Admin.create(with())) {
                var group = admin.describeConsumerGroups(List.of("java-" + assignor)).all().get().get("java-" + assignor);
                equal(group.members().size(), 2, "members");
                equal(group.groupState(), GroupState.STABLE, "state");
            }
            for (var member : members) member.close();
        }
    }

    static void transactions() throws Exception {
        create("java-tx", 2);
        create("java-tx-in", 1);
        try (var plain = producer()) {
            for (int n = 0; n < 10; n++) plain.send(new ProducerRecord<>("java-tx-in", bytes("" + n)));
        }
        Object[] settings = {"transactional.id", "java-one", "transaction.timeout.ms", 30_000};
        var one = producer(settings);
        one.initTransactions();
        for (String name : List.of("a", "b", "c")) {
            one.beginTransaction();
            for (int n = 0; n < 4; n++) one.send(new ProducerRecord<>("java-tx", n % 2, null, bytes(name + n)));
            if (name.equals("b")) {
                one.flush();
                one.abortTransaction();
            } else {
                one.commitTransaction();
            }
        }
        equal(values("java-tx", 0, "read_committed"), List.of("a0", "a2", "c0", "c2"), "read_committed");
        equal(values("java-tx", 1, "read_uncommitted"), List.of("a1", "a3", "b1", "b3", "c1", "c3"), "read_uncommitted");
        // Consume, transform, produce.
        try (var reader = consumer("group.id", "java-tx-group", "isolation.level", "read_committed")) {
            reader.subscribe(List.of("java-tx-in"));
            int taken = 0;
            one.beginTransaction();
            while (taken < 10) {
                for (var record : reader.poll(Duration.ofMillis(500))) {
                    one.send(new ProducerRecord<>("java-tx", 0, null, record.value()));
                    taken++;
                }
            }
            TopicPartition in = new TopicPartition("java-tx-in", 0);
            one.sendOffsetsToTransaction(Map.of(in, new OffsetAndMetadata(10, "in a transaction")), reader.groupMetadata());
            equal(values("java-tx", 0, "read_committed").size(), 4, "records before the commit");
            try (var other = consumer("group.id", "java-tx-group", "isolation.level", "read_uncommitted")) {
                equal(other.committed(Set.of(in), Duration.ofSeconds(1)).get(in) == null, true, "no offset before the commit");
            } catch (org.apache.kafka.common.errors.TimeoutException stable) {
                // A reader that wants stable offsets waits for the end of the transaction.
            }
            one.commitTransaction();
            equal(reader.committed(Set.of(in)).get(in), new OffsetAndMetadata(10, "in a transaction"), "offset of the transaction");
        }
        equal(values("java-tx", 0, "read_committed").size(), 14, "records after the commit");
        // Fencing: the open transaction of the first is aborted by the second.
        one.beginTransaction();
        one.send(new ProducerRecord<>("java-tx", 1, null, bytes("zombie")));
        one.flush();
        var two = producer(settings);
        two.initTransactions();
        try {
            one.send(new ProducerRecord<>("java-tx", 1, null, bytes("zombie2")));
            one.commitTransaction();
            throw new AssertionError("the fenced producer could commit");
        } catch (KafkaException fenced) {
            Throwable cause = fenced instanceof ProducerFencedException || fenced instanceof InvalidProducerEpochException ? fenced : fenced.getCause();
            check(cause instanceof ProducerFencedException || cause instanceof InvalidProducerEpochException, "fenced by " + fenced);
        }
        two.beginTransaction();
        two.send(new ProducerRecord<>("java-tx", 1, null, bytes("d")));
        two.commitTransaction();
        equal(values("java-tx", 1, "read_committed"), List.of("a1", "a3", "c1", "c3", "d"), "read_committed after fencing");
        // An operator ends what hangs.
        two.beginTransaction();
        two.send(new ProducerRecord<>("java-tx", 0, null, bytes("hanging"))).get();
        try (Admin admin = Admin.create(with())) {
            equal(admin.listTransactions().all().get().stream().map(TransactionListing::transactionalId).filter("java-one"::equals).toList(), List.of("java-one"), "transactions listed");
            var described = admin.describeTransactions(List.of("java-one")).all().get().get("java-one");
            equal(described.state(), TransactionState.ONGOING, "state");
            equal(described.topicPartitions(), Set.of(new TopicPartition("java-tx", 0)), "partitions");
            TopicPartition place = new TopicPartition("java-tx", 0);
            var producers = admin.describeProducers(List.of(place)).all().get().get(place).activeProducers();
            check(producers.stream().anyMatch(p -> p.producerId() == described.producerId() && p.currentTransactionStartOffset().isPresent()), "producers " + producers);
            admin.fenceProducers(List.of("java-one")).all().get();
        }
        equal(values("java-tx", 0, "read_committed").size(), 14, "records after the hanging one was ended");
    }

    /** Dies with its transaction open; the next of its name goes on. */
    static void crashInTransaction() throws Exception {
        var one = producer("transactional.id", "java-crash", "transaction.timeout.ms", 30_000);
        one.initTransactions();
        one.beginTransaction();
        one.send(new ProducerRecord<>("java-crash", bytes("done")));
        one.commitTransaction();
        one.beginTransaction();
        one.send(new ProducerRecord<>("java-crash", bytes("lost"))).get();
        System.out.println("open");
        System.out.flush();
        Runtime.getRuntime().halt(9);
    }

    static void admin() throws Exception {
        try (Admin admin = Admin.create(with())) {
            NewTopic topic = new NewTopic("java-admin", Optional.of(2), Optional.empty()).configs(Map.of("cleanup.policy", "compact"));
            var created = admin.createTopics(List.of(topic));
            created.all().get();
            // Nulls here end the Java client.
            equal(created.numPartitions("java-admin").get(), 2, "partitions of the answer");
            equal(created.replicationFactor("java-admin").get(), 1, "replication factor of the answer");
            equal(created.config("java-admin").get().get("cleanup.policy").value(), "compact", "configs of the answer");
            fails(TopicExistsException.class, admin.createTopics(List.of(topic)).all());
            fails(InvalidReplicationFactorException.class, admin.createTopics(List.of(new NewTopic("java-admin-3", 1, (short) 3))).all());
            fails(InvalidTopicException.class, admin.createTopics(List.of(new NewTopic("..", 1, (short) 1))).all());
            admin.createTopics(List.of(new NewTopic("java-admin-dry", 1, (short) 1)), new CreateTopicsOptions().validateOnly(true)).all().get();
            check(!admin.listTopics().names().get().contains("java-admin-dry"), "validate only");
            var described = admin.describeTopics(List.of("java-admin")).allTopicNames().get().get("java-admin");
            check(!described.topicId().equals(Uuid.ZERO_UUID), "the topic has an id");
            var byId = admin.describeTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).allTopicIds().get();
            equal(byId.get(described.topicId()).name(), "java-admin", "topic by its id");
            fails(UnknownTopicOrPartitionException.class, admin.describeTopics(List.of("java-none")).allTopicNames());
            admin.createPartitions(Map.of("java-admin", NewPartitions.increaseTo(3))).all().get();
            fails(InvalidPartitionsException.class, admin.createPartitions(Map.of("java-admin", NewPartitions.increaseTo(3))).all());

            ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, "java-admin");
            var change = new AlterConfigOp(new ConfigEntry("retention.bytes", "12345678"), AlterConfigOp.OpType.SET);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(change))).all().get();
            var config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
            equal(config.get("retention.bytes").value(), "12345678", "retention.bytes");
            equal(config.get("retention.bytes").source(), ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG, "where it comes from");
            equal(config.get("cleanup.policy").value(), "compact", "cleanup.policy");
            equal(config.get("max.message.bytes").isDefault(), true, "max.message.bytes");
            var wrong = new AlterConfigOp(new ConfigEntry("retention.bytes", "much"), AlterConfigOp.OpType.SET);
            fails(InvalidConfigurationException.class, admin.incrementalAlterConfigs(Map.of(resource, List.of(wrong))).all());
            ConfigResource broker = new ConfigResource(ConfigResource.Type.BROKER, "0");
            check(!admin.describeConfigs(List.of(broker)).all().get().get(broker).entries().isEmpty(), "settings of the broker");

            // Records of a compacted topic aren't deleted by hand.
            var keep = new AlterConfigOp(new ConfigEntry("cleanup.policy", ""), AlterConfigOp.OpType.DELETE);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(keep))).all().get();
            TopicPartition place = new TopicPartition("java-admin", 2);
            try (var sender = producer()) {
                for (int n = 0; n < 20; n++) sender.send(new ProducerRecord<>("java-admin", 2, bytes("k"), bytes("v")));
            }
            equal(admin.deleteRecords(Map.of(place, RecordsToDelete.beforeOffset(5))).all().get() == null, true, "records deleted");
            equal(admin.listOffsets(Map.of(place, OffsetSpec.earliest())).all().get().get(place).offset(), 5L, "earliest");
            equal(read("java-admin", 2).size(), 15, "records left");

            var cluster = admin.describeCluster();
            check(!cluster.clusterId().get().isEmpty() && !cluster.nodes().get().isEmpty(), "cluster");
            equal(cluster.controller().get().id(), 0, "controller");
            var directories = admin.describeLogDirs(List.of(0)).allDescriptions().get();
            check(!directories.isEmpty(), "log directories");

            admin.alterConsumerGroupOffsets("java-admin-group", Map.of(place, new OffsetAndMetadata(7, "note"))).all().get();
            equal(admin.listConsumerGroupOffsets("java-admin-group").partitionsToOffsetAndMetadata().get(), Map.of(place, new OffsetAndMetadata(7, "note")), "offsets");
            check(admin.listGroups().all().get().stream().anyMatch(g -> g.groupId().equals("java-admin-group")), "groups listed");
            admin.deleteConsumerGroupOffsets("java-admin-group", Set.of(place)).all().get();
            try {
                admin.deleteConsumerGroups(List.of("java-admin-group")).all().get();
            } catch (ExecutionException gone) {
                check(gone.getCause() instanceof GroupIdNotFoundException, "a group that was left empty: " + gone);
            }
            fails(GroupIdNotFoundException.class, admin.deleteConsumerGroups(List.of("java-admin-group")).all());
            admin.deleteTopics(List.of("java-admin")).all().get();
            fails(UnknownTopicOrPartitionException.class, admin.deleteTopics(List.of("java-admin")).all());
        }
        // Too large for the topic, and what that says.
        try (Admin admin = Admin.create(with())) {
            admin.createTopics(List.of(new NewTopic("java-small", 1, (short) 1).configs(Map.of("max.message.bytes", "2000")))).all().get();
        }
        try (var sender = producer()) {
            fails(RecordTooLargeException.class, sender.send(new ProducerRecord<>("java-small", content(1, 100_000))));
            sender.send(new ProducerRecord<>("java-small", content(1, 100))).get();
        }
    }

    static void fails(Class<? extends Exception> kind, Future<?> future) throws Exception {
        try {
            future.get();
        } catch (ExecutionException failure) {
            check(kind.isInstance(failure.getCause()), "failed with " + failure.getCause() + ", not with " + kind.getSimpleName());
            return;
        }
        throw new AssertionError("no " + kind.getSimpleName());
    }

    /** Copies a topic into another exactly once, whatever happens to the broker, until its input closes and nothing is left. */
    static void copy(String from, String to) throws Exception {
        var closed = new CountDownLatch(1);
        new Thread(() -> {
            try {
                while (System.in.read() >= 0) {}
            } catch (java.io.IOException gone) {
                // The same as closed.
            }
            closed.countDown();
        }).start();
        int copied = 0, restarts = 0;
        while (true) {
            try (var reader = consumer("group.id", "copy-" + to, "isolation.level", "read_committed", "max.poll.records", 1000, "session.timeout.ms", 10_000);
                    var sender = producer("transactional.id", "copy-" + to, "transaction.timeout.ms", 60_000)) {
                sender.initTransactions();
                reader.subscribe(List.of(from));
                int idle = 0;
                while (true) {
                    var records = reader.poll(Duration.ofMillis(200));
                    // Nothing more for five seconds after the input closed: all of it is copied.
                    idle = records.isEmpty() ? idle + 1 : 0;
                    if (idle > 25 && closed.getCount() == 0) {
                        System.out.println(copied + " copied, " + restarts + " new producers");
                        return;
                    }
                    if (records.isEmpty()) continue;
                    sender.beginTransaction();
                    try {
                        for (var record : records) sender.send(new ProducerRecord<>(to, record.partition(), record.key(), record.value()));
                        sender.sendOffsetsToTransaction(records.nextOffsets(), reader.groupMetadata());
                        sender.commitTransaction();
                        copied += records.count();
                    } catch (ProducerFencedException | InvalidProducerEpochException | OutOfOrderSequenceException | AuthorizationException fatal) {
                        throw fatal;
                    } catch (KafkaException failed) {
                        sender.abortTransaction();
                        // Back to what was committed.
                        reader.assignment().forEach(place -> {
                            OffsetAndMetadata committed = reader.committed(Set.of(place)).get(place);
                            if (committed == null) reader.seekToBeginning(List.of(place)); else reader.seek(place, committed);
                        });
                    }
                }
            } catch (KafkaException failed) {
                System.err.println("a new producer after " + failed);
                check(++restarts < 1000, "too many failures");
                Thread.sleep(100);
            }
        }
    }
}
