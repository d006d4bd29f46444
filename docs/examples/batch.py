"""A folder of texts becomes a folder of memories; a second call skips what is done.

Run it with ``python docs/examples/batch.py``.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import lcc
from lcc.embedded_model import load_embedded

TEXT = Path(__file__).with_name("village.txt").read_text("utf-8")
QUICK = {"steps": 20, "batch": 16, "evaluate_every": 20, "self_study_questions": 60, "general_queries": 40}

model, tokenizer = load_embedded()
options = {"ratio": 4, "progress": False, "certify": False, **QUICK}

with TemporaryDirectory() as place:
    folder = Path(place)
    sources = [folder / "first.txt", folder / "second.txt", folder / "empty.txt"]
    half = len(TEXT) // 2
    for source, text in zip(sources, (TEXT[:half], TEXT[half:], ""), strict=True):
        source.write_text(text, "utf-8")

    for call in ("first call", "second call"):
        print(call)
        # An error in one document is reported and does not stop the others.
        for outcome in lcc.compile_documents(model, tokenizer, sources, folder / "memories", **options):
            print(f"  {Path(outcome.source).name}: {outcome.status} {outcome.error or ''}".rstrip())
