"""Questions to Kafka by tools: topics and offsets, records read by plain consumers, lag."""
