"""Per-image results on disk: blocks of images, each a file; who measures them; read back."""

from sanrobust.records.headers import (BLOCK_SIZE, HEADER_NAME, SEALED_FROM, read_header,
                                       write_header_file)
from sanrobust.records.plan import Plan, batches_of, ids_digest
from sanrobust.records.reader import RECORDS_FOLDER, RESTORE, RUNS_FOLDER, read_records
from sanrobust.records.sharing import Share, others_at_work
from sanrobust.records.starts import RUNNING, Said, Start, starts_of
from sanrobust.records.state import State, failed_images, is_whole, state_of
from sanrobust.records.store import LAUNCH, RunStore

__all__ = [
    "BLOCK_SIZE", "HEADER_NAME", "LAUNCH", "Plan", "RECORDS_FOLDER", "RESTORE", "RUNNING",
    "RUNS_FOLDER", "RunStore", "SEALED_FROM", "Said", "Share", "Start", "State", "batches_of",
    "failed_images", "ids_digest", "is_whole", "others_at_work", "read_header", "read_records",
    "starts_of", "state_of", "write_header_file",
]
