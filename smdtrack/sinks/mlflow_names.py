"""What MLflow accepts: names of metrics and parameters, lengths, and numbers of entries per call."""

import posixpath
import re
import zlib

#: Longest name of a metric or parameter, in characters.
MAX_KEY = 250
#: Longest value of a parameter and of our tags, in characters; MLflow 3 itself accepts more in some stores.
MAX_VALUE = 500
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
_REFUSED = re.compile(r"[^/\w.\- :]")


def safe_key(key: str) -> str:
    """Returns the key in a form that MLflow accepts.

    MLflow accepts letters, digits and `_ - . space : /`, at most 250 characters, and no path such as `a//b` or `../a`.
    A key that had to be changed ends in its checksum, so that two different keys stay different.
    """
    safe = _REFUSED.sub("_", key)
    safe = posixpath.normpath(safe).lstrip("/")
    safe = "/".join("_" if part == ".." else part for part in safe.split("/"))
    if safe == key and len(key) <= MAX_KEY:
        return key
    return f"{safe[: MAX_KEY - 9]}-{zlib.crc32(key.encode()):08x}"
