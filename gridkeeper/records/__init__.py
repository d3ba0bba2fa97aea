"""Typed records: what is durable in the stores and what crosses a module boundary. Frozen, slotted, no I/O.

Each durable record has a message of the same name in ``proto/gridkeeper/v1/records.proto``; ``gridkeeper.codec`` maps
the one to the other by field name, and a test holds the two equal.
"""
