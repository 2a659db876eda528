"""Prints every record of a topic as a line of JSON: partition, offset, key, headers, value."""

import json
import os

from kafka import KafkaConsumer, TopicPartition

consumer = KafkaConsumer(bootstrap_servers=os.environ["BROKERS"], auto_offset_reset="earliest", enable_auto_commit=False)
topic = os.environ["TOPIC"]
partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
consumer.assign(partitions)
consumer.seek_to_beginning(*partitions)
ends = consumer.end_offsets(partitions)
left = {partition for partition in partitions if ends[partition] > 0}
while left:
    for partition, records in consumer.poll(timeout_ms=1000).items():
        for record in records:
            print(
                json.dumps(
                    {
                        "partition": record.partition,
                        "offset": record.offset,
                        "key": None if record.key is None else record.key.decode(),
                        "headers": {name: value.decode() for name, value in record.headers},
                        "value": record.value.decode(),
                    }
                )
            )
            if record.offset + 1 >= ends[partition]:
                left.discard(partition)
consumer.close()
