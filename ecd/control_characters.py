"""Characters that a terminal or a log would obey rather than show. Pure."""

import re

# All of C0 and C1, and DEL.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
# Of these, the ones that no text has any use for: not tab and newline.
CONTROL_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
