// What kafkajs does with a broker: node.js DIRECTORY HOST:PORT, DIRECTORY being where kafkajs is installed.
const { createRequire } = require("node:module");
const { deepStrictEqual: equal, ok, rejects } = require("node:assert");
const [, , directory, address] = process.argv;
const { CompressionTypes, ConfigResourceTypes, Kafka, logLevel } = createRequire(`${directory}/`)("kafkajs");

const kafka = new Kafka({ clientId: "node-größe", brokers: [address], logLevel: logLevel.NOTHING, retry: { retries: 8 } });
const text = (bytes) => (bytes === null || bytes === undefined ? null : bytes.toString());

// Reads until so many messages have come, as a group's member; in order of partition and offset.
async function read(topic, groupId, count, config = {}) {
    const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 500, maxWaitTimeInMs: 100, ...config });
    const messages = [];
    await consumer.connect();
    await consumer.subscribe({ topics: [topic], fromBeginning: true });
    await new Promise((done, failed) => {
        const patience = setTimeout(() => failed(new Error(`${messages.length} of ${count} messages of ${topic}`)), 60000);
        consumer.run({
            eachMessage: async ({ partition, message }) => {
                messages.push({ partition, ...message });
                if (messages.length === count) {
                    clearTimeout(patience);
                    done();
                }
            },
        }).catch(failed);
    });
    await consumer.commitOffsets(Object.entries(messages.reduce((at, m) => ({ ...at, [m.partition]: m.offset }), {}))
        .map(([partition, offset]) => ({ topic, partition: Number(partition), offset: String(BigInt(offset) + 1n) })));
    await consumer.disconnect();
    return messages.sort((a, b) => a.partition - b.partition || Number(BigInt(a.offset) - BigInt(b.offset)));
}

async function roundtrip(admin) {
    await admin.createTopics({ topics: [{ topic: "node", numPartitions: 3, configEntries: [{ name: "retention.ms", value: "86400000" }] }] });
    for (const config of [{}, { idempotent: true, maxInFlightRequests: 1 }]) {
        const producer = kafka.producer({ allowAutoTopicCreation: false, ...config });
        await producer.connect();
        for (const compression of [CompressionTypes.None, CompressionTypes.GZIP]) {
            const messages = [...Array(300).keys()].map((n) => ({
                key: n % 3 ? `k${n}` : null,
                value: n % 7 ? "v".repeat(n * 10) : null,
                partition: n % 3,
                timestamp: String(1_700_000_000_000 + n),
                headers: { a: `${n}`, list: ["1", "2"] },
            }));
            const stored = await producer.send({ topic: "node", acks: -1, compression, messages });
            equal(stored.map((part) => part.errorCode), [0, 0, 0]);
        }
        await producer.disconnect();
    }
    const messages = await read("node", "node-group", 1200);
    equal(messages.length, 1200);
    messages.forEach((message, at) => {
        const n = (at % 100) * 3 + message.partition;
        equal([message.partition, message.offset], [Math.floor(at / 400), String(at % 400)]);
        equal([text(message.key), text(message.value)], [n % 3 ? `k${n}` : null, n % 7 ? "v".repeat(n * 10) : null]);
        equal([message.timestamp, text(message.headers.a)], [String(1_700_000_000_000 + n), `${n}`]);
        equal(message.headers.list.map(text), ["1", "2"]);
    });
    const ends = await admin.fetchTopicOffsets("node");
    equal(ends.map((part) => [part.low, part.high]), Array(3).fill(["0", "400"]));
    const since = await admin.fetchTopicOffsetsByTimestamp("node", 1_700_000_000_150);
    equal(since.map((part) => part.offset), ["50", "50", "50"]);
    const [{ partitions }] = await admin.fetchOffsets({ groupId: "node-group", topics: ["node"] });
    equal(partitions.map((part) => part.offset), ["400", "400", "400"]);
}

