"""The whole of the settings as one value."""

import msgspec

from sekisho.audit.config import AuditConfig
from sekisho.control.config import ControlConfig
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.ops.config import LogsConfig
from sekisho.store.config import StoreConfig

VERSION = 1

BUILTIN_MODEL = ModelConfig(name="sekisho-mini", path="builtin")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`default_model` answers when a client names none (None: the first). `aliases`: other names for models.
    `profile` fills what the lines of local models leave open (`engines.profiles`)."""

    version: int = VERSION
    gateway: GatewayConfig = GatewayConfig()
    store: StoreConfig = StoreConfig()
    guard: GuardConfig = GuardConfig()
    audit: AuditConfig = AuditConfig()
    logs: LogsConfig = LogsConfig()
    control: ControlConfig = ControlConfig()
    models: tuple[ModelConfig, ...] = (BUILTIN_MODEL,)
    default_model: str | None = None
    aliases: dict[str, str] = {}
    profile: str | None = None

    def model(self, name: str) -> ModelConfig | None:
        """The model of this name or alias."""
        wanted = self.aliases.get(name, name)
        return next((model for model in self.models if model.name == wanted), None)
