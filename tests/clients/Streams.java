import java.nio.file.Files;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.streams.*;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams against a broker: {@code java Streams HOST:PORT}. Words are counted exactly once, over a repartition topic and a changelog,
 * until the input closes; with no cache every count of a word is there, so one that is lost or taken twice shows.
 */
public class Streams {
    static final int WORDS = 50;
    static final CountDownLatch CLOSED = new CountDownLatch(1);

    public static void main(String[] arguments) throws Exception {
        new Thread(() -> {
            try {
                while (System.in.read() >= 0) {}
            } catch (java.io.IOException gone) {
                // The same as closed.
            }
            CLOSED.countDown();
        }).start();
        try {
            count(arguments[0]);
        } catch (Throwable failure) {
            failure.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    static void count(String address) throws Exception {
        Map<String, Object> common = Map.of("bootstrap.servers", address);
        var admin = Admin.create(common);
        admin.createTopics(List.of(new NewTopic("lines", 4, (short) 1), new NewTopic("counts", 4, (short) 1))).all().get();
        var failures = new AtomicLong();
        var streams = start(address, failures);
        var expected = new TreeMap<String, Long>();
        var lost = new AtomicLong();
        var random = new Random();
        long lines = 0;
        Map<String, Object> patient = new HashMap<>(common);
        patient.putAll(Map.of("linger.ms", 5, "delivery.timeout.ms", 180_000));
        try (var producer = new KafkaProducer<>(patient, new StringSerializer(), new StringSerializer())) {
            while (CLOSED.getCount() > 0) {
                for (int at = 0; at < 100; at++) {
                    String one = "w" + random.nextInt(WORDS), two = "w" + random.nextInt(WORDS);
                    expected.merge(one, 1L, Long::sum);
                    expected.merge(two, 1L, Long::sum);
                    producer.send(new ProducerRecord<>("lines", "line " + lines++, one + " " + two), (where, failed) -> {
                        if (failed != null) lost.incrementAndGet();
                    });
                }
                Thread.sleep(40);
            }
        }
        check(lost.get() == 0, lost + " lines were refused");
        compare(address, expected);
        var changelog = new ConfigResource(ConfigResource.Type.TOPIC, "words-counted-changelog");
        String policy = admin.describeConfigs(List.of(changelog)).all().get().get(changelog).get("cleanup.policy").value();
        check(policy.equals("compact"), "the changelog's policy is " + policy);
        streams.close(Duration.ofSeconds(20));
        streams.cleanUp();
        System.out.println(lines + " lines, every word counted once, " + failures + " threads replaced");
    }

    static KafkaStreams start(String address, AtomicLong failures) throws Exception {
        var settings = new Properties();
        settings.putAll(Map.of(
                StreamsConfig.APPLICATION_ID_CONFIG, "words",
                StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, address,
                StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2,
                StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2,
                StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0,
                StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100,
                StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("streams").toString(),
                StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class,
                StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class,
                StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest"));
        var builder = new StreamsBuilder();
        builder.<String, String>stream("lines")
                .flatMapValues(line -> Arrays.asList(line.split(" ")))
                .groupBy((key, word) -> word)
                .count(Materialized.as(Stores.inMemoryKeyValueStore("counted")))
                .toStream()
                .to("counts", Produced.with(Serdes.String(), Serdes.Long()));
        var streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(failure -> {
            System.err.println("a new thread after " + failure);
            return failures.incrementAndGet() < 1000 ? StreamThreadExceptionResponse.REPLACE_THREAD : StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        return streams;
    }

    /** Reads every committed count: of each word 1, 2, 3 … as often as it was written. */
    static void compare(String address, Map<String, Long> expected) {
        Map<String, Object> settings = Map.of("bootstrap.servers", address, "group.id", "compare", "isolation.level", "read_committed", "auto.offset.reset", "earliest");
        var found = new TreeMap<String, Long>();
        long until = System.nanoTime() + TimeUnit.SECONDS.toNanos(120);
        int idle = 0;
        try (var reader = new KafkaConsumer<>(settings, new StringDeserializer(), new LongDeserializer())) {
            reader.subscribe(List.of("counts"));
            // Some time after all is there, for what is there twice.
            while (idle < 15 && System.nanoTime() < until) {
                var counts = reader.poll(Duration.ofMillis(200));
                for (var count : counts) {
                    long before = found.getOrDefault(count.key(), 0L);
                    check(count.value() == before + 1, count.key() + ": " + count.value() + " follows " + before);
                    found.put(count.key(), count.value());
                }
                idle = counts.isEmpty() && found.equals(expected) ? idle + 1 : 0;
            }
        }
        check(found.equals(expected), "counted " + found + ", not " + expected);
    }

    static void check(boolean holds, String text) {
        if (!holds) throw new AssertionError(text);
    }
}
