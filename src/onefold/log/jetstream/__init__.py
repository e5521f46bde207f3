"""The JetStream engine: a log on a NATS cluster."""
