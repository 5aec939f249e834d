"""Maps: block-wise prediction over regions larger than memory. Needs the extra ``ml``."""

from __future__ import annotations
