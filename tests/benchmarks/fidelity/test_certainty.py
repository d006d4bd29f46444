"""``benchmarks.fidelity.certainty`` on one document."""

from __future__ import annotations

import re

from benchmarks.fidelity import certainty


def test_counts_the_answers_it_prints(capsys):
    certainty.main(["--documents", "1", "--below", "0.9"])
    *answers, total = capsys.readouterr().out.splitlines()
    unsure, asked = map(int, re.match(r"(\d+) of (\d+) answers", total).groups())
    assert 0 < unsure == len(answers) < asked
    assert all(0 <= float(line.split()[0]) <= 0.9 for line in answers)
