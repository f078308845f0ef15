"""How a sequence's tokens are cut into the pieces that are evaluated at once.

Pure arithmetic, shared by the target, the draft and the oracle: cut alike, a prompt gives the same logits
everywhere.
"""

# From 64 tokens of a sequence on, llama.cpp's attention on CPUs works in tiles: several times faster behind a
# long context, and with other rounding. So a prompt goes in pieces of exactly this many, at fixed places, and
# all else in smaller ones.
PROMPT_CHUNK_TOKENS = 64
SEGMENT_TOKENS = 32


def next_piece(cached: int, prompt_len: int, length: int) -> tuple[int, int]:
    """Start and end of what to evaluate next of a sequence of `length` tokens, `cached` of them evaluated.

    The last piece of a prompt is its last PROMPT_CHUNK_TOKENS tokens: it reaches back over evaluated ones
    rather than being short. `length` is at least `prompt_len` and more than `cached`.
    """
    if cached >= prompt_len:
        return cached, min(length, cached + SEGMENT_TOKENS)
    if prompt_len < PROMPT_CHUNK_TOKENS:
        return cached, prompt_len
    end = min(cached + PROMPT_CHUNK_TOKENS, prompt_len)
    return end - PROMPT_CHUNK_TOKENS, end


def whole_chunks(prompt_len: int, cached: int) -> int:
    """How many of a sequence's first tokens were evaluated in whole chunks at their fixed places.

    Every prompt that begins with them has the same cells there, bit for bit. Behind them are the prompt's
    last piece, which has replaced the end of the chunk before it, and what followed the prompt in smaller
    pieces. `cached` of the tokens are evaluated, `prompt_len` is that of the prompt among them.
    """
    if cached < prompt_len:
        return cached - cached % PROMPT_CHUNK_TOKENS
    short = prompt_len % PROMPT_CHUNK_TOKENS
    return prompt_len if not short else max(0, prompt_len - short - PROMPT_CHUNK_TOKENS)
