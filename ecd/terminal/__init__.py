"""What `ecdctl` shows to a person: colours, a conversation, a live view, many prompts with their progress."""
