"""Networks: plain modules, one file a system. Needs torch and timm alone; no training code, no reading, no writing."""

from __future__ import annotations
