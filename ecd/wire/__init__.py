"""The wire protocol of docs/PROTOCOL.md: frames, messages, the sans-I/O connection and its asyncio link."""