async function administration(admin) {
    const { brokers, clusterId } = await admin.describeCluster();
    ok(brokers.length >= 1 && clusterId);
    await rejects(admin.createTopics({ topics: [{ topic: "node", numPartitions: 1 }], validateOnly: false }).then((made) => made || Promise.reject(new Error("exists"))), /exist/);
    await admin.createPartitions({ topicPartitions: [{ topic: "node", count: 5 }] });
    equal((await admin.fetchTopicMetadata({ topics: ["node"] })).topics[0].partitions.length, 5);
    const resource = { type: ConfigResourceTypes.TOPIC, name: "node" };
    const setting = async () => (await admin.describeConfigs({ resources: [resource] })).resources[0].configEntries.find((e) => e.configName === "retention.ms").configValue;
    equal(await setting(), "86400000");
    await admin.alterConfigs({ resources: [{ ...resource, configEntries: [{ name: "retention.ms", value: "3600000" }] }] });
    equal(await setting(), "3600000");
    const groups = (await admin.listGroups()).groups.map((group) => group.groupId);
    ok(groups.includes("node-group"), groups);
    equal((await admin.describeGroups(["node-group"])).groups[0].state, "Empty");
    await admin.setOffsets({ groupId: "node-group", topic: "node", partitions: [{ partition: 0, offset: "7" }] });
    await admin.deleteTopicRecords({ topic: "node", partitions: [{ partition: 0, offset: "10" }] });
    equal((await admin.fetchTopicOffsets("node")).find((part) => part.partition === 0).low, "10");
    await admin.deleteGroups(["node-group"]);
    await admin.deleteTopics({ topics: ["node"] });
    ok(!(await admin.listTopics()).includes("node"));
}

async function members(admin) {
    await admin.createTopics({ topics: [{ topic: "shared", numPartitions: 4 }] });
    const seen = [];
    const start = async () => {
        const consumer = kafka.consumer({ groupId: "shared-group", sessionTimeout: 10000, heartbeatInterval: 300, maxWaitTimeInMs: 100, rebalanceTimeout: 10000 });
        const member = { consumer, partitions: [] };
        consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => { member.partitions = payload.memberAssignment.shared ?? []; });
        await consumer.connect();
        await consumer.subscribe({ topic: "shared", fromBeginning: true });
        await consumer.run({ eachMessage: async ({ message }) => { seen.push(text(message.value)); } });
        return member;
    };
    const until = async (what, is) => {
        for (const began = Date.now(); !is(); await new Promise((done) => setTimeout(done, 50))) ok(Date.now() - began < 60000, what);
    };
    const first = await start();
    await until("one member has all", () => first.partitions.length === 4);
    const second = await start();
    await until("two members share", () => first.partitions.length === 2 && second.partitions.length === 2);
    const producer = kafka.producer();
    await producer.connect();
    const values = [...Array(200).keys()].map(String);
    await producer.send({ topic: "shared", messages: values.map((value) => ({ value, key: value })) });
    await until("every message", () => seen.length >= 200);
    await first.consumer.disconnect();
    await until("the other has all", () => second.partitions.length === 4);
    await second.consumer.disconnect();
    await producer.disconnect();
    equal(seen.map(Number).sort((a, b) => a - b), values.map(Number));
}

async function transactions() {
    const producer = kafka.producer({ transactionalId: "node-tx", maxInFlightRequests: 1, idempotent: true });
    await producer.connect();
    for (const [name, commits] of [["first", true], ["aborted", false], ["second", true]]) {
        const transaction = await producer.transaction();
        await transaction.send({ topic: "node-tx", messages: [{ value: name }] });
        await transaction.sendOffsets({ consumerGroupId: "node-tx-group", topics: [{ topic: "node-tx", partitions: [{ partition: 0, offset: commits ? "1" : "9" }] }] });
        await (commits ? transaction.commit() : transaction.abort());
    }
    await producer.disconnect();
    equal((await read("node-tx", "node-reader", 2)).map((message) => text(message.value)), ["first", "second"]);
    equal((await read("node-tx", "node-all", 3, { readUncommitted: true })).map((message) => text(message.value)), ["first", "aborted", "second"]);
    const admin = kafka.admin();
    await admin.connect();
    equal((await admin.fetchOffsets({ groupId: "node-tx-group", topics: ["node-tx"] }))[0].partitions[0].offset, "1");
    await admin.disconnect();
}

async function main() {
    const admin = kafka.admin();
    await admin.connect();
    for (const check of [roundtrip, administration, members, transactions]) {
        try {
            await check(admin);
        } catch (error) {
            console.log(`FAILED ${check.name}: ${error.stack}`);
            process.exit(1);
        }
        console.log(`${check.name}: ok`);
    }
    await admin.disconnect();
}

main();
