"""Deletion requests: what must be erased, without a word on who asked."""

from components.requests.requests import Request, Requests, add_request, load_requests, remove_request

__all__ = ["Request", "Requests", "add_request", "load_requests", "remove_request"]
