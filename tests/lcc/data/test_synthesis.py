"""Which samples are held out of training."""

from lcc.data.samples import Sample
from lcc.data.synthesis import hold_out


def samples(stream: str, responses: str) -> list[Sample]:
    return [Sample((n,), (ord(response),), stream, f"{stream} {n}") for n, response in enumerate(responses)]


def test_what_only_one_question_asks_for_stays_in_training():
    asked = samples("self_study", "aabcbaab")
    held_out = hold_out(asked, 0.5)
    assert len(held_out) == 4
    trained = {sample.response_ids for sample in asked if sample not in held_out}
    assert trained == {sample.response_ids for sample in asked}


def test_as_many_are_held_out_as_asked_for_if_every_answer_is_alone():
    asked = samples("self_study", "abcdefgh")
    assert hold_out(asked, 0.25) == asked[:2]


def test_general_queries_are_held_out_as_drawn():
    asked = samples("general", "abba") + samples("self_study", "abba")
    assert [sample.query for sample in hold_out(asked, 0.25)] == ["general 0", "self_study 0"]
    asked = samples("general", "abb") + samples("self_study", "abb")
    assert [sample.query for sample in hold_out(asked, 0.34)] == ["general 0", "self_study 1"]
