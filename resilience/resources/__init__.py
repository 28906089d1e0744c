"""The resource manager: everything with an end is registered, cleaned up once, and told of when it leaks."""

from __future__ import annotations

from .handles import Handle, ResourceType
from .manager import ResourceManager

__all__ = ["Handle", "ResourceManager", "ResourceType"]
