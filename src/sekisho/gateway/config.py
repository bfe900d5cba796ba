"""Settings of the `gateway:` part of sekisho.yaml."""

import msgspec


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cost of a model in the team's own currency per million tokens."""

    input_per_million: float = 0.0
    output_per_million: float = 0.0


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`trusted_proxies`: networks whose `X-Forwarded-For` is believed. `allow_networks`: who may connect at all
    (empty: everybody who can reach the port). `queue_limit`: turns that may wait per model before 503.
    `queue_timeout_s`: how long one may wait. `drain_timeout_s`: how long running turns may take after SIGTERM.
    `restart_wait_s`: how long a turn waits for a crashed engine of ours to be back. `metrics_public`: `/metrics`
    without a key (else the scope `control` or `admin` is needed).
    """

    host: str = "127.0.0.1"
    port: int = 7010
    public_url: str | None = None
    allow_networks: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    body_limit_bytes: int = 32 * 1024 * 1024
    body_timeout_s: float = 60.0
    queue_limit: int = 256
    queue_timeout_s: float = 120.0
    keepalive_s: float = 10.0
    drain_timeout_s: float = 30.0
    restart_wait_s: float = 15.0
    metrics_public: bool = False
    cors_origins: tuple[str, ...] = ()
    prices: dict[str, Price] = {}
    currency: str = "USD"
