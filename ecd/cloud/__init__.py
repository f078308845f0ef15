"""The cloud daemon: commits the target's tokens, never waiting for hints. Never imports `ecd.edge`."""
