"""Write docs/models.md: which families of models are accepted, found out on tiny random ones.

python -m benchmarks.families
"""

from __future__ import annotations

from pathlib import Path

import transformers

from benchmarks.families.models import FAMILIES, SIZES
from lcc.modeling.architecture import COMPARISONS, verdict

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """# Models

LCC puts K and V in front of a model at positions of its choice, and trains through packed rows. A model is accepted if
a short probe says that this reproduces the model itself: `lcc.compile`, `lcc.plan` and `lcc.attach` read a few random
tokens both ways, once for each model in a process. Whatever differs is
refused with an `InputError` that names it. No list decides: a model that is not on this page is probed all the same,
and a fine-tuned one may be refused though its family is accepted, as its weights decide too.

A model is refused if it

"""
TABLE = """
or if it has no rotary tables or no list of layers for that to be asked, or if what it reads changes nothing.

The table is of random models with {num_hidden_layers} layers and {hidden_size} channels under transformers {version},
made by `python -m benchmarks.families`. "shares" says whether batches of sequences hold their first tokens once
(`lcc_shared_prefix`), which saves memory and changes no answer.

| family | verdict | shares | why |
|---|---|---|---|
"""


def main() -> None:
    rows = []
    for name, family in FAMILIES.items():
        probed = verdict(family.model())
        state = "accepted" if probed.refused is None else "refused"
        # By how much differs from machine to machine.
        why = (probed.refused or "").split(" (off by")[0]
        rows.append(f"| {name} | {state} | {'yes' if probed.shares else ''} | {why} |\n")
        print(rows[-1], end="")
    asked = "".join(f"- {comparison.failed};\n" for comparison in COMPARISONS)
    PAGE.write_text(HEAD + asked + TABLE.format(**SIZES, version=transformers.__version__) + "".join(rows))


if __name__ == "__main__":
    main()
