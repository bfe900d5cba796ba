"""Settings of the `store:` part of sekisho.yaml. The URL comes from DATABASE_URL first."""

import msgspec


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`url` None means SQLite in the home folder. `responses_ttl_days`: how long `/v1/responses` state is kept.

    `usage_fsync` makes each request's usage survive a power failure too, at the price of a disk sync per request.
    """

    url: str | None = None
    responses_ttl_days: float = 30.0
    usage_fsync: bool = False
