"""Writing a report into its run's folder, signed where there is a key."""

from pathlib import Path

import msgspec

from sekisho.evaluate.definitions import Language
from sekisho.evaluate.report import page, signing
from sekisho.evaluate.report.data import ReportData
from sekisho.ops.home import write_atomically

REPORT_FILE = "report.html"


def write_report(folder: Path, data: ReportData, key: bytes | None, language: Language) -> Path:
    """report.html and, with a key, manifest.json; both whole or as they were. Everything else must lie in the folder
    already: the report names the SHA-256 of it. Raises OSError, InvalidRequest."""
    path = folder / REPORT_FILE
    if key is None:
        write_atomically(path, page.render(data, language).encode())
        return path
    signer = signing.public_key(key).hex()
    data = msgspec.structs.replace(data, signer=signer, data_sha256=signing.data_digest(folder))
    write_atomically(path, signing.seal(page.render(data, language), key).encode())
    signing.write_manifest(folder, folder.name, key)
    return path
