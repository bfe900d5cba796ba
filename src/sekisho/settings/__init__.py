"""Settings: what `sekisho.yaml` may say, read strictly, and written without touching the reader's comments."""

from sekisho.settings.document import SettingsError, SettingsProblem
from sekisho.settings.loading import default_text, load, load_text
from sekisho.settings.model import VERSION, Settings
from sekisho.settings.writing import add_model, write_text

__all__ = [
    "VERSION",
    "Settings",
    "SettingsError",
    "SettingsProblem",
    "add_model",
    "default_text",
    "load",
    "load_text",
    "write_text",
]
