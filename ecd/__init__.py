"""Edge-cloud speculative decoding: drafts are hints, the cloud never waits, the text is the target's text."""

__version__ = "0.1.0"
