"""The policy over the network: openpi's websocket protocol and GR00T's ZMQ protocol, batched, bounded, without pickle (docs/serve.md)."""
