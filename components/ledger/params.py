"""Section `ledger`: where the log of requests and releases is kept, and who may decide."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from components.common.sections import Section


class LedgerParams(Section):
    """The ledger. No stage reads this section."""

    url: str
    """SQLAlchemy URL of the database, SQLite or PostgreSQL, without a password; EXPUNGE_LEDGER_URL goes before it."""
    withdrawal_hours: float = Field(ge=0, le=87_600)
    """Hours after its submission in which a request can be withdrawn; it is not trained before they are over."""
    four_eyes: bool
    """Whether a release needs the approval of someone who did not submit it."""

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if re.search(r"//[^/@]*:[^/@]+@", url):
            raise ValueError("a password does not belong in params.yaml; put the URL into EXPUNGE_LEDGER_URL")
        return url
