"""The edge daemon: drafts ahead of the committed text. Never imports `ecd.cloud`."""
